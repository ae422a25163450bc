"""Initial values as a record."""

from __future__ import annotations

import json
from dataclasses import asdict

from pytest_trainability.records.initial_values import InitialValues


def test_a_record_compares_by_value_and_can_be_stored() -> None:
    def made() -> InitialValues:
        return InitialValues(
            "w", "parameter", (8, 4), "float32", "constant", "constant 1", 1.0, 1.0, 1.0, redrawn=False
        )

    assert made() == made()
    assert json.loads(json.dumps(asdict(made())))["form"] == "constant"
