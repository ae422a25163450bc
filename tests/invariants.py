"""What must hold for every network: one function per invariant, each of a program, which returns a word for the counts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from oracle import Chosen, Exact, NoChainError, exact_chain, listing_of
from programs import Net, Printed, Program, build, draw_inputs, energy, step_choice, uses
from torch import Tensor
from undisturbed import bits, look_around, look_at

from pytest_trainability import Measurement, measure
from pytest_trainability.engine.capture.chain import Chain, chain_of, graph_of
from pytest_trainability.engine.capture.graph import Graph
from pytest_trainability.engine.capture.recorder import Call, Capture, capture
from pytest_trainability.engine.capture.steps import choose_steps
from pytest_trainability.engine.jacobian.vjp import Cotangents, pull_back
from pytest_trainability.errors import CutError, TrainabilityError
from pytest_trainability.measures import MEASURES

__all__ = ["RANGES", "Ask", "check_exact", "check_measured", "check_spectrum"]

DRAWS = 11
"""Seed of what a network draws while it runs."""


# Exactness -------------------------------------------------------------------------------------------------------
ROUND_OFF = 1e-10
"""Largest difference between two matrices in float64, relative to their largest entry or to 1.

A segment is a product of at most some thirty matrices of up to fifty rows, with entries of a few units: its round-off is a few
hundred times 1e-16. What is left of a difference of large terms is compared with the terms, which are below 1e3."""


@contextmanager
def as_a_user_runs_it() -> Iterator[None]:
    """Ignore the two warnings that PyTorch gives about the models themselves, also in plain runs. One of them is given once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        warnings.filterwarnings("ignore", message="ComplexHalf support is experimental")
        yield


def check_exact(program: Program) -> str:
    """Compare every state and every Jacobian of the engine with those of the definition."""
    torch.manual_seed(program.seed)
    net = build(program)
    with as_a_user_runs_it():
        try:
            captured, graph, calls = captured_calls(program, net)
        except TrainabilityError:
            return "no steps"
        try:
            exact = exact_of(program, net, calls)
        except NoChainError:
            with pytest.raises(CutError):
                chain_of(captured, graph, calls)
            return "no chain"
        if not all(bool(J.isfinite().all()) for J in (*exact.jacobians, exact.whole)):
            return "overflowed"
        compare(chain_of(captured, graph, calls), exact)
    return "compared"


def captured_calls(program: Program, net: Net) -> tuple[Capture, Graph, list[Call]]:
    """Run the network under the engine, and return the calls that it chooses as steps."""
    torch.manual_seed(DRAWS)
    captured = capture(net, draw_inputs(program), {}, loss=energy if program.loss else None)
    graph = graph_of(captured)
    return captured, graph, choose_steps(captured, graph, step_choice(program))


def exact_of(program: Program, net: Net, calls: Sequence[Call]) -> Exact:
    """Return the chain by the definition for calls that the engine has chosen.

    Raises:
        NoChainError: There is none.
    """
    torch.manual_seed(DRAWS)
    return exact_chain(listing_of(program, net), [Chosen(call.path, call.index) for call in calls])


def compare(chain: Chain, exact: Exact) -> None:
    """Compare the steps, the states, each Jacobian and the product of all."""
    assert [Chosen(call.path, call.index) for call in chain.steps] == list(exact.steps)
    for index in range(len(chain) + 1):
        found = tuple((tuple(shape), dtype) for shape, dtype in chain.shapes(index))
        assert found == exact.shapes[index], f"state {index}: {found}, not {exact.shapes[index]}"
    product = torch.eye(len(exact.whole), dtype=torch.float64)
    for index in range(len(chain), 0, -1):
        J = dense(chain, index)
        assert_close(J, exact.jacobians[index - 1], f"J_{index}")
        product = product @ J
    assert_close(product, exact.whole, "the product")


