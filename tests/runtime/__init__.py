"""Tests of what applications call."""
