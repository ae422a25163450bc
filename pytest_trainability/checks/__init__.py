"""Judging numbers: intervals, bounds, verdicts and likely causes. No tensors here."""