def dense(chain: Chain, index: int) -> Tensor:
    """Return ``J_l`` of the engine as a matrix of real numbers: the identity, pulled back."""
    shapes = chain.shapes(index)
    sizes = [math.prod(shape) * (1 + dtype.is_complex) for shape, dtype in shapes]
    identity = torch.eye(sum(sizes), dtype=torch.float64)
    columns: Cotangents = []
    for (shape, dtype), part in zip(shapes, identity.split(sizes, dim=1)):
        numbers = part.reshape(len(part), *shape, *([2] if dtype.is_complex else []))
        columns.append(torch.view_as_complex(numbers.contiguous()) if dtype.is_complex else numbers)
    rows = []
    for column, (shape, dtype) in zip(pull_back(chain, index, columns), chain.shapes(index - 1)):
        found = torch.zeros((len(identity), *shape), dtype=dtype) if column is None else column.resolve_conj()
        rows.append((torch.view_as_real(found) if dtype.is_complex else found).reshape(len(identity), -1))
    return torch.cat(rows, 1)


def assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    error = float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    assert error <= ROUND_OFF, f"{what} differs by {error:.1e}"


# Exponents and singular values -----------------------------------------------------------------------------------
RESOLVED, ROUND_OFF_OF_ZERO = 1e-5, 1e-12
"""Singular values relative to the largest one: above the first number they are compared, below the second one they are zero. A
product with a value in between is not compared: whether it is zero would be a matter of rounding."""
FRAME_ERROR = 1e-8
"""Largest difference of logarithms. An orthonormal frame is exact to a few hundred times 1e-16; a QR factorization of a matrix of
this condition multiplies that by at most ``1 / RESOLVED``."""


def check_spectrum(program: Program) -> str:
    """Compare all singular values, and the sum of all exponents, with the Jacobian, for two draws of the frame.

    Where no direction is lost, a frame that spans the whole last state has exponents with the sum ``Σ_i ln σ_i(J) / L``, whatever
    its draw. Where all steps are square, this is the mean of ``ln |det J_l|``.
    """
    if uses(program.net)["noise"]:
        return "random"
    torch.manual_seed(program.seed)
    net = build(program)
    with as_a_user_runs_it():
        try:
            first = spectrum_of(program, net, 0, 1)
        except TrainabilityError:
            return "refused"
        exact = exact_of(program, net, captured_calls(program, net)[2])
        samples = program.batch if first.frame == "per sample" else 1
        rows, columns = parts(exact, -1, samples), parts(exact, 0, samples)
        logs = torch.stack([log_singular_values(exact.whole[r][:, c]) for r, c in zip(rows, columns)])
        if logs.isnan().any():
            return "unresolved"
        found = [spectrum_of(program, net, seed, len(rows[0])) for seed in (3, 4)]
    expected = logs.mean(0)
    for result in found:
        assert result.frame == first.frame
        values = [math.log(e.mean) if e.mean else -math.inf for e in result.jacobian_singular_values]
        assert values == pytest.approx(expected.tolist(), abs=FRAME_ERROR)
        if logs.isfinite().all() and len(rows[0]) <= len(columns[0]):
            total = sum(e.mean for e in result.lyapunov_spectrum) * len(exact.jacobians)
            assert total == pytest.approx(float(expected.sum()), abs=FRAME_ERROR)
    if not is_square(exact) or not logs.isfinite().all():
        return "compared"
    logs_of_determinants = [float(torch.linalg.slogdet(J).logabsdet) for J in exact.jacobians]
    assert total * samples == pytest.approx(math.fsum(logs_of_determinants), abs=FRAME_ERROR * samples)
    return "square"


def spectrum_of(program: Program, net: Net, seed: int, exponents: int) -> Measurement:
    """Measure one network; the seed decides on the frame alone."""
    return measure(
        net,
        draw_inputs(program),
        loss=energy if program.loss else None,
        seeds=[seed],
        steps=step_choice(program),
        exponents=exponents,
        measures=["lyapunov_spectrum", "jacobian_singular_values"],
    )


def is_square(exact: Exact) -> bool:
    return all(J.shape[0] == J.shape[1] for J in exact.jacobians)


