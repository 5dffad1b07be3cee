"""Laws of the engines, checked with programs that mean nothing."""
