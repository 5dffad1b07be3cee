"""One durable turn, and many sessions, beside the stores that people use instead: a process for each contestant."""
