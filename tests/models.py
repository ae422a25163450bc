"""Small hand-written architectures, each with one property that makes a model hard to divide into steps.

Models and inputs of every case depend on a seed alone, so that its id reproduces a failure. All models are a few units wide,
because tests concern the shape of the autograd graph and not the numbers in it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_trainability.engine.capture.chain import Chain, chain_of, graph_of
from pytest_trainability.engine.capture.graph import Graph
from pytest_trainability.engine.capture.recorder import Capture, Loss, capture
from pytest_trainability.engine.capture.recurrence import chain_along, choose_recurrence, find_recurrences
from pytest_trainability.engine.capture.steps import StepChoice, choose_steps
from pytest_trainability.engine.runs.ensemble import ALONG_TIME
from pytest_trainability.engine.runs.recipe import Recipe
from pytest_trainability.engine.trees import tensors_in

Build = Callable[[], nn.Module]
Inputs = Callable[[torch.Generator], Any]

BATCH = 3
WIDTH = 6
LENGTH = 4
VOCAB = 11
FLOATS = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)
IDS = torch.arange(6).reshape(2, 3)


@dataclass(frozen=True)
class Architecture:
    """A model, its inputs, and what is known about its steps."""

    id: str
    build: Build
    inputs: Inputs
    auto: str
    """The steps with ``steps="auto"``, as the maintainer of the model would describe them."""
    layers: str = ""
    """The steps with ``steps="layers"``; empty if they are not tested."""
    dense: bool = False
    """Whether the first state is the input of the model and the last state is the result of the last step."""
    joint: bool = False
    """Whether samples interact."""
    train: bool = True
    steps: StepChoice = "auto"
    """The steps to choose if ``auto`` does not find them."""
    note: str = ""


@dataclass(frozen=True, eq=False)
class Cutting:
    """A model, one recorded run of it, and its chain."""

    model: nn.Module
    inputs: Any
    capture: Capture
    graph: Graph
    chain: Chain


def build(case: Architecture, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """Return the model and the inputs of one seed, in train or eval mode as the case requires."""
    torch.manual_seed(seed)
    model = case.build().to(dtype).train(case.train)
    inputs = case.inputs(torch.Generator().manual_seed(seed + 1))
    return model, cast(inputs, dtype)


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """Cast the float tensors in a tuple or a mapping."""
    if isinstance(tree, Tensor):
        return tree.to(dtype) if tree.is_floating_point() else tree
    if isinstance(tree, Mapping):
        return {key: cast(value, dtype) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(cast(value, dtype) for value in tree)
    return tree


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn inputs into positional and keyword arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def cut(
    model: nn.Module, inputs: Any, steps: StepChoice = "auto", *, loss: Loss | None = None, seed: int = 7
) -> Cutting:
    """Run the model once and return its chain."""
    args, kwargs = arguments(inputs)
    torch.manual_seed(seed)
    instruments = ALONG_TIME if steps == "time" else ()
    captured = capture(model, args, kwargs, loss=loss, restart=lambda: torch.manual_seed(seed), instruments=instruments)
    graph = graph_of(captured)
    if steps == "time":
        chain = chain_along(choose_recurrence(captured, find_recurrences(captured, graph), ""))
    else:
        chain = chain_of(captured, graph, choose_steps(captured, graph, steps))
    return Cutting(model, inputs, captured, graph, chain)


def cut_case(
    case: Architecture, steps: StepChoice | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Cutting:
    """Build, run and cut one case."""
    model, inputs = build(case, seed=seed, dtype=dtype)
    return cut(model, inputs, case.steps if steps is None else steps)


# Inputs ----------------------------------------------------------------------------------------------------------


def recipe(model: Any, inputs: Any, **changes: Any) -> Recipe:
    """Return the settings of a measurement without a loss, with some of them changed."""
    given: dict[str, Any] = {
        "target": None,
        "loss": None,
        "steps": "auto",
        "exponents": 1,
        "device": None,
        "dtype": None,
        "train": True,
    }
    return Recipe(model=model, inputs=inputs, **{**given, **changes})


def vectors(*shape: int) -> Inputs:
    """Draw one float tensor."""
    return lambda generator: torch.randn(*(shape or (BATCH, WIDTH)), generator=generator)


def tokens(generator: torch.Generator) -> Tensor:
    """Draw integer ids."""
    return torch.randint(0, VOCAB, (BATCH, LENGTH), generator=generator)


def sequence(generator: torch.Generator) -> Tensor:
    """Draw a batch of short sequences."""
    return torch.randn(BATCH, LENGTH, WIDTH, generator=generator)


def images(generator: torch.Generator) -> Tensor:
    """Draw a batch of small images."""
    return torch.randn(BATCH, 2, 8, 8, generator=generator)


# Plain towers ----------------------------------------------------------------------------------------------------


def mlp(depth: int = 4, width: int = WIDTH, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """Build linear layers with an activation after each."""
    return nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())])


def mean_square(output: Any) -> Tensor:
    """Return a mean over samples, for outputs of any structure."""
    return sum((t.abs() ** 2).flatten(1).sum(dim=1).mean() for t in tensors_in(output))


def mean_error(output: Tensor, target: Tensor) -> Tensor:
    return (output.flatten(1).sum(dim=1) - target).square().mean()


class Lightning(nn.Module):
    """Computes its own loss, as a Lightning module does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(3)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        return mean_error(self.layers(x), y)


