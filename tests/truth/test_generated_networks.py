"""Random networks, and random questions about them: what holds for every model.

``python tests/generated.py`` checks any number of them.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import generated
import invariants
import pytest
import torch
from generated import CHECKS, Failure, programs, search
from invariants import NEVER_NAN, RANGES, Ask, check_exact, check_measured, check_spectrum
from programs import CHECKPOINTED, IN_PLACE, KINDS, Block, Input, Linear, Op, Program, uses

from pytest_trainability.engine.capture import graph
from pytest_trainability.engine.jacobian import qr_sweep, vjp
from pytest_trainability.engine.runs import building
from pytest_trainability.measures import MEASURES

EXAMPLES = {"exact": 240, "spectrum": 40, "measured": 50}
"""Number of networks per invariant: the three together take half a minute."""
ENOUGH = ("compared", "square", "measured")
"""What the invariants return where they compared numbers."""


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_what_holds_for_every_network(name: str) -> None:
    """A failure prints the network as Python."""
    check, strategies = CHECKS[name]
    drawn: list[Program] = []

    def checked(program: Program, *ask: Any) -> str:
        drawn.append(program)
        return check(program, *ask)

    found = search((checked, strategies), EXAMPLES[name])
    assert 2 * sum(found[word] for word in ENOUGH) > EXAMPLES[name], f"too few networks can be compared: {found}"
    if name == "exact":
        assert_diverse(drawn)


def assert_diverse(drawn: list[Program]) -> None:
    """Every kind of operation, input, output and question must occur: what is not drawn is not tested."""
    found: Counter[Any] = Counter()
    for program in drawn:
        found.update(uses(program.net).keys())
        found.update(f"{given.kind} input" for given in program.inputs)
        found.update("checkpoint" for op in program.net.body if op.kind == "call" and op.number == CHECKPOINTED)
        found.update(
            [("several outputs", len(program.net.returns) > 1), ("loss", program.loss), ("batch", program.batch)]
        )
        found.update([("steps", "list" if isinstance(program.steps, tuple) else program.steps)])
    operations = (*KINDS, *(f"{kind}_" for kind in IN_PLACE), "alias", "call", "noise", "hook", "buffer", "checkpoint")
    inputs = ("real input", "complex input", "ids input", "scale hook of a module", "watch hook of a module")
    steps = [("steps", kind) for kind in ("class", "auto", "layers", "s*", "**", "list")]
    others = [*itertools.product(("several outputs", "loss"), (True, False)), *(("batch", size) for size in (1, 2, 3))]
    assert not [what for what in (*operations, *inputs, *steps, *others) if not found[what]], found


CHANGES_ITS_OWN_VIEW = Program(
    net=Block(
        ("x0",),
        (
            Op("reshaped", ("x0",), ("t0",)),
            Op("call", ("t0",), ("t1",), module="s0"),
            Op("call", ("t1",), ("t2",), module="s1"),
        ),
        ("t2",),
        (),
        (
            (
                "s0",
                Block(
                    ("a0",),
                    (Op("add_", ("a0", "a0"), number=0.5), Op("weigh", ("a0", "w0"), ("t1",))),
                    ("t1",),
                    (("w0", (2, 2), False),),
                ),
            ),
            ("s1", Block(("a0",), (Op("weigh", ("a0", "w0"), ("t0",)),), ("t0",), (("w0", (2, 2), False),))),
        ),
    ),
    inputs=(Input("x0", width=2),),
    batch=1,
)
"""A step adds its argument, a view, to itself in place: PyTorch alone cannot compute the gradient of the argument."""


HOOK_IN_THE_FIRST_STATE = Program(
    net=Block(
        ("x0",),
        (
            Op("tanh", ("x0",), ("t0",), number=0.5),
            Op("hook", ("t0",), number=0.5),
            Op("call", ("t0", "x0"), ("t1",), module="s0"),
            Op("call", ("t1",), ("t2",), module="s1"),
        ),
        ("t2",),
        (),
        (
            (
                "s0",
                Block(
                    ("a0", "a1"),
                    (Op("add", ("a0", "a1"), ("t0",)), Op("weigh", ("t0", "w0"), ("t1",))),
                    ("t1",),
                    (("w0", (2, 2), False),),
                ),
            ),
            ("s1", Block(("a0",), (Op("weigh", ("a0", "w0"), ("t0",)),), ("t0",), (("w0", (2, 2), False),))),
        ),
    ),
    inputs=(Input("x0", width=2),),
    batch=1,
)
"""One of the two tensors of the first state, computed from the other, has a hook that halves its gradient."""


HOOK_ON_ONE_OF_TWO_RESULTS = Program(
    net=Block(
        ("x0",),
        (Op("call", ("x0",), ("t0",), module="s0"), Op("call", ("t0",), ("t1",), module="s1")),
        ("t1",),
        (),
        (
            (
                "s0",
                Block(
                    ("a0",),
                    (
                        Op("weigh", ("a0", "w0"), ("t0",)),
                        Op("sum and difference", ("t0", "t0"), ("t1", "t1b")),
                        Op("hook", ("t1",), number=0.5),
                    ),
                    ("t1",),
                    (("w0", (2, 2), False),),
                ),
            ),
            ("s1", Block(("a0",), (Op("weigh", ("a0", "w0"), ("t0",)),), ("t0",), (("w0", (2, 2), False),))),
        ),
    ),
    inputs=(Input("x0", width=2),),
    batch=1,
)
"""A state is one of two results of a custom autograd function, and has a hook."""


@pytest.mark.parametrize(
    "program",
    [CHANGES_ITS_OWN_VIEW, HOOK_IN_THE_FIRST_STATE, HOOK_ON_ONE_OF_TWO_RESULTS],
    ids=["view", "first state", "two results"],
)
def test_networks_on_which_the_engine_once_failed_are_exact(program: Program) -> None:
    assert check_exact(program) == "compared"


def test_every_measure_has_a_range() -> None:
    assert RANGES.keys() == MEASURES.keys()
    assert RANGES.keys() >= NEVER_NAN


# The oracle ------------------------------------------------------------------------------------------------------
def tower(*body: Op, depth: int = 3, **changes: Any) -> Program:
    """Return a program of linear steps s0, s1, … of width 2, which the body calls."""
    weights = (("w", (2, 2), False),)
    step = Block(("a",), (Op("weigh", ("a", "w"), ("b",)),), ("b",), weights)
    children = tuple((f"s{number}", step) for number in range(depth))
    net = Block(("x",), body, (body[-1].outs[0],), (), children)
    return replace(Program(net, (Input("x", 2),), batch=1), **changes)


def call(number: int, reads: str, out: str) -> Op:
    return Op("call", (reads,), (out,), module=f"s{number}")


def weights(program: Program) -> tuple[Any, list[torch.Tensor]]:
    torch.manual_seed(program.seed)
    net = invariants.build(program)
    return net, [net.get_parameter(f"s{number}.w").detach().T for number in range(len(program.net.children))]


def exact(program: Program) -> Any:
    net, _ = weights(program)
    return invariants.exact_of(program, net, invariants.captured_calls(program, net)[2])


def test_the_oracle_multiplies_the_weights_of_a_tower() -> None:
    program = tower(call(0, "x", "a"), call(1, "a", "b"), call(2, "b", "c"))
    _, (A, B, C) = weights(program)
    found = exact(program)
    for J, expected in zip(found.jacobians, (A, B, C)):
        torch.testing.assert_close(J, expected)
    torch.testing.assert_close(found.whole, C @ B @ A)


def test_the_oracle_leaves_out_an_input_that_returns_after_the_last_step() -> None:
    """``x - body(x)``: the states are those of the body."""
    program = tower(call(0, "x", "a"), call(1, "a", "b"), Op("sub", ("x", "b"), ("c",)), depth=2)
    _, (A, B) = weights(program)
    found = exact(program)
    assert [len(state) for state in found.states] == [1, 1, 1]
    torch.testing.assert_close(found.whole, B @ A)


def test_the_oracle_counts_a_path_that_leaves_before_the_first_step() -> None:
    """``c = 3 x`` before the first step, read between the steps: the sum of both paths enters the second step."""
    early = Op("scale", ("x",), ("c",), 3.0)
    program = tower(early, call(0, "x", "a"), Op("add", ("a", "c"), ("d",)), call(1, "d", "b"), depth=2)
    _, (A, B) = weights(program)
    found = exact(program)
    assert [len(state) for state in found.states] == [1, 2, 1]
    torch.testing.assert_close(found.whole, B @ (A + 3 * torch.eye(2, dtype=torch.float64)))


def test_the_oracle_knows_views_of_changed_tensors() -> None:
    """A view that is read after its base was changed is a view of the new base."""
    view, change = Op("reshaped", ("a",), ("v",)), Op("scale_", ("a",), (), 5.0)
    program = tower(call(0, "x", "a"), view, change, call(1, "v", "b"), depth=2)
    _, (A, B) = weights(program)
    torch.testing.assert_close(exact(program).whole, 5 * B @ A)


def test_the_oracle_changes_a_base_through_its_view() -> None:
    view, change = Op("first", ("a",), ("v",), 1), Op("scale_", ("v",), (), 5.0)
    program = tower(call(0, "x", "a"), view, change, call(1, "a", "b"), depth=2)
    _, (A, B) = weights(program)
    torch.testing.assert_close(exact(program).whole, B @ torch.diag(torch.tensor([5.0, 1.0]).double()) @ A)


def test_programs_print_as_python() -> None:
    program = tower(call(0, "x", "a"), Op("scale_", ("a",), (), 0.5), call(1, "a", "b"), steps=("s0", "s1"))
    names = {"Program": Program, "Block": Block, "Op": Op, "Input": Input, "Linear": Linear, "Ask": Ask}
    assert eval(repr(program), names) == program
    assert eval(repr(Ask(("log_gain",), seeds=(1, 2))), names) == Ask(("log_gain",), seeds=(1, 2))


# Planted faults --------------------------------------------------------------------------------------------------
PLAIN = tower(call(0, "x", "a"), call(1, "a", "b"), call(2, "b", "c"), loss=True)
"""A network on which every invariant holds, and on which the planted faults show that are not about graphs."""


def test_the_plain_network_holds_without_faults() -> None:
    assert check_exact(PLAIN) == "compared"
    assert check_spectrum(PLAIN) == "square"
    assert check_measured(PLAIN, Ask(("dead_fraction", "jacobian_singular_values"))) == "measured"


def test_a_skip_that_is_not_handed_on_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = graph.segment_between
    monkeypatch.setattr(graph, "segment_between", lambda *states: replace(whole(*states), passing=()))
    with pytest.raises(Failure, match=r"differs by (?s:.*)check_exact\(Program\("):
        search(CHECKS["exact"], EXAMPLES["exact"])


def test_a_gradient_that_runs_on_through_an_input_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:

    @contextmanager
    def open_barrier(chain: Any, inputs: Any) -> Iterator[set[Any]]:
        yield set()

    monkeypatch.setattr(vjp, "barrier", open_barrier)
    with pytest.raises(Failure, match="differs by"):
        search(CHECKS["exact"], EXAMPLES["exact"])


def test_a_state_without_a_live_tensor_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the last segment reads of the first state."""
    whole = graph.Graph._readings

    def some(self: Any, x0: Any, moments: Any, *arguments: Any) -> Iterator[Any]:
        found = whole(self, x0, moments, *arguments)
        return (reading for reading in found if reading[0] not in x0 or reading[1] < len(moments) - 1)

    monkeypatch.setattr(graph.Graph, "_readings", some)
    with pytest.raises(Failure, match=r"state \d|differs by|CutError"):
        search(CHECKS["exact"], EXAMPLES["exact"])


