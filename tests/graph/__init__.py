"""Tests of graphs: geometry, order, choice, programs."""
