"""Plain data of measurements: estimates, verdicts and records, for judging, storing and reporting."""