def log_singular_values(J: Tensor) -> Tensor:
    """Return the logarithms of the singular values, largest first; NaN where rounding decides whether a value is zero."""
    values = torch.linalg.svdvals(J)
    share = values / values[:1].clamp(min=torch.finfo(values.dtype).tiny)
    logs = torch.where(share > ROUND_OFF_OF_ZERO, values, 0.0).log()
    return torch.where((share > ROUND_OFF_OF_ZERO) & (share < RESOLVED), math.nan, logs)


def parts(exact: Exact, number: int, samples: int) -> list[list[int]]:
    """Return for each sample which entries of a state are its own."""
    found: list[list[int]] = [[] for _ in range(samples)]
    offset = 0
    for shape, dtype in exact.shapes[number]:
        size = math.prod(shape) * (1 + dtype.is_complex)
        for sample in range(samples):
            found[sample] += range(offset + sample * size // samples, offset + (sample + 1) * size // samples)
        offset += size
    return found


# Whatever a user asks for ----------------------------------------------------------------------------------------
@dataclass(frozen=True, repr=False)
class Ask(Printed):
    """What a user asks of a network, besides its steps and its loss."""

    measures: tuple[str, ...] = ()
    exponents: int = 1
    seeds: int | tuple[int, ...] = 1
    dtype: str | None = None
    train: bool = True
    device: str | None = None
    factory: bool = False
    warmup: int = 0
    alignment: int = 0


ANY = (-math.inf, math.inf)
SIZE = (0.0, math.inf)
SHARE = (0.0, 1.0)

RANGES: dict[str, tuple[float, float]] = {
    "log_gain": ANY,
    "lyapunov_max": ANY,
    "lyapunov_spectrum": ANY,
    "growth_rate": ANY,
    "lyapunov_history": ANY,
    "loss_log_gain": ANY,
    "memory_horizon": SIZE,
    "precision_horizon": SIZE,
    "recurrence_lyapunov_max": ANY,
    "branch_ratio": SIZE,
    "branch_gradient_share": SHARE,
    "spectral_radius": SIZE,
    "jacobian_singular_values": SIZE,
    "max_ftle": ANY,
    "condition_number": (1.0, math.inf),
    "numerical_rank": SIZE,
    "isometry_gap": SIZE,
    "angle_exponent": ANY,
    "attention_entropy": SHARE,
    "attention_logit_max": SIZE,
    "effective_rank": (1.0, math.inf),
    "expert_usage": SHARE,
    "largest_value": SIZE,
    "sample_similarity": (-1.0, 1.0),
    "saturated_fraction": SHARE,
    "dead_fraction": SHARE,
    "activation_rms": SIZE,
    "mode_gap": SIZE,
    "causal_leak": SHARE,
    "leaked_targets": SIZE,
    "order_blindness": SHARE,
    "forward_log_gain": ANY,
    "update_ratio": SIZE,
    "waking_step": SIZE,
    "asleep_parameters": SIZE,
    "loss_drop": ANY,
    "underflow_fraction": SHARE,
    "overflow_fraction": SHARE,
    "fp8_overflow_fraction": SHARE,
    "fp8_underflow_fraction": SHARE,
    "largest_learning_rate": SIZE,
    "smallest_loss_scale": (2.0**-149, math.inf),
    "gradient_norm": SIZE,
    "relative_gradient_norm": SIZE,
    "unused_parameters": SIZE,
    "gradient_classes": SIZE,
    "untrained_fraction": SHARE,
    "backward_error": (0.0, 2.0),
    "gradient_snr": SIZE,
    "gradient_confusion": (-1.0, 1.0),
    "gradient_noise_scale": ANY,
    "initial_loss": ANY,
    "excess_loss": ANY,
    "sharpness": ANY,
    "stable_learning_rate": SIZE,
    "ntk_condition_number": (1.0, math.inf),
    "uninitialized_parameters": SIZE,
    "unregistered_parameters": SIZE,
    "duplicate_parameters": SIZE,
    "nonfinite": SIZE,
    "linear_steps": SIZE,
    "idle_normalizations": SIZE,
    "unnormalized_attention": SIZE,
    "squashed_scores": SIZE,
    "meta_device_differences": SIZE,
    "interacting_samples": SIZE,
    "unusual_parameters": SIZE,
    "parameter_rms": SIZE,
    "parameter_mean": ANY,
    "parameter_outlier": (1, math.inf),
}
"""Least and largest value of each measure, or of the number of names, by its page in ``docs/measures``."""

NEVER_NAN = {
    *("log_gain", "lyapunov_max", "lyapunov_spectrum", "memory_horizon", "precision_horizon", "condition_number"),
    *("numerical_rank", "max_ftle", "saturated_fraction", "dead_fraction", "overflow_fraction", "gradient_norm"),
    *("initial_loss", "waking_step", "untrained_fraction"),
}
"""Measures whose pages name no case in which a network of finite numbers has NaN."""

ROUNDING = 1e-6
"""How far rounding in float32 may carry a value out of its range."""


def check_measured(program: Program, ask: Ask) -> str:
    """Measure twice: the same bits, nothing else changed, every value in its range, no exception but the project's."""
    inputs = draw_inputs(program, torch.float32)
    torch.manual_seed(program.seed)
    net = build(program, torch.float32)
    for parameter in list(net.parameters())[:1]:
        parameter.grad = torch.ones_like(parameter)
    seen, given, around = look_at(net), bits(inputs), look_around()
    outcomes = []
    with as_a_user_runs_it():
        for _ in range(2):
            try:
                outcomes.append(read(program, ask, net, inputs))
            except TrainabilityError as error:
                outcomes.append(f"{type(error).__name__}: {error}")
            assert look_at(net) == seen, "the network has changed"
            assert bits(inputs) == given, "the inputs have changed"
            assert look_around() == around, "generators or settings have changed"
    first, second = outcomes
    assert repr(first) == repr(second), "the second measurement differs"
    if isinstance(first, str):
        return "refused"
    overflows = first["nonfinite"] != [0.0]
    for name, values in first.items():
        assert_in_range(name, values, may_be_nan=overflows or name not in NEVER_NAN)
    return "overflowed" if overflows else "measured"


def read(program: Program, ask: Ask, net: Any, inputs: Sequence[Tensor]) -> dict[str, list[float]]:
    """Return the values of the measures that apply: one per element and seed, or the number of names."""
    result = measure(
        (lambda: build(program, torch.float32)) if ask.factory else net,
        tuple(inputs),
        loss=energy if program.loss else None,
        seeds=ask.seeds if isinstance(ask.seeds, int) else list(ask.seeds),
        steps=step_choice(program),
        exponents=ask.exponents,
        warmup=ask.warmup,
        alignment=ask.alignment,
        dtype=ask.dtype,
        device=ask.device,
        train=ask.train,
    )
    names = (*ask.measures, "nonfinite")
    result.run([MEASURES[name] for name in names], tolerated=dict.fromkeys(names, TrainabilityError))
    known = {
        "log_gain",
        "growth_rate",
        "lyapunov_max",
        "gradient_norm",
        "activation_rms",
        "unused_parameters",
        "nonfinite",
    }
    return {name: values_of(result, name) for name in sorted(known | set(ask.measures)) if applies(result, name)}


def applies(result: Measurement, name: str) -> bool:
    """Whether a measure that was tolerated has a value; reading it says so a second time."""
    try:
        getattr(result, name)
    except TrainabilityError:
        return False
    return True


def values_of(result: Measurement, name: str) -> list[float]:
    found = getattr(result, name)
    if MEASURES[name].kind == "names":
        return [float(len(found))]
    elements = {"scalar": lambda: [found], "spectrum": lambda: list(found), "profile": lambda: list(found.values())}
    return [float(value) for element in elements[MEASURES[name].kind]() for value in element.values]


def assert_in_range(name: str, values: Sequence[float], *, may_be_nan: bool) -> None:
    low, high = RANGES[name]
    for value in values:
        if math.isnan(value):
            assert may_be_nan, f"{name} is NaN"
        else:
            assert low - ROUNDING <= value <= high + ROUNDING, f"{name} = {value}"
