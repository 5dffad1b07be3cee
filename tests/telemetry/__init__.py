"""Tests of what is told to operators."""
