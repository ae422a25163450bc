"""Random networks, and what holds for each of them.

    python tests/generated.py --examples 20000            # prints the counts, and the first program that fails
    python tests/generated.py --examples 500 --only exact --seed 7

A failing program is printed as Python. ``tests/truth/test_generated_networks.py`` runs a few hundred of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from invariants import RANGES, Ask, check_exact, check_measured, check_spectrum
from programs import Block, Embedding, Input, Linear, Op, Program, uses, without_failing_in_place

__all__ = ["CHECKS", "Failure", "asks", "programs", "search"]

WIDEST = 8
"""Largest width of a tensor, to which concatenations lead."""

UNARY = (
    "tanh",
    "sin",
    "scale",
    "shift",
    "clone",
    "flip",
    "cumsum",
    "branch",
    "cube",
    "straight through",
    "alias",
    "mix",
    "noise",
)
REAL = ("relu", "sort", "softmax", "norm", "dead")
BINARY = ("add", "sub", "mul", "gate", "cat", "sum and difference")
STOPPING = ("detach", "no grad", "sign")
VIEWING = ("first", "rest", "reshaped", "transposed twice", "split")
COMPLEX = ("turn", "modulus", "conj", "real", "imag")
PLACED = ("tanh_", "scale_", "shift_", "add_")
NUMBERS = (0.5, -1.5, 2.0, 0.25)


class Scope:
    """The names that a statement can read, and the statements so far."""

    def __init__(self, draw: Any, *, buffers: bool) -> None:
        self.draw, self.buffers = draw, buffers
        self.kinds: dict[str, tuple[int, bool]] = {}
        """Width of each tensor, and whether it is complex."""
        self.body: list[Op] = []
        self.parameters: list[tuple[str, tuple[int, ...], bool]] = []
        self.children: list[tuple[str, Any]] = []

    def fresh(self) -> str:
        return f"t{len(self.body)}"

    def pick(self, width: int | None = None, is_complex: bool | None = None, *, prefer: str = "") -> str | None:
        """Choose a name, or return None if there is none of this kind."""
        names = [
            name
            for name, (w, c) in self.kinds.items()
            if (width is None or w == width) and (is_complex is None or c == is_complex)
        ]
        if not names:
            return None
        # The last names first: Hypothesis simplifies towards the first element.
        names.reverse()
        if prefer in names:
            names.insert(0, prefer)
        return self.draw(st.sampled_from(names))

    def add(
        self, kind: str, reads: Sequence[str], *kinds: tuple[int, bool], number: float = 0, module: str = ""
    ) -> str:
        """Append a statement, and return the name of its first result."""
        outs = tuple(self.fresh() + suffix for suffix in ("", "b")[: len(kinds)])
        self.body.append(Op(kind, tuple(reads), outs, number, module))
        self.kinds.update(zip(outs, kinds))
        return outs[0] if outs else reads[0]

    def parameter(self, shape: tuple[int, ...], is_complex: bool) -> str:
        name = f"w{len(self.parameters)}"
        self.parameters.append((name, shape, is_complex))
        return name

    def child(self, module: Any) -> str:
        name = f"{'lin' if isinstance(module, Linear) else 's'}{len(self.children)}"
        self.children.append((name, module))
        return name

    def linear(self, name: str, leaving: int) -> str:
        """Multiply by a weight: a submodule's, or one of this module."""
        width, is_complex = self.kinds[name]
        if self.draw(st.booleans()):
            module = self.child(Linear(width, leaving, is_complex, self.draw(st.booleans())))
            return self.add("call", [name], (leaving, is_complex), module=module)
        return self.add("weigh", [name, self.parameter((width, leaving), is_complex)], (leaving, is_complex))

    def fitted(self, name: str, width: int, is_complex: bool) -> str:
        """Turn a tensor into one of the given kind."""
        if self.kinds[name][1] and not is_complex:
            name = self.add("modulus", [name], (self.kinds[name][0], False))
        elif is_complex and not self.kinds[name][1]:
            name = self.add("complex", [name, name], (self.kinds[name][0], True))
        return name if self.kinds[name][0] == width else self.linear(name, width)

    def statement(self, last: str, rate: dict[str, int]) -> str:
        """Append a random statement, and return the name of what it made or changed."""
        groups = [group for group, weight in rate.items() for _ in range(weight)]
        group = self.draw(st.sampled_from(groups))
        x = self.pick(prefer=last)
        assert x is not None
        width, is_complex = self.kinds[x]
        return getattr(self, f"_{group}")(x, width, is_complex)

    def _unary(self, x: str, width: int, is_complex: bool) -> str:
        kind = self.draw(st.sampled_from(UNARY if is_complex else UNARY + REAL))
        return self.add(kind, [x], (width, is_complex), number=self.draw(st.sampled_from(NUMBERS)))

    def _linear(self, x: str, width: int, is_complex: bool) -> str:
        return self.linear(x, self.draw(st.integers(2, 5)))

    def _binary(self, x: str, width: int, is_complex: bool) -> str:
        kind = self.draw(st.sampled_from(BINARY))
        y = self.pick(None if kind == "cat" else width, is_complex)
        assert y is not None
        if kind == "cat":
            total = width + self.kinds[y][0]
            return self.add(kind, [x, y], (total, is_complex)) if total <= WIDEST else x
        kinds = [(width, is_complex)] * (2 if kind == "sum and difference" else 1)
        return self.add(kind, [x, y], *kinds)

    def _stopping(self, x: str, width: int, is_complex: bool) -> str:
        kinds = STOPPING[:2] if is_complex else STOPPING
        made = self.add(self.draw(st.sampled_from(kinds)), [x], (width, is_complex))
        # Rarely, all that follows continues without the gradient.
        return made if self.draw(st.integers(0, 4)) == 4 else x

    def _view(self, x: str, width: int, is_complex: bool) -> str:
        kind = self.draw(st.sampled_from(VIEWING))
        if kind in {"reshaped", "transposed twice"}:
            return self.add(kind, [x], (width, is_complex))
        if width < 2:
            return x
        at = self.draw(st.integers(1, width - 1))
        sizes = {"first": [at], "rest": [width - at], "split": [at, width - at]}[kind]
        return self.add(kind, [x], *((size, is_complex) for size in sizes), number=at)

    def _complex(self, x: str, width: int, is_complex: bool) -> str:
        if not is_complex:
            y = self.pick(width, False)
            assert y is not None
            made = self.add("complex", [x, y], (width, True))
            return self._complex(made, width, True) if self.draw(st.booleans()) else made
        kind = self.draw(st.sampled_from(COMPLEX))
        return self.add(kind, [x], (width, kind in {"turn", "conj"}), number=self.draw(st.sampled_from(NUMBERS)))

    def _place(self, x: str, width: int, is_complex: bool) -> str:
        kind = self.draw(st.sampled_from(PLACED))
        y = self.pick(width, is_complex)
        assert y is not None
        return self.add(kind, [x, y] if kind == "add_" else [x], number=self.draw(st.sampled_from(NUMBERS)))

    def _hook(self, x: str, width: int, is_complex: bool) -> str:
        return self.add("hook", [x], number=self.draw(st.sampled_from((0.0, *NUMBERS))))

    def _buffer(self, x: str, width: int, is_complex: bool) -> str:
        return self.add("buffer", [x]) if self.buffers else x