def test_a_factorization_that_loses_a_part_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of the exponents, which is the logarithm of a volume."""
    whole = qr_sweep._orthonormal

    def longer(*arguments: Any) -> Any:
        Q, logs, alive = whole(*arguments)
        return Q, logs + 1e-6, alive

    monkeypatch.setattr(qr_sweep, "_orthonormal", longer)
    with pytest.raises(AssertionError):
        check_spectrum(PLAIN)


def test_a_frame_that_is_not_orthonormal_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sum of exponents depends on its draw."""
    whole = qr_sweep._orthonormal

    def not_at_the_end(trajectories: Any, index: int, columns: Any, alive: Any) -> Any:
        if index == len(trajectories.chain):
            return columns, None, alive
        return whole(trajectories, index, columns, alive)

    monkeypatch.setattr(qr_sweep, "_orthonormal", not_at_the_end)
    with pytest.raises(AssertionError):
        check_spectrum(PLAIN)


def test_a_number_that_changes_from_run_to_run_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()
    whole = vjp.generator_of
    monkeypatch.setattr(vjp, "generator_of", lambda seed, purpose: whole(seed, f"{purpose} {next(numbers)}"))
    with pytest.raises(AssertionError, match="the second measurement differs"):
        check_measured(PLAIN, Ask())


