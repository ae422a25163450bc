"""Showing records: pure functions of plain numbers, no judgement of their own."""
