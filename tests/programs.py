"""Networks as data: lists of operations on named variables, from which both a module and its exact Jacobians are made.

A program prints as Python that builds it again. ``build`` makes the module, ``oracle.py`` runs the same operations on explicit
states. Neither knows the other.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = [
    "IN_PLACE",
    "KINDS",
    "VIEWS",
    "Block",
    "Embedding",
    "Input",
    "Kind",
    "Linear",
    "Net",
    "Op",
    "Printed",
    "Program",
    "Step",
    "build",
    "draw_inputs",
    "energy",
    "out_of_place",
    "step_choice",
    "uses",
    "without_failing_in_place",
]

CHECKPOINTED = 1
"""The number of a call that runs under a checkpoint."""


# Programs --------------------------------------------------------------------------------------------------------
class Printed:
    """Prints as Python, without the fields that have their default."""

    def __repr__(self) -> str:
        shown = [f for f in fields(self) if f.default is MISSING or getattr(self, f.name) != f.default]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"


@dataclass(frozen=True, repr=False)
class Op(Printed):
    """One statement, ``outs = kind(*reads)``. An operation in place binds no name and changes what it reads first."""

    kind: str
    reads: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()
    number: float = 0
    """A constant of the operation: a factor, or the position of a slice."""
    module: str = ""
    """The submodule that a ``call`` calls."""


@dataclass(frozen=True, repr=False)
class Linear(Printed):
    """An affine map as a submodule."""

    entering: int
    leaving: int
    is_complex: bool = False
    bias: bool = True


@dataclass(frozen=True, repr=False)
class Embedding(Printed):
    """A table of rows as a submodule, for integer inputs."""

    rows: int
    width: int


@dataclass(frozen=True, repr=False)
class Block(Printed):
    """A module that runs statements."""

    takes: tuple[str, ...]
    body: tuple[Op, ...]
    returns: tuple[str, ...]
    parameters: tuple[tuple[str, tuple[int, ...], bool], ...] = ()
    """Name, shape, and whether it is complex."""
    children: tuple[tuple[str, Block | Linear | Embedding], ...] = ()
    backward_hook: str = ""
    """``"scale"`` or ``"watch"``: what a full backward hook does."""
    is_step: bool = True
    """Whether it is an instance of ``Step``, or of a class of its own kind."""


@dataclass(frozen=True, repr=False)
class Input(Printed):
    """One argument of the network."""

    name: str
    width: int
    kind: str = "real"
    """``"real"``, ``"complex"`` or ``"ids"``."""


@dataclass(frozen=True, repr=False)
class Program(Printed):
    """A network, its inputs, and what a user asks of it."""

    net: Block
    inputs: tuple[Input, ...]
    batch: int
    steps: str | tuple[str, ...] = "class"
    """As in ``measure``; ``"class"`` stands for the class ``Step``."""
    loss: bool = False
    seed: int = 0


# Operations ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Kind:
    """What an operation computes, as a function without side effects, and how autograd treats it."""

    run: Callable[..., Any]
    """A function of the operands and of the number."""
    differentiable: bool = True


class Cube(torch.autograd.Function):
    """A custom function that cannot be batched."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3 / 3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x**2).conj()


class StraightThrough(torch.autograd.Function):
    """A custom function whose derivative is declared: a sign that passes half of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sgn()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 2


class SumAndDifference(torch.autograd.Function):
    """A custom function with two operands and two results, one of which may get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + y, 2 * x - y

    @staticmethod
    def backward(ctx: Any, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
        return one + 2 * two, one - two


def _branch(x: Tensor, number: float) -> Tensor:
    """Take one of two paths, depending on the data."""
    return torch.tanh(x) if float(x.detach().real.sum()) > number else 2 * x


def _no_gradient(x: Tensor, number: float) -> Tensor:
    with torch.no_grad():
        return torch.tanh(x)


def _normalized(x: Tensor, number: float) -> Tensor:
    """Subtract the mean and divide by the standard deviation, with an epsilon that keeps the Jacobian well conditioned."""
    return F.layer_norm(x, x.shape[1:], eps=0.1)


VIEWS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "first": lambda x, n: x[:, : int(n)],
    "rest": lambda x, n: x[:, int(n) :],
    "reshaped": lambda x, n: x.view(x.shape),
    "transposed twice": lambda x, n: x.t().t(),
    "real": lambda x, n: x.real,
    "imag": lambda x, n: x.imag,
}
"""Operations that return a view of their operand."""

