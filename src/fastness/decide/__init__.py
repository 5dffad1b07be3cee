"""Decisions: facts in, a plan or an error out. No I/O, no clock, no randomness."""
