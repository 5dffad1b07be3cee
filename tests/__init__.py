"""The tests of fastness: laws, a reference model, injected faults and killed processes."""
