"""Tests of the primitives: one contract for all of them, and what is peculiar to each."""
