"""Tests of the face for code that does not await."""