class Tail(nn.Module):
    """A tower with something after it."""

    def __init__(self, function: Callable[[Tensor], Any], depth: int = 3) -> None:
        super().__init__()
        self.layers = mlp(depth)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layers(x))


class Lambda(nn.Module):
    """A function between layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Mixer(nn.Module):
    """A residual layer that mixes one dimension, all of it or only backwards in time."""

    def __init__(self, dim: int, *, causal: bool = False) -> None:
        super().__init__()
        self.layer, self.dim, self.causal = nn.Linear(WIDTH, WIDTH), dim, causal

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.layer(x))
        mixed = y.cumsum(self.dim) if self.causal else y.mean(self.dim, keepdim=True)
        return x + mixed


def tower(make: Callable[[], nn.Module], depth: int = 3) -> nn.Sequential:
    return nn.Sequential(*[make() for _ in range(depth)])


def moved(inner: nn.Module) -> nn.Sequential:
    """Move the batch to dimension 1, as fairseq and torch.nn's transformers do internally."""
    swap = lambda: Lambda(lambda x: x.transpose(0, 1).contiguous())  # noqa: E731
    return nn.Sequential(swap(), *inner, swap())


def conv_tower() -> nn.Module:
    """Build convolutions that halve the image, and a head."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


class Branch(nn.Module):
    """Two layers without a skip."""

    def __init__(self, width: int = WIDTH, hidden: int = 2 * WIDTH) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


class Block(Branch):
    """A residual block."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Tower(nn.Module):
    """A stem, blocks of one kind and a head."""

    def __init__(self, block: Build, depth: int = 4, *, shared: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([block()] if shared else [block() for _ in range(depth)])
        self.depth = depth
        self.head = nn.Linear(WIDTH, 5)

    def body(self, x: Tensor) -> Tensor:
        for index in range(self.depth):
            x = self.blocks[index % len(self.blocks)](x)
        return x

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(self.stem(x)))


class AddOutside(Tower):
    """The skip connection is outside of the block, so that two tensors cross each boundary."""

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


# Long skips ------------------------------------------------------------------------------------------------------


