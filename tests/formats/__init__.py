"""Tests of the readers of network files."""