def test_a_network_that_is_not_restored_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:

    @contextmanager
    def leave(model: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(building, "preserved_model", leave)
    counting = replace(PLAIN, net=replace(PLAIN.net, body=(Op("buffer", ("x",)), *PLAIN.net.body)))
    with pytest.raises(AssertionError, match="the network has changed"):
        check_measured(counting, Ask())


def test_a_value_out_of_its_range_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEASURES, "dead_fraction", replace(MEASURES["dead_fraction"], read=lambda run: {"s0": 1.5}))
    with pytest.raises(AssertionError, match=r"dead_fraction = 1\.5"):
        check_measured(PLAIN, Ask(("dead_fraction",)))


def test_a_nan_without_a_cause_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    read = replace(MEASURES["dead_fraction"], read=lambda run: {"s0": float("nan")})
    monkeypatch.setitem(MEASURES, "dead_fraction", read)
    with pytest.raises(AssertionError, match="dead_fraction is NaN"):
        check_measured(PLAIN, Ask(("dead_fraction",)))


def test_a_foreign_exception_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search names the program, whatever was raised."""

    def divide(*arguments: Any) -> Any:
        return 1 / 0

    monkeypatch.setattr(qr_sweep, "is_round_off", divide)
    with pytest.raises(Failure, match=r"ZeroDivisionError: division by zero\n\ncheck_measured\(Program\("):
        search(CHECKS["measured"], EXAMPLES["measured"])


# The command -----------------------------------------------------------------------------------------------------
def test_the_command_prints_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert generated.main(["--examples", "3", "--only", "exact"]) == 0
    assert re.match(r"exact: 3 networks \(.+\), 0 searches failed, \d+ s", capsys.readouterr().out)


def test_the_command_prints_the_program_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    def never_sine(program: Program) -> str:
        assert not uses(program.net)["sin"], "a sine"
        return "compared"

    monkeypatch.setitem(CHECKS, "exact", (never_sine, (programs(),)))
    assert generated.main(["--examples", "200", "--only", "exact", "--as-found"]) == 1
    printed = capsys.readouterr().out
    assert "AssertionError: a sine" in printed and "\n\nnever_sine(Program(net=Block(" in printed


def test_the_same_seed_gives_the_same_programs() -> None:
    def drawn(seed: int) -> list[str]:
        found: list[str] = []

        def note(program: Program) -> str:
            found.append(repr(program))
            return ""

        search((note, (programs(),)), 5, seed=seed)
        return found

    one: Callable[[int], list[str]] = drawn
    assert one(0) == one(0) != one(1)
