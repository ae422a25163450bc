"""Taking a model apart: one instrumented run, its steps and states, and sweeps of cotangents through them."""
