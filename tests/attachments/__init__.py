"""Tests of the stores of attachments."""
