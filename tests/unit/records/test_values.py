"""Values of measures as plain data: they survive a file inside the record of a check."""

from __future__ import annotations

import json
from collections.abc import Callable

from pytest_trainability.records.reports import CheckRecord
from pytest_trainability.records.values import ElementRecord, ModuleRecord, TensorRecord, ValueRecord


def test_values_modules_and_tensors_survive_a_file(make_record: Callable[..., CheckRecord]) -> None:
    value = ValueRecord(
        "growth_rate", "profile", "nats", "linear", "step", (ElementRecord("a", 1.0, 0.5, 1.5, (1.0, 1.0)),)
    )
    sent = make_record(
        values=(value, ValueRecord("nonfinite", "names", "", "linear", "", (), ("a", "b"))),
        modules=(ModuleRecord("blocks.*", "Block", 12),),
        tensors=(TensorRecord("blocks.*.weight", 12, (3, 3), 0.02, 0.0, "normal"),),
    )
    assert CheckRecord.from_plain(json.loads(json.dumps(sent.to_plain()))) == sent
