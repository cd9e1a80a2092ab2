"""Figures and tables of what was measured (results/ holds the files that they are drawn from)."""