KINDS: dict[str, Kind] = {
    "tanh": Kind(lambda x, n: torch.tanh(x)),
    "sin": Kind(lambda x, n: torch.sin(x)),
    "relu": Kind(lambda x, n: torch.relu(x)),
    "scale": Kind(lambda x, n: n * x),
    "shift": Kind(lambda x, n: x + n),
    "clone": Kind(lambda x, n: x.clone()),
    "cumsum": Kind(lambda x, n: x.cumsum(1)),
    "flip": Kind(lambda x, n: x.flip(1)),
    "sort": Kind(lambda x, n: x.sort(1).values),
    "softmax": Kind(lambda x, n: x.softmax(1)),
    "norm": Kind(_normalized),
    "mix": Kind(lambda x, n: x + x.mean(0, keepdim=True) / 2),
    "dead": Kind(lambda x, n: torch.relu(-x.abs() - 1)),
    "branch": Kind(_branch),
    "cube": Kind(lambda x, n: Cube.apply(x)),
    "straight through": Kind(lambda x, n: StraightThrough.apply(x)),
    "detach": Kind(lambda x, n: x.detach().clone(), differentiable=False),
    "no grad": Kind(_no_gradient, differentiable=False),
    "sign": Kind(lambda x, n: (x > 0).to(x.dtype), differentiable=False),
    "add": Kind(lambda x, y, n: x + y),
    "sub": Kind(lambda x, y, n: x - y),
    "mul": Kind(lambda x, y, n: x * y),
    "gate": Kind(lambda x, y, n: x * torch.tanh(y)),
    "cat": Kind(lambda x, y, n: torch.cat([x, y], 1)),
    "weigh": Kind(lambda x, w, n: x @ w),
    "split": Kind(lambda x, n: x.split([int(n), x.shape[1] - int(n)], 1)),
    "sum and difference": Kind(lambda x, y, n: SumAndDifference.apply(x, y)),
    "complex": Kind(lambda x, y, n: torch.complex(x, y)),
    "turn": Kind(
        lambda x, n: x * torch.polar(torch.ones((), dtype=x.real.dtype), torch.as_tensor(n, dtype=x.real.dtype))
    ),
    "modulus": Kind(lambda x, n: (x.real.square() + x.imag.square() + 1).sqrt()),
    "conj": Kind(lambda x, n: x.conj().resolve_conj()),
    **{name: Kind(run) for name, run in VIEWS.items()},
}
"""Every operation that binds new names. ``n`` is the number of the statement."""

IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "tanh": lambda x, n: x.tanh_(),
    "scale": lambda x, n: x.mul_(n),
    "shift": lambda x, n: x.add_(n),
    "add": lambda x, y, n: x.add_(y),
}
"""Operations in place, as ``"tanh_"``, by the operation of the same result that binds a new name."""

# Besides these, there are: "alias" (another name), "call", "noise" (a random mask), "hook" (a gradient hook that multiplies by
# the number; 0 only looks), "buffer" (updates a buffer of the module).


# Modules ---------------------------------------------------------------------------------------------------------
class _Module(nn.Module):
    """Runs the statements of a block."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        self.block = block
        for name, shape, is_complex in block.parameters:
            kind = dtype.to_complex() if is_complex else dtype
            self.register_parameter(name, nn.Parameter(torch.randn(shape, dtype=kind) / shape[-1] ** 0.5))
        for name, child in block.children:
            self.add_module(name, _module_of(child, dtype))
        self.register_buffer("seen", torch.zeros((), dtype=dtype))
        if block.backward_hook:
            self.register_full_backward_hook(scale_gradients if block.backward_hook == "scale" else watch_gradients)

    def forward(self, *arguments: Tensor) -> Any:
        values: dict[str, Any] = {
            **dict(self.named_parameters(recurse=False)),
            **dict(zip(self.block.takes, arguments)),
        }
        for op in self.block.body:
            self._run(op, values)
        results = tuple(values[name] for name in self.block.returns)
        return results[0] if len(results) == 1 else results

    def _run(self, op: Op, values: dict[str, Any]) -> None:
        reads = [values[name] for name in op.reads]
        if op.kind.endswith("_"):
            IN_PLACE[op.kind[:-1]](*reads, op.number)
        elif op.kind == "hook":
            if reads[0].requires_grad:
                reads[0].register_hook(scaling(op.number) if op.number else look_at_gradient)
        elif op.kind == "buffer":
            self.seen.add_(reads[0].detach().abs().mean())
        else:
            found = self._result(op, reads)
            values.update(zip(op.outs, found if isinstance(found, tuple) else (found,)))

    def _result(self, op: Op, reads: list[Any]) -> Any:
        if op.kind == "alias":
            return reads[0]
        if op.kind == "noise":
            return reads[0] * torch.rand(reads[0].shape, dtype=reads[0].real.dtype)
        if op.kind == "call":
            module = self.get_submodule(op.module)
            if op.number == CHECKPOINTED:
                return checkpoint(module, *reads, use_reentrant=False)
            return module(*reads)
        found = KINDS[op.kind].run(*reads, op.number)
        return tuple(found) if isinstance(found, (tuple, list)) else found


class Step(_Module):
    """A block that is a step of the chain if a user asks for this class."""


class Other(_Module):
    """A block of another class."""


class Net(_Module):
    """The whole network."""

    def forward(self, *arguments: Tensor) -> Any:
        return super().forward(*arguments)


def scale_gradients(module: nn.Module, entering: tuple[Any, ...], leaving: tuple[Any, ...]) -> tuple[Any, ...]:
    """Multiply what a module hands back by -1/2, as a full backward hook."""
    return tuple(None if g is None else g * MODULE_SCALE for g in entering)


MODULE_SCALE = -0.5


def watch_gradients(module: nn.Module, entering: tuple[Any, ...], leaving: tuple[Any, ...]) -> None:
    """Look at the gradients that leave a module, as a full backward hook."""
    _ = [g.abs().sum() for g in leaving if g is not None]


def scaling(number: float) -> Callable[[Tensor], Tensor]:
    """Return a gradient hook that multiplies."""
    return lambda g: g * number


def look_at_gradient(gradient: Tensor) -> None:
    """Compute with a gradient, and leave it as it is."""
    gradient.abs().sum()


def _module_of(part: Block | Linear | Embedding, dtype: torch.dtype) -> nn.Module:
    if isinstance(part, Linear):
        kind = dtype.to_complex() if part.is_complex else dtype
        return nn.Linear(part.entering, part.leaving, bias=part.bias, dtype=kind)
    if isinstance(part, Embedding):
        return nn.Embedding(part.rows, part.width, dtype=dtype)
    return (Step if part.is_step else Other)(part, dtype)


def build(program: Program, dtype: torch.dtype = torch.float64) -> Net:
    """Build the network with weights from the global generator."""
    return Net(program.net, dtype)


IDS = 7
"""Number of integer ids."""


def draw_inputs(program: Program, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Draw the inputs from the program's seed."""
    generator = torch.Generator().manual_seed(program.seed + 1)

    def one(given: Input) -> Tensor:
        if given.kind == "ids":
            return torch.randint(IDS, (program.batch,), generator=generator)
        kind = dtype.to_complex() if given.kind == "complex" else dtype
        return torch.randn(program.batch, given.width, generator=generator, dtype=kind)

    return tuple(map(one, program.inputs))


