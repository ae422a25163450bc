"""Judging numbers: intervals, bounds, verdicts, baselines and likely causes. No tensors here."""
