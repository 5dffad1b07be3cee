"""Engines run programs in transactions. They know connections, locks and retries, and no table."""
