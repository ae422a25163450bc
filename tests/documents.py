"""Documents of the JSON report, as a session would write them, for tests of what shows them."""

from __future__ import annotations

import math
import random
from typing import Any

from pytest_trainability.records.session import counts as status_counts
from pytest_trainability.records.text import format_value

__all__ = ["baseline", "change", "check", "document", "error", "estimate", "profile", "spectrum", "verdict"]

SEEDS = 4


def _mean(values: list[float], scale: str = "linear") -> tuple[float, float, float]:
    """Return a mean, and an interval that is as wide as the values spread."""
    if not all(map(math.isfinite, values)) or (scale == "log" and min(values) <= 0):
        return math.nan if any(map(math.isnan, values)) else max(values, key=abs), math.nan, math.nan
    mean = math.exp(sum(map(math.log, values)) / len(values)) if scale == "log" else sum(values) / len(values)
    return mean, min(values), max(values)


def _written(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _element(name: str, values: list[float], scale: str) -> dict[str, Any]:
    mean, low, high = map(_written, _mean(values, scale))
    return {"name": name, "mean": mean, "low": low, "high": high, "values": list(map(_written, values))}


def _value(measure: str, kind: str, by: str, elements: dict[str, list[float]], unit: str, scale: str) -> dict[str, Any]:
    rows = [_element(name, values, scale) for name, values in elements.items()]
    return {"measure": measure, "kind": kind, "unit": unit, "scale": scale, "by": by, "elements": rows, "names": []}


def estimate(measure: str, values: list[float], *, unit: str = "", scale: str = "linear") -> dict[str, Any]:
    """Return the value of a measure of one number."""
    return _value(measure, "estimate", "", {"": values}, unit, scale)


def profile(
    measure: str, elements: dict[str, list[float]], by: str, *, unit: str = "", scale: str = "linear"
) -> dict[str, Any]:
    """Return the value of a measure of one number by name: values of all seeds."""
    return _value(measure, "profile", by, elements, unit, scale)


def spectrum(measure: str, rows: list[list[float]], *, unit: str = "", scale: str = "linear") -> dict[str, Any]:
    """Return the value of a measure of numbers in order."""
    return _value(measure, "spectrum", "exponent", {f"exponent {k}": row for k, row in enumerate(rows, 1)}, unit, scale)


def verdict(
    measure: str,
    values: list[float],
    low: float | None,
    high: float | None,
    *,
    unit: str = "",
    scale: str = "linear",
    **others: Any,
) -> dict[str, Any]:
    """Return a verdict on a bound."""
    mean, below, above = _mean(values, scale)
    holds = not math.isnan(mean) and (low is None or mean >= low) and (high is None or mean <= high)
    if low is not None and high is not None:
        bound = f"must lie in [{low:g}, {high:g}]"
    else:
        bound = f"must be ≥ {low:g}" if low is not None else f"must be ≤ {high:g}"
    margin = min(math.inf if low is None else mean - low, math.inf if high is None else high - mean)
    found = {
        "measure": measure, "value": mean, "value_low": below, "value_high": above, "unit": unit, "scale": scale,
        "low": low, "high": high, "holds": holds, "marginal": False, "margin": margin, "where": "", "violations": 0,
        "elements": 1, "worst": [], "seeds_needed": 0, "remark": "", "finite": "", "worst_finite": [], "names": [],
        "text": format_value(mean, below, above, unit=unit, scale=scale), "bound": bound,
    }  # fmt: skip
    return {name: _written(v) if isinstance(v, float) else v for name, v in (found | others).items()}


def change(measure: str, old: float, new: float, tolerance: float, **others: Any) -> dict[str, Any]:
    """Return a change from the baseline."""
    shift = new - old
    found = {
        "measure": measure, "kind": "moved", "element": "", "elements": [], "old": old, "new": new, "shift": shift,
        "tolerance": tolerance, "unit": "", "scale": "linear", "considered": 1, "old_finite": "", "new_finite": "",
        "old_text": "", "new_text": "", "count": 1, "remark": "", "text": f"{old:.3g} → {new:.3g}",
    }  # fmt: skip
    return {name: _written(v) if isinstance(v, float) else v for name, v in (found | others).items()}


def baseline(status: str, changes: list[dict[str, Any]], old_values: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a comparison with a baseline."""
    command = "pytest test_gpt2.py::test_gpt2 --trainability-baseline=update"
    return {
        "status": status, "file": "__trainability__/test_gpt2.json", "entry": "test_gpt2 › default › cpu float32",
        "changes": changes, "recorded_with": "", "command": command if status in {"changed", "missing"} else "",
        "measures": ["log_gain", "gradient_norm"], "model_compared": True, "operations_compared": True,
        "custom_functions": [], "remarks": [],
        "old_values": old_values,
    }  # fmt: skip


def _tower(layers: int) -> tuple[list[str], list[dict[str, Any]], list[str]]:
    """Return the steps, modules and parameters of a transformer."""
    steps = [f"h.{k}" for k in range(layers)]
    block = f"h.{{0-{layers - 1}}}" if layers > 1 else "h.0"
    kinds = {
        "": "GPT2Model", "wte": "Embedding", "h": "ModuleList", block: "GPT2Block", f"{block}.ln_1": "LayerNorm",
        f"{block}.attn": "GPT2Attention", f"{block}.attn.c_attn": "Conv1D", f"{block}.mlp": "GPT2MLP", "ln_f": "LayerNorm",
    }  # fmt: skip
    modules = [{"name": n, "kind": k, "count": layers if n.startswith(block) else 1} for n, k in kinds.items()]
    return (
        steps,
        modules,
        ["wte.weight", *(f"h.{k}.{part}.weight" for k in range(layers) for part in ("attn.c_attn", "mlp"))],
    )


def check(
    test: str,
    *,
    rate: float = -0.05,
    layers: int = 12,
    seed: int = 0,
    bounds: tuple[float, float] | None = (-5.0, 5.0),
    old_rate: float | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Return a check of a transformer whose gradients grow by ``rate`` nats per layer."""
    random_numbers = random.Random(seed)
    steps, modules, parameters = _tower(layers)

    def rates(mean: float) -> dict[str, list[float]]:
        return {name: [random_numbers.gauss(mean, 0.08) for _ in range(SEEDS)] for name in steps}

    def norms(mean: float) -> dict[str, list[float]]:
        return {
            name: [math.exp(mean * (layers - k / 2)) * random_numbers.lognormvariate(-3, 0.3) for _ in range(SEEDS)]
            for k, name in enumerate(parameters)
        }

    growth = rates(rate)
    gains = [sum(column) for column in zip(*growth.values(), strict=True)]
    values = [
        estimate("log_gain", gains, unit="nats"),
        estimate("lyapunov_max", [gain / layers for gain in gains], unit="nats/step"),
        profile("growth_rate", growth, "step", unit="nats"),
        profile("activation_rms", {n: [1 + 0.1 * k] * SEEDS for k, n in enumerate(["input", *steps])}, "step", scale="log"),
        profile("gradient_norm", norms(rate), "parameter", scale="log"),
        spectrum("lyapunov_spectrum", [[random_numbers.gauss(rate - 0.1 * k, 0.02) for _ in range(SEEDS)] for k in range(4)],
                 unit="nats/step"),
    ]  # fmt: skip
    verdicts = [verdict("log_gain", gains, *bounds, unit="nats")] if bounds else []
    holds = all(one["holds"] for one in verdicts)
    mean, low, high = _mean(gains)
    outside = next(
        (k for k in range(layers, 0, -1) if bounds and not bounds[0] <= rate * (layers - k + 1) <= bounds[1]), 0
    )
    leaves = "" if holds else f"at {steps[outside - 1]}, {layers - outside + 1} of {layers} steps from the output"
    compared = None
    if old_rate is not None:
        old = [
            profile("growth_rate", rates(old_rate), "step", unit="nats"),
            profile("gradient_norm", norms(old_rate), "parameter", scale="log"),
        ]
        moved = change("log_gain", old_rate * layers, mean, 0.3, unit="nats")
        weights = f"h.{{0-{layers - 1}}}.mlp.weight"
        factor = change(
            "initial values", 0.02, 0.04, 1e-3, element="h.*.mlp.weight", elements=[weights], shift=math.log(2),
            scale="log", count=layers, considered=layers,
        )  # fmt: skip
        compared = baseline("changed", [moved, factor], old)
    found = {
        "id": test, "test": test, "name": "", "file": test.partition("::")[0], "line": 12,
        "status": "failed" if not holds or compared else "held" if verdicts else "nothing asserted",
        "outcome": "passed" if holds and not compared else "failed", "failure": "", "model": "GPT2Model",
        "steps": {"text": f"{layers} × GPT2Block", "names": steps, "along": "depth"},
        "conditions": {"frame": "per sample", "mode": "train", "device": "cpu", "dtype": "float32",
                       "gradient_of": "a random functional of the output", "seeds": list(range(SEEDS)),
                       "seeds_requested": list(range(SEEDS)), "fixed": False},
        "seconds": 0.4, "log_gain": {"mean": _written(mean), "low": _written(low), "high": _written(high), "finite": "",
                                     "spread": 0.3},
        "growth": [_written(_mean(row)[0]) for row in growth.values()], "leaves_band": leaves, "verdicts": verdicts,
        "baseline": compared,
        "cause": [] if holds else [f"every step multiplies the gradient by {math.exp(rate):.3g}, steadily",
                                   f"{layers} × Conv1D (h.*.attn.c_attn) multiply the gradient by 0.5 each"],
        "cures": [] if holds else [{"text": "nn.init.normal_(c_attn.weight, std=0.04)", "measure": "log_gain",
                                    "before": _written(mean), "after": -0.4}],
        "notes": [], "cautions": [], "lists": [], "reproduce": f"pytest {test} --trainability-seeds=0-3",
        "explanation": [], "values": values, "modules": modules,
        "tensors": [{"name": "wte.weight", "count": 1, "shape": [50, 8], "rms": 0.02, "mean": 0.0, "looks": "normal"},
                    *({"name": f"h.{{0-{layers - 1}}}.{part}.weight", "count": layers, "shape": [8, 8], "rms": 0.04, "mean": 0.0,
                       "looks": "normal"} for part in ("attn.c_attn", "mlp"))],
    }  # fmt: skip
    return found | others


def error(test: str, message: str, *, expected: bool = False) -> dict[str, Any]:
    """Return a measurement that could not be made."""
    return {
        "test": test, "error": "InapplicableError", "message": message, "file": test.partition("::")[0], "line": 7,
        "expected": expected,
    }  # fmt: skip


def document(checks: list[dict[str, Any]], errors: list[dict[str, Any]] | None = None, **others: Any) -> dict[str, Any]:
    """Return the document of a session."""
    errors = errors or []
    of_errors = ["expected failure" if one["expected"] else "not measured" for one in errors]
    counts = status_counts([*(one["status"] for one in checks), *of_errors])
    found = {
        "schema": "https://example.org/report-1.json", "version": 1, "created": "2026-11-30T03:50:00+00:00",
        "tool": "pytest-trainability 0.1.0",
        "environment": {"python": "3.11.7", "pytest": "9.2.0", "torch": "2.13.0", "numpy": "2.4.0",
                        "pytest_trainability": "0.1.0", "platform": "Linux-6.1-x86_64", "processor": "x86_64",
                        "devices": ["cpu"], "command": "pytest tests", "threads": 2},
        "summary": {"checks": len(checks), **counts,
                    "seconds": sum(one["seconds"] for one in checks), "required": 0, "measured": len(checks),
                    "exit_status": 1 if counts["failed"] or counts["not measured"] else 0},
        "checks": checks, "errors": errors, "suggestions": [], "baselines": None, "shards": [],
    }  # fmt: skip
    return found | others
