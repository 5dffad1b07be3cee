"""Tests of the examples, each run as somebody new to the library would run it."""