INSIDE = {
    "linear": 3,
    "unary": 5,
    "binary": 3,
    "view": 2,
    "place": 2,
    "stopping": 1,
    "hook": 1,
    "complex": 2,
    "buffer": 1,
}
"""How often a step runs operations of each group."""
BETWEEN = {"unary": 4, "binary": 3, "view": 2, "place": 2, "stopping": 1, "hook": 1, "complex": 1}
"""How often operations of each group come between steps."""

FAMILIES = ("plain", "residual", "dense", "u-shaped", "shared", "recurrent", "towers", "any")


@st.composite
def blocks(
    draw: Any, takes: tuple[tuple[int, bool], ...], gives: tuple[tuple[int, bool], ...], *, deep: bool = True
) -> Block:
    """Draw a module that reads and returns tensors of the given kinds."""
    scope = Scope(draw, buffers=True)
    names = tuple(f"a{number}" for number in range(len(takes)))
    scope.kinds.update(zip(names, takes))
    last = names[0]
    for name in names[1:]:
        # Every argument has a chance to matter.
        if scope.kinds[name][1] == scope.kinds[last][1] and draw(st.integers(0, 3)):
            fit = scope.fitted(name, *scope.kinds[last])
            last = scope.add(draw(st.sampled_from(("add", "gate"))), [last, fit], scope.kinds[last])
    for _ in range(draw(st.sampled_from((1, 2, 3, 0)))):
        last = scope.statement(last, INSIDE)
    if deep and draw(st.integers(0, 5)) == 5:
        inner = draw(blocks((scope.kinds[last],), (scope.kinds[last],), deep=False))
        last = scope.add("call", [last], scope.kinds[last], module=scope.child(inner))
    if draw(st.integers(0, 3)) < 3:
        last = scope.linear(last, gives[0][0])
    returns = [scope.fitted(last, *gives[0])]
    if draw(st.integers(0, 3)) == 3 and takes[0] == gives[0]:
        returns[0] = scope.add("add", [returns[0], names[0]], gives[0])
    for kind in gives[1:]:
        other = scope.pick()
        assert other is not None
        returns.append(scope.fitted(other, *kind))
    hook = draw(st.sampled_from(("",) * 12 + ("watch", "scale")))
    is_step = draw(st.integers(0, 9)) < 9
    return Block(
        names, tuple(scope.body), tuple(returns), tuple(scope.parameters), tuple(scope.children), hook, is_step
    )