def energy(output: Any) -> Tensor:
    """Return a loss of one or several outputs, with a gradient that is not zero where they are."""
    tensors = [output] if isinstance(output, Tensor) else list(output)
    floats = [t for t in tensors if t.is_floating_point() or t.is_complex()]
    return sum((t.abs().square().mean() + t.real.sum() / 3 for t in floats), start=torch.zeros(()))


def step_choice(program: Program) -> Any:
    """Return ``steps=`` as a user would write it."""
    if program.steps == "class":
        return Step
    return list(program.steps) if isinstance(program.steps, tuple) else program.steps


# Repair ----------------------------------------------------------------------------------------------------------
def out_of_place(op: Op) -> Op:
    """Return the statement that binds the name again instead of changing the tensor."""
    return replace(op, kind=op.kind[:-1], outs=op.reads[:1])


def _places(block: Block, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield where the operations in place are: the numbers of the children on the way, and of the statement."""
    yield from ((path, index) for index, op in enumerate(block.body) if op.kind.endswith("_"))
    for number, (_, child) in enumerate(block.children):
        if isinstance(child, Block):
            yield from _places(child, (*path, number))


def _repaired(block: Block, path: tuple[int, ...], index: int) -> Block:
    if not path:
        body = list(block.body)
        body[index] = out_of_place(body[index])
        return replace(block, body=tuple(body))
    children = list(block.children)
    name, child = children[path[0]]
    assert isinstance(child, Block)
    children[path[0]] = name, _repaired(child, path[1:], index)
    return replace(block, children=tuple(children))


def without_failing_in_place(program: Program) -> Program:
    """Replace operations in place, the last ones first, until autograd accepts the program.

    Autograd refuses to differentiate what has overwritten a tensor that it needs. A checkpoint recomputes from overwritten inputs
    without noticing, so that both do not come together.
    """
    places = list(_places(program.net))
    checkpointed = any(op.kind == "call" and op.number == CHECKPOINTED for op in program.net.body)
    while places and (checkpointed or not _trains(program)):
        program = replace(program, net=_repaired(program.net, *places.pop()))
    return program


def _trains(program: Program) -> bool:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(program.seed)
        net = build(program)
        # As the models are measured: their inputs are copies that carry a gradient.
        inputs = [
            x.requires_grad_().clone() if x.dtype.is_floating_point or x.is_complex() else x
            for x in draw_inputs(program)
        ]
        try:
            loss = energy(net(*inputs))
            if loss.requires_grad:
                loss.backward()
        except Exception:
            # What an operation in place has overwritten, or a hook that PyTorch calls without a gradient after one.
            return False
    return True


def uses(block: Block) -> Counter[str]:
    """Count the operations of a block and of all blocks inside."""
    found = Counter(op.kind for op in block.body)
    found.update([f"{block.backward_hook} hook of a module"] if block.backward_hook else [])
    for _, child in block.children:
        if isinstance(child, Block):
            found.update(uses(child))
    return found
