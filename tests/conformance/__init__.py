"""Tests of the kit itself: its report, its page, and stores that break a law."""