class Network:
    """A network under construction: the steps, and what comes before, between and after them."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.scope = Scope(draw, buffers=False)
        self.kind = draw(st.integers(2, 5)), draw(st.integers(0, 7)) == 7
        """Width of the stream, and whether it is complex."""
        self.batch = draw(st.integers(1, 3))
        self.inputs: list[Input] = []
        self.calls: list[tuple[str, ...]] = []

    def add_input(self) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(Input(name, self.kind[0], "complex" if self.kind[1] else "real"))
        self.scope.kinds[name] = self.kind
        return name

    def embedded(self) -> str:
        """Add an input of integer ids, and look them up."""
        self.inputs.append(Input("ids", 0, "ids"))
        scope = self.scope
        scope.children.append(("emb", Embedding(7, self.kind[0])))
        name = scope.add("call", ["ids"], (self.kind[0], False), module="emb")
        return scope.fitted(name, *self.kind)

    def glue(self, last: str, most: int) -> str:
        """Append some statements outside of the steps. The stream continues from one of them, or from where it was."""
        for _ in range(self.draw(st.integers(0, most))):
            made = self.scope.statement(last, BETWEEN)
            if self.draw(st.booleans()):
                last = made
        return last

    def fit(self, name: str) -> str:
        return self.scope.fitted(name, *self.kind)

    def module(self, arguments: Sequence[str], results: int = 1) -> str:
        """Draw a new step for these arguments."""
        takes = tuple(self.scope.kinds[name] for name in arguments)
        return self.scope.child(self.draw(blocks(takes, (self.kind,) * results)))

    def call(self, module: str, arguments: Sequence[str], results: int = 1) -> str:
        # A hook inside a checkpoint is registered again by the recomputation, on what enters the checkpoint.
        hooked = uses(dict(self.scope.children)[module])["hook"] > 0
        checkpointed = int(not hooked and self.draw(st.integers(0, 11)) == 11)
        kinds = (self.kind,) * results
        return self.scope.add("call", arguments, *kinds, number=checkpointed, module=module)

    def step(self, arguments: Sequence[str], module: str = "") -> str:
        """Append a call of a new step, or of one that there is already."""
        arguments = list(arguments)
        if not module and self.draw(st.integers(0, 7)) == 7:
            # A parameter of the network as an argument.
            name = self.scope.parameter((self.batch, self.kind[0]), self.kind[1])
            self.scope.kinds[name] = self.kind
            arguments.append(name)
            module = self.module(arguments)
            del self.scope.kinds[name]
        if not module and self.draw(st.integers(0, 4)) == 4:
            other = self.scope.pick()
            assert other is not None
            arguments.append(other)
        results = 2 if not module and self.draw(st.integers(0, 5)) == 5 else 1
        return self.call(module or self.module(arguments, results), arguments, results)

    # Families
    def plain(self, last: str, depth: int) -> str:
        for _ in range(depth):
            last = self.step([self.fit(self.glue(last, 1))])
        return last

    def residual(self, last: str, depth: int) -> str:
        for _ in range(depth):
            made = self.step([last])
            last = self.fit(self.glue(self.scope.add("add", [last, made], self.kind), 1))
        return last

    def dense(self, last: str, depth: int) -> str:
        features = [last]
        for _ in range(depth):
            features.append(self.step(features[-3:]))
        return (
            self.scope.add("sub", [features[-1], features[0]], self.kind) if self.draw(st.booleans()) else features[-1]
        )

    def u_shaped(self, last: str, depth: int) -> str:
        skips = []
        for _ in range(depth // 2):
            last = self.step([last])
            skips.append(last)
            last = self.fit(self.glue(last, 1))
        last = self.step([last])
        for skip in reversed(skips):
            last = self.step([last, skip])
        return last

    def shared(self, last: str, depth: int) -> str:
        module = self.module([last])
        for _ in range(depth):
            last = self.call(module, [self.fit(self.glue(last, 1))])
        return last

    def recurrent(self, last: str, depth: int) -> str:
        """Call a cell with an input and two states, as an LSTM does."""
        h, c, x = last, self.scope.add("scale", [last], self.kind, number=0.5), last
        cell = self.module([x, h, c], 2)
        for _ in range(depth):
            x = self.scope.add("flip", [x], self.kind) if self.draw(st.booleans()) else x
            h = self.call(cell, [x, h, c], 2)
            c = h + "b"
        return self.scope.add("add", [h, c], self.kind) if self.draw(st.booleans()) else h

    def towers(self, last: str, depth: int) -> str:
        other = self.add_input()
        one = last
        for number in range(depth):
            if number % 2:
                other = self.step([other])
            else:
                one = self.step([one])
        return self.scope.add(self.draw(st.sampled_from(("add", "gate"))), [one, other], self.kind)

    def any(self, last: str, depth: int) -> str:
        for _ in range(depth):
            names = [self.scope.pick() for _ in range(self.draw(st.integers(1, 2)))]
            last = self.step([name for name in names if name is not None])
            self.glue(last, 2)
        return last


@st.composite
def programs(draw: Any, families: Sequence[str] = FAMILIES) -> Program:
    """Draw a network, its inputs, and what a user asks of it."""
    network = Network(draw)
    scope = network.scope
    last = network.embedded() if draw(st.integers(0, 9)) == 9 else network.add_input()
    if draw(st.integers(0, 3)) == 3:
        network.add_input()
    if draw(st.booleans()):
        last = network.fit(network.glue(last, 2))
    family = draw(st.sampled_from(families))
    last = getattr(network, family.replace("-", "_"))(last, draw(st.integers(2, 5)))
    if draw(st.booleans()):
        last = network.glue(last, 3)
    outputs = [last]
    while draw(st.integers(0, 4)) == 4:
        other = scope.pick()
        assert other is not None
        outputs.append(other)
    net = Block(
        tuple(given.name for given in network.inputs),
        tuple(scope.body),
        tuple(outputs),
        tuple(scope.parameters),
        tuple(scope.children),
    )
    names = [name for name, module in scope.children if isinstance(module, Block)]
    asked: Any = st.sampled_from(("class", "class", "auto", "layers", "s*", "**"))
    if names:
        asked = st.one_of(asked, st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple))
    steps = draw(asked)
    # The engine refuses both on one tensor.
    net = with_hooks_of_tensors(net) if draw(st.booleans()) else with_hooks_of_modules(net)
    if steps in {"auto", "layers", "**"}:
        net = without_hooks_around_steps(net)
    return without_failing_in_place(
        Program(net, tuple(network.inputs), network.batch, steps, draw(st.booleans()), draw(st.integers(0, 9)))
    )


def changed(block: Block, change: Callable[[Block], Block]) -> Block:
    """Change a block and all blocks inside."""
    children = tuple((name, changed(c, change) if isinstance(c, Block) else c) for name, c in block.children)
    return change(replace(block, children=children))


def with_hooks_of_tensors(block: Block) -> Block:
    """Remove the backward hooks of modules."""
    return changed(block, lambda b: replace(b, backward_hook=""))


def with_hooks_of_modules(block: Block) -> Block:
    """Let the gradient hooks of tensors only look, and give no backward hook to a module that returns one tensor twice."""

    def only_look(op: Op) -> Op:
        return replace(op, number=0.0) if op.kind == "hook" else op

    def reduced(b: Block) -> Block:
        # PyTorch makes two tensors of one that a module with a backward hook returns twice, and the engine sees one.
        hook = b.backward_hook if len({*b.returns}) == len(b.returns) else ""
        return replace(b, body=tuple(map(only_look, b.body)), backward_hook=hook)

    return changed(block, reduced)


def without_hooks_around_steps(block: Block) -> Block:
    """Remove the backward hooks of modules with submodules.

    If a step lies inside such a module, a cotangent may start behind its results, and PyTorch does not run the hook then. The
    node that PyTorch adds to the results of the module counts as part of a step that ends right before.
    """
    return changed(block, lambda b: replace(b, backward_hook="") if b.children else b)


@st.composite
def asks(draw: Any) -> Ask:
    """Draw what a user asks for: a few measures, and options."""
    return Ask(
        measures=tuple(draw(st.lists(st.sampled_from(sorted(RANGES)), min_size=1, max_size=6, unique=True))),
        exponents=draw(st.sampled_from((1, 1, 1, 2, 2, 40))),
        seeds=draw(st.sampled_from((1, 2, (7,), (5, 3)))),
        dtype=draw(st.sampled_from((None, None, None, "float64", "float64", "bfloat16", "float16"))),
        train=draw(st.booleans()),
        device=draw(st.sampled_from((None, "cpu", "auto"))),
        factory=draw(st.booleans()),
        warmup=draw(st.sampled_from((0, 0, 0, 1))),
        alignment=draw(st.sampled_from((0, 0, 0, 1))),
    )


# Searching -------------------------------------------------------------------------------------------------------
CHECKS: dict[str, tuple[Callable[..., str], tuple[Any, ...]]] = {
    "exact": (check_exact, (programs(),)),
    "spectrum": (check_spectrum, (programs(),)),
    "measured": (check_measured, (programs(), asks())),
}
"""Each invariant, and what it is checked for."""


def search(
    check: tuple[Callable[..., str], tuple[Any, ...]],
    examples: int,
    *,
    seed: int = 0,
    shrink: bool = False,
    found: Counter[str] | None = None,
) -> Counter[str]:
    """Check random examples, and count the outcomes.

    Args:
        check: An invariant, and the strategies of its arguments.
        examples: Number of examples.
        seed: What the examples depend on, besides the version of Hypothesis.
        shrink: Whether to look for the simplest program that fails.
        found: Where to count; a new counter by default.

    Returns:
        How often each word was returned.

    Raises:
        Failure: An example failed. The error has the arguments, and its text shows them as Python.
    """
    found = Counter() if found is None else found
    invariant, strategies = check
    failed: list[tuple[tuple[Any, ...], BaseException]] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )
    @given(st.tuples(*strategies))
    def one(arguments: tuple[Any, ...]) -> None:
        try:
            word = invariant(*arguments)
        except Exception as error:
            failed.append((arguments, error))
            raise
        found[word] += 1

    try:
        one()
    except Exception as error:
        if not failed:
            raise
        arguments, cause = failed[-1]
        msg = f"{type(cause).__name__}: {cause}\n\n{invariant.__name__}({', '.join(map(repr, arguments))})"
        raise Failure(msg) from error
    return found


class Failure(AssertionError):
    """An example for which an invariant does not hold."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line at the top of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--examples", type=int, default=1000, help="number of networks per invariant")
    parser.add_argument("--only", choices=sorted(CHECKS), action="append", help="an invariant; all by default")
    parser.add_argument("--seed", type=int, default=0, help="what the networks depend on")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--as-found", action="store_true", help="do not simplify a network that fails")
    given = parser.parse_args(arguments)
    results = [report(name, given) for name in given.only or sorted(CHECKS)]
    return 0 if all(results) else 1


