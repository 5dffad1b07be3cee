"""Durable sessions for AI agents: every turn lands exactly once."""
