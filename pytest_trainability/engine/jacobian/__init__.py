"""Products of vectors with the Jacobians of a chain's segments, and states as vectors."""
