"""The benchmark's frame: its parts, its goals, its page. No test here looks at a time."""
