"""Formats of others: transcripts in, transcripts out, nothing lost on the way. Pure functions and readers of files."""
