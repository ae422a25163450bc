"""Products with the Jacobians of segments, and states as vectors."""
