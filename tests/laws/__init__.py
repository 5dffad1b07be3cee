"""The laws of the contract, one module for each group. A law is a plain coroutine over a ``Lab``."""
