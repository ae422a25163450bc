"""The loss at initialization: its value, its curvature, its tangent kernel."""