class DenseLayer(nn.Module):
    """A layer that reads the features of all layers before it."""

    def __init__(self, entering: int, growth: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(entering, WIDTH), nn.Linear(WIDTH, growth)

    def forward(self, features: list[Tensor]) -> Tensor:
        return torch.tanh(self.outer(torch.relu(self.inner(torch.cat(features, 1)))))


class DenseNet(nn.Module):
    """Each state consists of all earlier features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(WIDTH + 3 * i, 3) for i in range(4))
        self.head = nn.Linear(WIDTH + 12, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return self.head(torch.cat(features, 1))


class ConvBlock(nn.Module):
    """Two convolutions."""

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(entering, leaving, 3, padding=1), nn.Conv2d(leaving, leaving, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.b(torch.relu(self.a(x))))


class UNet(nn.Module):
    """Skip connections from the encoder to the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([ConvBlock(2, 3), ConvBlock(3, 4)])
        self.middle = ConvBlock(4, 4)
        self.up = nn.ModuleList([ConvBlock(8, 3), ConvBlock(6, 3)])
        self.head = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.middle(x)
        for block in self.up:
            x = F.interpolate(x, scale_factor=2.0)
            x = block(torch.cat([x, skips.pop()], 1))
        return self.head(x)


# Attention -------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """One head of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor | float = 0.0, *, causal: bool = False) -> Tensor:
        scores = self.q(x) @ self.k(memory).transpose(-2, -1) / math.sqrt(WIDTH) + bias
        if causal:
            scores = scores + torch.full_like(scores, -torch.inf).triu(1)
        return scores.softmax(-1) @ self.v(memory)


class EncoderLayer(nn.Module):
    """Self attention and a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.branch, self.norm = Attention(), Branch(), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        x = x + self.attention(x, x, bias)
        return x + self.branch(self.norm(x))


class CausalLayer(EncoderLayer):
    """Attends to earlier positions only."""

    def forward(self, x: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, causal=True)
        return x + self.branch(self.norm(x))


class DecoderLayer(EncoderLayer):
    """Reads the output of the encoder as well."""

    def __init__(self) -> None:
        super().__init__()
        self.cross = Attention()

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + self.cross(x, memory))


class Translator(nn.Module):
    """An encoder-decoder. The output of the encoder is part of every state in the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.encoder = nn.ModuleList(EncoderLayer() for _ in range(3))
        self.decoder = nn.ModuleList(DecoderLayer() for _ in range(3))
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, x = self.embedding(source), self.embedding(target)
        for layer in self.encoder:
            memory = layer(memory)
        for layer in self.decoder:
            x = layer(x, memory)
        return self.head(x)


class RelativeBias(nn.Module):
    """A bias that depends on parameters alone, is computed once and is read by every layer, as in T5."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2 * LENGTH, 1)
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])
        bias = self.table(place[:, None] - place + LENGTH).squeeze(-1)
        for layer in self.layers:
            x = layer(x, bias)
        return x


class PositionNetwork(nn.Module):
    """A network computes the bias from positions before the input is read, as in Swin v2."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(3))
        place = torch.arange(LENGTH).float()
        self.register_buffer("offsets", (place[:, None] - place)[..., None])

    def forward(self, x: Tensor) -> Tensor:
        bias = self.network(self.offsets).squeeze(-1)
        for layer in self.layers:
            x = layer(x, bias)
        return x


class LanguageModel(nn.Module):
    """A model with integer inputs, so that no gradient enters the embedding."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(CausalLayer() for _ in range(depth))
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor, offset: Tensor | None = None) -> Tensor:
        x = self.embedding(ids)
        if offset is not None:
            x = x + offset
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


# Time ------------------------------------------------------------------------------------------------------------


class LstmLoop(nn.Module):
    """The state consists of a hidden and a cell state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(WIDTH, WIDTH)
        self.head = nn.Linear(2 * WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), WIDTH)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(torch.cat([h, c], 1))


class GruLoop(nn.Module):
    """The state is one hidden state. All outputs are returned."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = x.new_zeros(len(x), WIDTH)
        kept = []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            kept.append(h)
        return h, torch.stack(kept, 1)


class TiedRnn(nn.Module):
    """Input and recurrence share one weight, which is the only parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = x[:, 0]
        for t in range(x.shape[1]):
            h = torch.tanh(self.mix(h) + F.linear(x[:, t], self.mix.weight))
        return h


# In place --------------------------------------------------------------------------------------------------------


