"""A naive model of the whole store, written from the contract alone, for comparison."""