def report(name: str, given: argparse.Namespace) -> bool:
    """Search for networks that fail, print them and the counts, and return whether there is none."""
    found: Counter[str] = Counter()
    failures: list[str] = []
    began = time.perf_counter()
    tasks = [
        (name, min(PORTION, given.examples - start), given.seed + start, not given.as_found)
        for start in range(0, given.examples, PORTION)
    ]
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for counts, failure in (pool.map if given.jobs > 1 else map)(search_portion, *zip(*tasks)):
            found += counts
            if failure:
                failures.append(failure)
                print(f"{name}: {failure}\n", flush=True)
    counted = ", ".join(f"{count} {word}" for word, count in found.most_common())
    seconds = time.perf_counter() - began
    print(f"{name}: {found.total()} networks ({counted}), {len(failures)} searches failed, {seconds:.0f} s", flush=True)
    return not failures


def search_portion(name: str, examples: int, seed: int, shrink: bool) -> tuple[Counter[str], str]:
    """Search some networks, and return the counts and the text of a failure, which ends the search."""
    found: Counter[str] = Counter()
    try:
        search(CHECKS[name], examples, seed=seed, shrink=shrink, found=found)
    except Failure as failure:
        return found, str(failure)
    return found, ""


PORTION = 500
"""Number of networks per search. Hypothesis remembers all networks of a search, and becomes slow after some thousands."""

if __name__ == "__main__":
    sys.exit(main())