class InplaceStream(nn.Module):
    """Writes into the residual stream in place. Only operators that do not save their input may read it before."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x += self.b(self.a(torch.tanh(x)).relu_())
        return x


class ViewBlock(nn.Module):
    """Splits the stream, writes into a slice and joins the parts, with nodes of several outputs at the boundary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH // 2, WIDTH // 2), nn.Linear(WIDTH // 2, WIDTH // 2)

    def forward(self, halves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first, second = halves
        joined = torch.cat([first + self.a(second), second], 1)
        joined[:, : WIDTH // 2].mul_(torch.sigmoid(self.b(second)))
        joined[:, 1:3] += 0.25
        return joined.chunk(2, dim=1)


class Views(nn.Module):
    """The two tensors that cross a boundary are outputs of one node."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ViewBlock() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        halves = x.split(WIDTH // 2, dim=1)
        for block in self.blocks:
            halves = block(halves)
        return torch.stack(torch.cat(halves, 1).unbind(1)[::-1], 1)


class StaleBlock(nn.Module):
    """Reads a view after its base was changed in place: the node of the view is renewed after the node that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        base = self.a(torch.tanh(x))
        view = base[:, 2:]
        base.mul_(1.5)
        doubled = view * view
        return self.b(F.pad(doubled, (0, 2)) + base)


class StaleAcross(nn.Module):
    """A view is created in one block and read in the next one. Its base is changed in place in between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        view = x[:, :2]
        for layer in self.layers:
            base = layer(torch.tanh(x))
            base[:, :2] *= view
            view = base[:, 1:3]
            base.add_(x)
            x = base
        return x


# Wrapped weights and hidden graphs -------------------------------------------------------------------------------


class Checkpointed(Tower):
    """Checkpointed blocks, with dropout."""

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = F.dropout(checkpoint(block, x, use_reentrant=False), 0.1)
        return x


class Reentrant(Tower):
    """Re-entrant checkpointing hides the blocks from the graph."""

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=True)
        return x


def wrapped(wrap: Callable[[nn.Module], nn.Module]) -> Build:
    """Return a factory of a tower whose layers are wrapped."""

    def make() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the old functions are deprecated, and in use
            layers = [layer for _ in range(4) for layer in (wrap(nn.Linear(WIDTH, WIDTH)), nn.Tanh())]
        return nn.Sequential(*layers)

    return make


class NumpyTanh(torch.autograd.Function):
    """Its backward pass uses numpy, so that cotangents cannot be batched."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.from_numpy(np.tanh(x.detach().numpy()))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        return torch.from_numpy(grad.detach().numpy() * (1 - y.numpy() ** 2))


class NumpyBlock(nn.Module):
    """A residual block with a custom function."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(NumpyTanh.apply(self.inner(x)))


class Strict(torch.autograd.Function):
    """Does not accept undefined gradients, which an ordinary backward pass does not produce for a single output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.mul(2)


class StrictSkips(nn.Module):
    """A state that contains a tensor and a strict function of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = torch.tanh(layer(x))
            x = Strict.apply(y) * torch.sigmoid(y) + x
        return x


class ScaledGradient(Tower):
    """A hook scales the gradient of the stream, as at every unrolled step of MuZero."""

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            x.register_hook(lambda gradient: gradient * 0.5)
        return x


class ScaledSkips(AddOutside):
    """The same with a skip connection: the tensor with the hook is upstream of another tensor of its state."""

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            y = block(x)
            y.register_hook(lambda gradient: gradient * 0.5)
            x = x + y
            x.register_hook(lambda gradient: gradient * 0.75)
        return x


class Retaining(Tower):
    """Retains the gradients of activations, as for a plot."""

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            x.retain_grad()
        return x


# Outputs and inputs of other shapes ------------------------------------------------------------------------------


@dataclass
class Answer:
    """A dataclass as output."""

    scores: Tensor
    features: list[Tensor]
    label: str = "answer"


class ManyOutputs(Tower):
    """Returns its output and its features in a given container."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__(Block)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        x = self.body(self.stem(x))
        return self.pack(self.head(x), x)


class KeywordTower(Tower):
    """The model and its blocks are called with keyword arguments."""

    def forward(self, *, features: Tensor, scale: float = 1.0) -> Tensor:  # type: ignore[override]
        x = self.stem(input=features) * scale
        for block in self.blocks:
            x = block(x=x)
        return self.head(x)


class Conditioned(nn.Module):
    """A float input, and an integer class that conditions every block."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        condition = self.classes(label)
        for block in self.blocks:
            x = block(x * (1 + condition))
        return x


class Batchnormed(nn.Module):
    """A block whose samples interact."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.norm(self.layer(x)))


class Dropped(Branch):
    """A block with dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(super().forward(x), 0.3, self.training)


class Spectral(nn.Module):
    """Mixes in frequency space and returns its spectrum, so that the state is complex."""

    def __init__(self, *, first: bool, last: bool) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.weight = nn.Parameter(torch.randn(2, WIDTH // 2 + 1, WIDTH // 2 + 1) / 3)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x) if self.first else x
        spectrum = spectrum @ torch.complex(self.weight[0], self.weight[1])
        return torch.tanh(torch.fft.irfft(spectrum, n=WIDTH)) if self.last else spectrum


class Fourier(nn.Module):
    """A real input and output, with complex states in between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Spectral(first=i == 0, last=i == 3) for i in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class MixedFourier(Fourier):
    """A real skip connection from the first layer to the last one is part of the complex states."""

    def forward(self, x: Tensor) -> Tensor:
        first, *others, last = self.layers
        x = first(x)
        skip = torch.tanh(x.real)
        for layer in others:
            x = layer(x)
        return last(x * skip)


class FixedMix(nn.Module):
    """A fixed random projection without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.randn(WIDTH, WIDTH) / math.sqrt(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.matrix)


def frozen_backbone() -> nn.Module:
    """Return a tower of which only the head is trained."""
    model = Tower(Block)
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    return model


def frozen_language_model() -> nn.Module:
    """Return a language model with a frozen embedding and frozen lower layers: gradients begin in the middle."""
    model = LanguageModel(5)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    model.embedding.requires_grad_(False)
    model.layers[:2].requires_grad_(False)
    return model


class EarlyLoss(Tower):
    """An auxiliary loss reads the output of the second block."""

    def body(self, x: Tensor) -> Tensor:
        self.auxiliary = x.new_zeros(())
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 1:
                self.auxiliary = x.square().mean()
        return x

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return {"loss": logits.square().mean() + 0.3 * self.auxiliary, "logits": logits}


class TwoTowers(nn.Module):
    """Two inputs and two towers, whose outputs are multiplied at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.ModuleList(Block() for _ in range(4))
        self.right = nn.ModuleList(Branch() for _ in range(3))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        for block in self.left:
            left = block(left)
        for block in self.right:
            right = block(right)
        return left @ right.T


def _shared() -> nn.Module:
    return Tower(Block, shared=True)


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("mlp", mlp, vectors(), "4 × Linear", "4 × Linear", dense=True),
    Architecture("conv-tower", conv_tower, images, "3 × Conv2d + 1 × Linear", "3 × Conv2d + 1 × Linear"),
    Architecture("residual", lambda: Tower(Block), vectors(), "4 × Block", "10 × Linear"),
    Architecture("add-outside", lambda: AddOutside(Branch), vectors(), "4 × Branch", "10 × Linear"),
    Architecture("densenet", DenseNet, vectors(), "4 × DenseLayer", "9 × Linear"),
    Architecture("unet", UNet, images, "5 × ConvBlock", "11 × Conv2d"),
    Architecture(
        "encoder-decoder",
        Translator,
        lambda g: {"source": tokens(g), "target": tokens(g)[:, :3]},
        "3 × EncoderLayer + 3 × DecoderLayer",
    ),
    Architecture("lstm-loop", LstmLoop, sequence, "4 × LSTMCell", "4 × LSTMCell + 1 × Linear", steps="time"),
    Architecture("gru-loop", GruLoop, sequence, "4 × GRUCell", "4 × GRUCell", steps="time"),
    Architecture("tied-rnn", TiedRnn, sequence, "4 × Linear", "4 × Linear", steps="time"),
    Architecture("shared-blocks", _shared, vectors(), "4 × Block", "10 × Linear"),
    Architecture(
        "inplace-activations",
        lambda: mlp(4, activation=lambda: nn.LeakyReLU(0.3, inplace=True)),
        vectors(),
        "4 × Linear",
        "4 × Linear",
        dense=True,
    ),
    Architecture("inplace-stream", lambda: Tower(InplaceStream), vectors(), "4 × InplaceStream", "10 × Linear"),
    Architecture("views", Views, vectors(), "4 × ViewBlock", "8 × Linear"),
    Architecture("stale-views", lambda: Tower(StaleBlock), vectors(), "4 × StaleBlock", "10 × Linear"),
    Architecture("stale-views-across", StaleAcross, vectors(), "4 × Linear", "4 × Linear"),
    Architecture("checkpoint", lambda: Checkpointed(Block), vectors(), "4 × Block", "10 × Linear"),
    Architecture("weight-norm-old", wrapped(nn.utils.weight_norm), vectors(), "4 × Linear", "4 × Linear", dense=True),
    Architecture(
        "weight-norm", wrapped(nn.utils.parametrizations.weight_norm), vectors(), "4 × Linear", "4 × Linear", dense=True
    ),
    Architecture("spectral-norm-old", wrapped(nn.utils.spectral_norm), vectors(), "4 × Linear", "4 × Linear"),
    Architecture(
        "spectral-norm", wrapped(nn.utils.parametrizations.spectral_norm), vectors(), "4 × Linear", "4 × Linear"
    ),
    Architecture("custom-function", lambda: Tower(NumpyBlock), vectors(), "4 × NumpyBlock", "10 × Linear"),
    Architecture("strict-function", StrictSkips, vectors(), "4 × Linear", "4 × Linear"),
    Architecture("scaled-gradient", lambda: ScaledGradient(Block), vectors(), "4 × Block", "10 × Linear"),
    Architecture("scaled-skips", lambda: ScaledSkips(Branch), vectors(), "4 × Branch", "10 × Linear"),
    Architecture("retained-gradient", lambda: Retaining(Block), vectors(), "4 × Block", "10 × Linear"),
    Architecture("tuple-output", lambda: ManyOutputs(lambda a, b: (a, b)), vectors(), "4 × Block"),
    Architecture("dict-output", lambda: ManyOutputs(lambda a, b: {"a": a, "b": [b, None]}), vectors(), "4 × Block"),
    Architecture("dataclass-output", lambda: ManyOutputs(lambda a, b: Answer(a, [b])), vectors(), "4 × Block"),
    Architecture(
        "keyword-inputs", lambda: KeywordTower(Block), lambda g: {"features": vectors()(g), "scale": 2.0}, "4 × Block"
    ),
    Architecture("integer-inputs", LanguageModel, tokens, "3 × CausalLayer"),
    Architecture("mixed-inputs", LanguageModel, lambda g: (tokens(g), sequence(g)), "3 × CausalLayer"),
    Architecture(
        "conditioned",
        Conditioned,
        lambda g: (vectors()(g), torch.randint(0, VOCAB, (BATCH,), generator=g)),
        "3 × Block",
        "6 × Linear",
    ),
    Architecture(
        "batch-norm",
        lambda: nn.Sequential(*[Batchnormed() for _ in range(3)]),
        vectors(),
        "3 × Batchnormed",
        "3 × Linear",
        dense=True,
        joint=True,
    ),
    Architecture(
        "batch-norm-eval",
        lambda: nn.Sequential(*[Batchnormed() for _ in range(3)]),
        vectors(),
        "3 × Batchnormed",
        dense=True,
        train=False,
    ),
    Architecture(
        "dropout",
        lambda: nn.Sequential(*[Dropped() for _ in range(3)]),
        vectors(),
        "3 × Dropped",
        "6 × Linear",
        dense=True,
    ),
    Architecture("complex-state", Fourier, vectors(), "4 × Spectral", "4 × Spectral", dense=True),
    Architecture("mixed-complex-state", MixedFourier, vectors(), "4 × Spectral", "4 × Spectral"),
    Architecture(
        "buffers-only",
        lambda: nn.Sequential(*[FixedMix() for _ in range(4)]),
        vectors(),
        "4 × FixedMix",
        dense=True,
        steps="?",
    ),
    Architecture("frozen-backbone", frozen_backbone, vectors(), "4 × Block", "10 × Linear"),
    Architecture(
        "frozen-language-model",
        frozen_language_model,
        tokens,
        "2 × CausalLayer",
        note="the first trainable layer returns the first state",
    ),
    Architecture(
        "early-loss",
        lambda: EarlyLoss(Block),
        vectors(),
        "4 × Block",
        "10 × Linear",
        joint=True,
        note="the auxiliary loss is one number for all samples, and is part of the later states",
    ),
    Architecture("two-towers", TwoTowers, lambda g: (vectors()(g), vectors()(g)), "4 × Block"),
    Architecture("relative-bias", RelativeBias, sequence, "3 × EncoderLayer"),
    Architecture("position-network", PositionNetwork, sequence, "3 × EncoderLayer"),
)
