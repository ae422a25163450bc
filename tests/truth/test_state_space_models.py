"""State-space and linear-attention models of transformers, along depth and along time.

Along time the models are called as in generation, one token a call with a cache, and each closed form or dense product
below is taken from the step that a user would write: state in, state out.

What there is to know of the models (transformers 5.23):

- A cache is written in place. Its writes are visible to autograd, and the gradient that flows through it is that of the
  parallel form. But most models write over what a product has saved for the backward pass (Mamba in float32, Mamba-2,
  gated delta nets and RWKV in any type), and autograd refuses. `saved_tensors_hooks(torch.clone, ...)` around the
  forward pass keeps copies instead.
- The models compute in float32 what they hold dear (norms, decays, states), whatever the type of their weights.
  `InDouble` lifts that, so that tolerances are those of float64.
- A convolution over the last K tokens forgets: in the state it is a shift register, nilpotent, with exponents of -inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from towers import F64

from pytest_trainability import measure
from pytest_trainability.engine.isolation import derived_seed
from pytest_trainability.records.estimates import Estimate, Spectrum

transformers = pytest.importorskip("transformers")

VOCAB, WIDTH, LAYERS, TIME = 7, 4, 2, 8
KERNEL = 3
"""Tokens that a convolution sees."""


def means(estimates: Sequence[Estimate] | Spectrum) -> list[float]:
    return [estimate.mean for estimate in estimates]


class InDouble(TorchFunctionMode):
    """Compute in float64 what a model casts to float32."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        function = Tensor.double if function is Tensor.float else function
        wide = {torch.float32: F64}
        args = [wide.get(a, a) if isinstance(a, torch.dtype) else a for a in args]
        named = {key: wide.get(a, a) if isinstance(a, torch.dtype) else a for key, a in (kwargs or {}).items()}
        return function(*args, **named)


# Models ------------------------------------------------------------------------------------------------------------

_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
_HEADS = {**_SMALL, **_ENDS, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
_DELTA = {
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 3,
    "linear_value_head_dim": 2,
}
_LINEAR = {"layer_types": ["linear_attention"] * LAYERS}


def _built(model: str, config: str, **settings: Any) -> nn.Module:
    return getattr(transformers, model)(getattr(transformers, config)(**settings))


def mamba(kernel: int = KERNEL, **settings: Any) -> nn.Module:
    return _built("MambaModel", "MambaConfig", **{**_SMALL, "state_size": 2, "conv_kernel": kernel, **settings})


def falcon_mamba(kernel: int = KERNEL) -> nn.Module:
    return _built("FalconMambaModel", "FalconMambaConfig", **_SMALL, state_size=2, conv_kernel=kernel)


def mamba2(kernel: int = KERNEL) -> nn.Module:
    heads = {"num_heads": 2, "head_dim": 4, "n_groups": 1}
    return _built("Mamba2Model", "Mamba2Config", **_SMALL, **heads, state_size=2, chunk_size=4, conv_kernel=kernel)


def qwen3_next(kernel: int = KERNEL) -> nn.Module:
    """Gated delta nets, without the attention layer in between."""
    experts = {"num_experts": 0, "mlp_only_layers": list(range(LAYERS))}
    model = _built(
        "Qwen3NextModel",
        "Qwen3NextConfig",
        **{**_HEADS, **_DELTA, **_LINEAR, **experts, "head_dim": 4, "linear_conv_kernel_dim": kernel},
        # Or keys of 1e-4 would be lost in the 1e-6 that their norm is padded with.
        initializer_range=0.5,
    )
    for layer in model.layers:
        # Drawn up to 16, for which e^-20 remains of a state after one token.
        nn.init.uniform_(layer.linear_attn.A_log, -3, -1)
    return model


def rwkv(**settings: Any) -> nn.Module:
    model = _built("RwkvModel", "RwkvConfig", **{**_SMALL, "context_length": 32, **settings})
    for block in model.blocks:
        # Made to reach from e^-0.007 to e^-20 a token.
        nn.init.uniform_(block.attention.time_decay, -3, -1)
    return model


def xlstm() -> nn.Module:
    return _built("xLSTMModel", "xLSTMConfig", **_SMALL, num_heads=2, ffn_round_up_to_multiple_of=8)


def recurrent_gemma() -> nn.Module:
    settings = {**_HEADS, "block_types": ["recurrent"], "lru_width": WIDTH, "conv1d_width": KERNEL}
    return _built("RecurrentGemmaModel", "RecurrentGemmaConfig", **settings)


def minimax(layers: int = LAYERS, heads: int = 2) -> nn.Module:
    """Lightning attention: a decay of its own for each head, whatever the input."""
    settings = {**_HEADS, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads}
    linear = {"layer_types": ["linear_attention"] * layers}
    experts = {"num_local_experts": 2, "experts_implementation": "eager"}
    return _built("MiniMaxModel", "MiniMaxConfig", **settings, **linear, **experts, head_dim=3, block_size=4)


# Steps that a user would write -------------------------------------------------------------------------------------


class Step(nn.Module):
    """One token through a model: ``(batch, width)`` and a state in, output and state out.

    The state is one tensor ``(batch, numbers)``, whose layout a dense Jacobian shares, or as many as the model has.
    """

    def __init__(self, model: nn.Module, *, packed: bool = True, wide: bool = True, copied: bool = True) -> None:
        super().__init__()
        self.model = model
        self.packed, self.wide, self.copied = packed, wide, copied

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the state's tensors, but for the batch."""
        raise NotImplementedError

    def advance(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """Call the model with one token ``(batch, 1, width)`` and tensors that it may write into."""
        raise NotImplementedError

    def kept(self, states: Sequence[Tensor]) -> int:
        """Return how many numbers of the last of all states still know the first one, but are replaced as a rule."""
        return 0

    @property
    def size(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    def start(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        state = x.new_zeros(len(x), self.size)
        return state if self.packed else self.unpack(state)

    def unpack(self, state: Tensor) -> tuple[Tensor, ...]:
        parts = state.split([math.prod(shape) for shape in self.shapes], dim=1)
        return tuple(part.unflatten(1, shape) for part, shape in zip(parts, self.shapes))

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        parts = self.unpack(state) if self.packed else state
        # What is saved for the backward pass is copied, as the model will write over it.
        kept: AbstractContextManager[Any] = copied_when_saved()
        with kept if self.copied else nullcontext(), InDouble() if self.wide else nullcontext():
            y, parts = self.advance(x[:, None], [part.clone() for part in parts])
        if self.packed:
            return y[:, 0], torch.cat([part.to(x.dtype).flatten(1) for part in parts], dim=1)
        return y[:, 0], tuple(parts)


ALONE = {
    "position_ids": torch.zeros(1, 1, dtype=torch.long),
    "attention_mask": {"linear_attention": None, "conv": None},
}
"""Without attention layers a cache cannot count tokens: positions and masks must be given."""


class CachedStep(Step):
    """A model with the library's own cache; a convolution over one token needs no state."""

    argument = "past_key_values"
    convolution: Callable[[Any], tuple[int, int]]
    recurrence: Callable[[Any], tuple[int, ...]]

    @property
    def kernel(self) -> int:
        return type(self).convolution(self.model)[1]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        convolution, recurrence = type(self).convolution(self.model), type(self).recurrence(self.model)
        return ([convolution, recurrence] if self.kernel > 1 else [recurrence]) * self.model.config.num_hidden_layers

    def advance(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        cache = transformers.DynamicCache(config=self.model.config)
        parts = iter(state)
        for layer in cache.layers:
            unread = x.new_zeros(len(x), *type(self).convolution(self.model))
            layer.update_conv_state(next(parts) if self.kernel > 1 else unread)
            layer.update_recurrent_state(next(parts))
        y = self.called(x, cache)
        found = [(layer.conv_states[0], layer.recurrent_states[0]) for layer in cache.layers]
        return y, [part for pair in found for part in (pair if self.kernel > 1 else pair[1:])]

    def called(self, x: Tensor, cache: Any) -> Tensor:
        return self.model(inputs_embeds=x, cache_params=cache, use_cache=True).last_hidden_state


class MambaStep(CachedStep):
    convolution = lambda model: (model.config.intermediate_size, model.config.conv_kernel)  # noqa: E731
    recurrence = lambda model: (model.config.intermediate_size, model.config.state_size)  # noqa: E731


class Mamba2Step(CachedStep):
    convolution = lambda model: (model.layers[0].mixer.conv_dim, model.config.conv_kernel)  # noqa: E731
    recurrence = lambda model: (model.config.num_heads, model.config.head_dim, model.config.state_size)  # noqa: E731


class DeltaStep(CachedStep):
    convolution = lambda model: (model.layers[0].linear_attn.conv_dim, model.config.linear_conv_kernel_dim)  # noqa: E731
    recurrence = lambda model: (  # noqa: E731
        model.config.linear_num_value_heads,
        model.config.linear_key_head_dim,
        model.config.linear_value_head_dim,
    )

    def called(self, x: Tensor, cache: Any) -> Tensor:
        return self.model(inputs_embeds=x, past_key_values=cache, use_cache=True, **ALONE).last_hidden_state


class RwkvStep(Step):
    """Five tensors ``(batch, width, layers)``: two last tokens; numerator, denominator and their common exponent."""

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [(self.model.config.hidden_size, self.model.config.num_hidden_layers)] * 5

    def advance(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        found = self.model(inputs_embeds=x, state=state, use_cache=True)
        return found.last_hidden_state, found.state

    def kept(self, states: Sequence[Tensor]) -> int:
        """Exponents that no key has exceeded since: a key of layer ``l`` knows the first state up to token ``l + 1``.

        The layers below hand on what they know of it, one layer and one token at a time.
        """
        found = 0
        for layer, block in enumerate(self.model.blocks):
            before, after = (self.unpack(state)[4][..., layer] for state in (states[layer], states[-1]))
            fallen = (len(states) - 1 - layer) * block.attention.time_decay.exp()
            found += int(((before - fallen - after).abs() < EXACT).sum())
        return found


class XlstmStep(Step):
    """Blocks hand states in and out; only the model around them writes them into its cache in place."""

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        layer, heads = self.model.blocks[0].mlstm_layer, self.model.config.num_heads
        keys, values = layer.qk_dim // heads, layer.v_dim // heads
        return [(heads, keys, values), (heads, keys), (heads, 1)] * self.model.config.num_hidden_layers

    def advance(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        found: list[Tensor] = []
        for index, block in enumerate(self.model.blocks):
            x, parts = block(x, tuple(state[3 * index : 3 * index + 3]))
            found += parts
        return self.model.out_norm(x), found


class GriffinStep(Step):
    """The state is kept in attributes of the modules, replaced and not written into."""

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        config = self.model.config
        return [(config.lru_width, config.conv1d_width - 1), (config.lru_width,)] * config.num_hidden_layers

    position = 1
    """At position 0 the recurrent state is reset."""

    def advance(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        blocks = [layer.temporal_block for layer in self.model.layers]
        for block, convolved, recurrent in zip(blocks, state[::2], state[1::2]):
            block.conv1d_state, block.rg_lru.recurrent_states = convolved, recurrent
        x = x * self.model.normalizer.to(x.dtype)
        position = torch.full((1, 1), self.position)
        for layer in self.model.layers:
            # transformers 5.0 wants positions twice.
            twice = {"cache_position": position[0]} if "cache_position" in signature(layer.forward).parameters else {}
            x = layer(x, position, None, use_cache=True, **twice)
        found = [part for block in blocks for part in (block.conv1d_state, block.rg_lru.recurrent_states)]
        return self.model.final_norm(x), found


class LightningStep(Step):
    """A cache that holds what it is given."""

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        config = self.model.config
        return [(config.num_attention_heads, config.head_dim, config.head_dim)] * config.num_hidden_layers

    def advance(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        from transformers.models.minimax.modeling_minimax import MiniMaxCache

        cache = MiniMaxCache()
        for index, part in enumerate(state):
            cache.set_linear_cache(index, part)
        positions = torch.zeros(1, 1, dtype=torch.long)
        y = self.model(inputs_embeds=x, past_key_values=cache, use_cache=True, position_ids=positions)
        return y.last_hidden_state, cache.linear_cache


def skip_without_caches() -> None:
    """Skip a test of models whose states ``DynamicCache`` did not hold at first."""
    if not hasattr(transformers.cache_utils, "LinearAttentionLayer"):
        pytest.skip(f"transformers {transformers.__version__} has another cache for each of these models")


def copied_when_saved() -> saved_tensors_hooks:
    """Autograd keeps copies, which no later write reaches.

    ``allow_mutation_on_saved_tensors`` would copy only what is written over, but it knows a tensor by ``id`` and address,
    and the next tensor to have both, after the first one is freed, is taken for it: its gradients are sometimes wrong.
    """
    return saved_tensors_hooks(torch.clone, lambda saved: saved)


class OverTime(nn.Module):
    """The step in a loop, from a state of zeros."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        state = self.step.start(x) if state is None else state
        outputs = []
        for token in x.unbind(1):
            y, state = self.step(token, state)
            outputs.append(y)
        return torch.stack(outputs, dim=1), state


@dataclass(frozen=True)
class Recurrent:
    """A model and how it is stepped."""

    id: str
    model: Callable[..., nn.Module]
    step: type[Step]
    remembered: int
    """Numbers of the state of which anything remains after all tokens; the others are those of convolutions."""
    batch: int = 2
    parallel: dict[str, Any] = field(default_factory=dict)
    """How the model is called on all tokens at once."""

    def over_time(self, *args: Any, **settings: Any) -> OverTime:
        """Draw the model, in float64 and as it is in generation."""
        if issubclass(self.step, CachedStep):
            skip_without_caches()
        return OverTime(self.step(self.model(*args), **settings)).to(F64).eval()


MAMBA = Recurrent("mamba", mamba, MambaStep, LAYERS * 16)
FALCON_MAMBA = Recurrent("falcon-mamba", falcon_mamba, MambaStep, LAYERS * 16)
MAMBA2 = Recurrent("mamba2", mamba2, Mamba2Step, LAYERS * 16)
DELTA = Recurrent("qwen3-next", qwen3_next, DeltaStep, LAYERS * 12)
# More than one sample, and the model mixes them up. Numerators and denominators remain, exponents and last tokens do not.
RWKV = Recurrent("rwkv", rwkv, RwkvStep, LAYERS * 2 * WIDTH, batch=1)
XLSTM = Recurrent("xlstm", xlstm, XlstmStep, LAYERS * 8)
# Positions are given, or the first token would be a reset.
POSITIONS = {"position_ids": torch.ones(1, TIME, dtype=torch.long)}
GRIFFIN = Recurrent("recurrent-gemma", recurrent_gemma, GriffinStep, LAYERS * WIDTH, parallel=POSITIONS)
LIGHTNING = Recurrent("minimax", minimax, LightningStep, LAYERS * 18)
RECURRENT = [MAMBA, FALCON_MAMBA, MAMBA2, DELTA, RWKV, XLSTM, GRIFFIN, LIGHTNING]
EVERY = pytest.mark.parametrize("case", RECURRENT, ids=lambda case: case.id)


def embeddings(batch: int = 2, time: int = TIME, seed: int = 1) -> Tensor:
    return torch.randn(batch, time, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=F64)


# A reference that shares nothing with the engine but the cotangents it draws ----------------------------------------


def dense(function: Callable[[Tensor], Tensor], at: Tensor) -> np.ndarray:
    """Return the Jacobian of a map of one sample, ``(1, ...)`` to ``(1, ...)``, as a matrix."""
    found = jacobian(lambda flat: function(flat.reshape(at.shape)).flatten(), at.flatten(), vectorize=True)
    return found.numpy()


def step_jacobians(model: OverTime, x: Tensor) -> np.ndarray:
    """Return ``∂state_t / ∂state_{t-1}``, ``(time, batch, N, N)``, each by differentiating one step densely."""
    found = []
    state = model.step.start(x)
    for token in x.unbind(1):
        samples = zip(token.split(1), state.split(1))
        found.append([dense(lambda s, own=own: model.step(own, s)[1], at) for own, at in samples])
        state = model.step(token, state)[1].detach()
    return np.array(found)


def block_jacobians(model: nn.Module, blocks: nn.ModuleList, x: Tensor) -> np.ndarray:
    """Return ``∂x_l / ∂x_{l-1}`` of the blocks of a model, ``(blocks, batch, N, N)``."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    with torch.no_grad():
        hooks = [
            block.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
            for block in blocks
        ]
        model(x)
        for hook in hooks:
            hook.remove()

    def out(block: nn.Module, sample: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        with InDouble():
            found = block(sample, *args, **kwargs)
        return found if isinstance(found, Tensor) else found[0]

    return np.array(
        [
            [dense(lambda s, b=block, c=call: out(b, s, c[0][1:], c[1]), sample) for sample in call[0][0].split(1)]
            for block, call in zip(blocks, seen)
        ]
    )


def cotangents(shape: tuple[int, ...], count: int, seed: int = 0) -> np.ndarray:
    """Draw the engine's cotangents of one seed: ``(batch, N, count)``."""
    generators = [torch.Generator().manual_seed(derived_seed(seed, f"cotangent {n}")) for n in range(count)]
    return torch.stack([torch.randn(shape, generator=g).double().flatten(1) for g in generators], dim=-1).numpy()


def benettin(jacobians: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return ``ln R_l[i, i]`` of ``J_lᵀ Q_l = Q_{l-1} R_l``, ``(L, batch, k)``."""
    logs = np.empty((*jacobians.shape[:2], columns.shape[-1]))
    for b, column in enumerate(columns):
        Q, _ = np.linalg.qr(column)
        for index in reversed(range(len(jacobians))):
            Q, R = np.linalg.qr(jacobians[index, b].T @ Q)
            with np.errstate(divide="ignore"):
                logs[index, b] = np.log(np.abs(np.diag(R)))
    return logs


def rank_of(jacobians: np.ndarray) -> int:
    """Return the rank of the product, which must be beyond doubt."""
    ranks = set()
    for b in range(jacobians.shape[1]):
        values = np.linalg.svd(np.linalg.multi_dot(list(jacobians[::-1, b])), compute_uv=False)
        ranks.add(int((values > 1e-9 * values[0]).sum()))
        assert not ((1e-14 * values[0] < values) & (values < 1e-7 * values[0])).any()
    (rank,) = ranks
    return rank


EXACT = 1e-9
"""Of float64's 2e-16, what is left after QR of products whose condition numbers are at most 1e7."""


# Along depth -------------------------------------------------------------------------------------------------------


class Parallel(nn.Module):
    """All tokens at once, without a cache."""

    def __init__(self, model: nn.Module, *, wide: bool = True, **settings: Any) -> None:
        super().__init__()
        self.model, self.wide, self.settings = model, wide, settings

    def forward(self, x: Tensor) -> Tensor:
        with InDouble() if self.wide else nullcontext():
            return self.model(inputs_embeds=x, use_cache=False, **self.settings).last_hidden_state


def blocks_of(model: nn.Module) -> nn.ModuleList:
    return next(child for child in model.children() if isinstance(child, nn.ModuleList))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@EVERY
def test_exponents_along_depth_are_those_of_the_blocks(case: Recurrent, train: bool):
    torch.manual_seed(0)
    model = Parallel(case.model()).to(F64).train(train)
    x = embeddings(time=3)
    blocks = blocks_of(model.model)
    result = measure(model, x, train=train, exponents=3 * WIDTH, measures=["lyapunov_spectrum"])
    assert (str(result.steps), result.frame) == (f"{LAYERS} × {type(blocks[0]).__name__}", "per sample")
    J = block_jacobians(model, blocks, x)
    rank = rank_of(J)
    # Two models put a norm on the stream itself, for which one direction of each token does not count: its scale in
    # MiniMax, its mean in RWKV (whose scale counts for 1e-5, by what pads the variance).
    assert rank == {"minimax": 3 * WIDTH - 3, "rwkv": 3 * WIDTH - 3}.get(case.id, 3 * WIDTH)
    logs = benettin(J, cotangents(x.shape, 3 * WIDTH))[..., :rank]
    found = means(result.lyapunov_spectrum)
    assert found[:rank] == pytest.approx(sorted(logs.sum(axis=0).mean(axis=0) / LAYERS, reverse=True), abs=EXACT)
    assert all(LAYERS * exponent < math.log(1e-12) for exponent in found[rank:])
    if rank == len(found):
        # Whatever the cotangents: the sum of all exponents is the logarithm of the volume.
        volumes = np.linalg.slogdet(J)[1].sum(axis=0)
        assert math.fsum(found) == pytest.approx(volumes.mean() / LAYERS, abs=EXACT)
    rates = benettin(J, cotangents(x.shape, 1))[..., 0].mean(axis=1)
    assert means(result.growth_rate.values()) == pytest.approx(list(rates), abs=EXACT)
    assert float(result.log_gain) == pytest.approx(rates.sum(), abs=EXACT)


def test_rwkv_halves_the_stream_in_eval_mode():
    """Every `rescale_every` blocks the stream is divided by 2, and so are, beforehand, the weights that add to it."""
    found = {}
    for train in (True, False):
        torch.manual_seed(0)
        # Without what pads a variance, a LayerNorm does not see the scale of its input.
        model = Parallel(rwkv(num_hidden_layers=4, rescale_every=1, layer_norm_epsilon=0.0))
        found[train] = measure(model, embeddings(), dtype=F64, train=train)
    difference = np.subtract(means(found[True].growth_rate.values()), means(found[False].growth_rate.values()))
    # The division comes after the block: it belongs to the next step, and that after the last one to none.
    assert list(difference) == pytest.approx([0, *[math.log(2)] * 3], abs=EXACT)


def test_measuring_rwkv_in_the_other_mode_leaves_its_weights_alone():
    """They are divided in place when the mode is found to have changed, and a flag says so."""
    torch.manual_seed(0)
    model = Parallel(rwkv(rescale_every=1), wide=False).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, embeddings().float(), train=False)
    assert model.training and not model.model.layers_are_rescaled
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# The steps are the models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [True, False], ids=["in double", "as it is"])
@EVERY
def test_gradients_through_the_cache_are_those_of_the_parallel_form(case: Recurrent, wide: bool):
    """Nothing that the tokens exchange is lost on the way through the cache."""
    torch.manual_seed(0)
    model = case.over_time(wide=wide)
    parallel = Parallel(model.step.model, wide=wide, **case.parallel)
    x = embeddings(case.batch).requires_grad_()
    # What is computed in float32 is so in both, in another order. MiniMax has tables of decays that were made in float32.
    tolerance = 1e-9 if wide else 1e-5
    one, other = model(x)[0], parallel(x)
    assert float((one - other).detach().abs().max()) < tolerance
    cotangent = embeddings(case.batch, seed=2)
    found, expected = (torch.autograd.grad(y, x, cotangent, retain_graph=True)[0] for y in (one, other))
    assert float((found - expected).norm() / expected.norm()) < 100 * tolerance
    # And tokens do exchange something: the last output knows the first token.
    (first,) = torch.autograd.grad(one[:, -1], x, cotangent[:, -1])
    assert first[:, 0].any()


OVERWRITES = [
    (MAMBA, torch.float32),
    (FALCON_MAMBA, torch.float32),
    (MAMBA2, torch.float32),
    (MAMBA2, F64),
    (DELTA, torch.float32),
    (RWKV, torch.float32),
    (RWKV, F64),
]
"""What a cast copies is not what is written over: Mamba's state in float64, the delta net's outside of float32."""


@pytest.mark.parametrize(("case", "dtype"), OVERWRITES, ids=lambda value: getattr(value, "id", str(value)[6:]))
def test_a_cache_is_written_over_what_autograd_has_saved(case: Recurrent, dtype: torch.dtype):
    torch.manual_seed(0)
    model = case.over_time(wide=False, copied=False).to(dtype)
    x = embeddings(case.batch).to(dtype).requires_grad_()
    cotangent = embeddings(case.batch, seed=2).to(dtype)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(model(x)[0], x, cotangent)
    with copied_when_saved():
        (saved,) = torch.autograd.grad(model(x)[0], x, cotangent)
    model.step.copied = True
    (copied,) = torch.autograd.grad(model(x)[0], x, cotangent)
    assert saved.any()
    # Round-off of float32, with the order of a product that depends on where its memory lies; a derivative at what was
    # written over would be off by its own size.
    assert float((saved - copied).norm() / copied.norm()) < 1e-3


def test_rwkv_mixes_the_samples_of_a_batch_token_by_token():
    """A tensor ``(batch, width)`` meets one ``(batch, 1, width)``: transformers makes ``(batch, batch, width)`` of it."""
    torch.manual_seed(0)
    model = rwkv().eval()
    x = torch.randn(2, 3, WIDTH)
    with torch.no_grad():
        whole = model(inputs_embeds=x, use_cache=False).last_hidden_state[:, -1:]
        state = model(inputs_embeds=x[:, :-1], use_cache=True).state
        both = model(inputs_embeds=x[:, -1:], state=[part.clone() for part in state], use_cache=True)
        alone = model(inputs_embeds=x[:1, -1:], state=[part[:1].clone() for part in state], use_cache=True)
    assert both.last_hidden_state.shape == (2, 2, WIDTH)
    assert float((alone.last_hidden_state - whole[:1]).abs().max()) < 1e-5


# Along time --------------------------------------------------------------------------------------------------------


@EVERY
def test_exponents_along_time_are_those_of_the_steps(case: Recurrent):
    torch.manual_seed(0)
    model = case.over_time()
    x, size = embeddings(case.batch), model.step.size
    result = measure(model, x, steps="time", train=False, exponents=size, measures=["lyapunov_spectrum"])
    assert str(result.steps) == f"{TIME} × {case.step.__name__}"
    assert list(result.growth_rate) == [f"step[{t}]" for t in range(TIME)]
    assert result.frame == ("per sample" if case.batch > 1 else "joint")
    J = step_jacobians(model, x)
    rank = rank_of(J)
    assert rank == case.remembered + model.step.kept([model(x[:, : t + 1])[1] for t in range(TIME)])
    logs = benettin(J, cotangents((case.batch, size), size))[..., :rank]
    found = means(result.lyapunov_spectrum)
    assert found[:rank] == pytest.approx(sorted(logs.sum(axis=0).mean(axis=0) / TIME, reverse=True), abs=EXACT)
    # What is forgotten has no exponent; what rounding makes of none is at most as large as rounding.
    assert all(TIME * exponent < math.log(1e-12) for exponent in found[rank:])
    rates = benettin(J, cotangents((case.batch, size), 1))[..., 0].mean(axis=1)
    assert means(result.growth_rate.values()) == pytest.approx(list(rates), abs=EXACT)
    assert float(result.log_gain) == pytest.approx(rates.sum(), abs=EXACT)


@EVERY
def test_models_as_they_are_along_time(case: Recurrent):
    """With their casts to float32, to whose precision the same numbers come out."""
    torch.manual_seed(0)
    model = case.over_time(wide=False)
    x, size = embeddings(case.batch), model.step.size
    result = measure(model, x, steps="time", train=False)
    rates = benettin(step_jacobians(model, x), cotangents((case.batch, size), 1))[..., 0].mean(axis=1)
    # 1e-7 for each of some tens of casts.
    assert means(result.growth_rate.values()) == pytest.approx(list(rates), abs=1e-5)


@EVERY
def test_state_in_pieces(case: Recurrent):
    """As many tensors as the model has, in place of one: another order of the same numbers, and the same volume."""
    torch.manual_seed(0)
    model = case.over_time(packed=False)
    x, size = embeddings(case.batch), model.step.size
    result = measure(model, x, steps="time", train=False, exponents=size, measures=["lyapunov_spectrum"])
    assert (len(result.steps), result.frame) == (TIME, "per sample" if case.batch > 1 else "joint")
    model.step.packed = True
    J = step_jacobians(model, x)
    rank = rank_of(J)
    found = means(result.lyapunov_spectrum)
    assert all(math.isfinite(exponent) for exponent in found[:rank])
    assert all(TIME * exponent < math.log(1e-12) for exponent in found[rank:])
    if rank == size:
        volume = np.linalg.slogdet(J)[1].sum(axis=0).mean() / TIME
        assert math.fsum(found) == pytest.approx(volume, abs=EXACT)


@pytest.mark.parametrize("case", [MAMBA, XLSTM], ids=lambda case: case.id)
def test_state_as_an_input(case: Recurrent):
    """A state that is handed in is the first state, like one of zeros that the model makes."""
    torch.manual_seed(0)
    model = case.over_time()
    x = embeddings()
    own = measure(model, x, steps="time", train=False)
    given = measure(model, (x, model.step.start(x)), steps="time", train=False)
    assert means(given.growth_rate.values()) == pytest.approx(means(own.growth_rate.values()), abs=EXACT)


class TokenByToken(nn.Module):
    """What one writes first: the model in a loop, with the cache that it makes at its first call."""

    def __init__(self, model: nn.Module, argument: str = "past_key_values", **settings: Any) -> None:
        super().__init__()
        self.model, self.argument, self.settings = model, argument, settings

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        with copied_when_saved(), InDouble():
            found: Any = None
            for token in x.split(1, dim=1):
                cache = {} if found is None else {self.argument: found[self.argument]}
                found = self.model(inputs_embeds=token, use_cache=True, **cache, **self.settings)
                outputs.append(found.last_hidden_state)
        return torch.cat(outputs, dim=1)


HIDDEN = [
    pytest.param(MAMBA, {"argument": "cache_params"}, id="mamba"),
    pytest.param(MAMBA2, {"argument": "cache_params"}, id="mamba2"),
    pytest.param(DELTA, ALONE, id="qwen3-next"),
    pytest.param(LIGHTNING, {}, id="minimax"),
]


@pytest.mark.parametrize(("case", "settings"), HIDDEN)
def test_state_in_a_cache(case: Recurrent, settings: dict[str, Any]):
    """A cache is opaque; its state is what flows between calls. Before the second and after the last but one, nothing tells."""
    torch.manual_seed(0)
    reference = case.over_time()
    x, size = embeddings(), reference.step.size
    J = step_jacobians(reference, x)[1:-1]
    rank = rank_of(J)
    # A state is as large as what of it is read: of a convolution's K tokens, the oldest is not.
    exponents = rank + 4 if rank < size else size
    model = TokenByToken(reference.step.model, **settings).eval()
    result = measure(model, x, steps="time", train=False, exponents=exponents, measures=["lyapunov_spectrum"])
    assert (list(result.growth_rate), result.frame) == ([f"model[{t}]" for t in range(1, TIME - 1)], "per sample")
    found = means(result.lyapunov_spectrum)
    assert all(math.isfinite(exponent) for exponent in found[:rank])
    assert all(len(J) * exponent < math.log(1e-12) for exponent in found[rank:])
    if rank == size:
        volume = np.linalg.slogdet(J)[1].sum(axis=0).mean() / len(J)
        assert math.fsum(found) == pytest.approx(volume, abs=EXACT)


@pytest.mark.parametrize("kernel", [2, 3])
def test_a_short_convolution_remembers_as_many_tokens_as_it_sees(kernel: int):
    """A state that is shifted out: after K steps the gradient is zero, not small."""
    skip_without_caches()
    settings = {**_HEADS, "num_hidden_layers": 1, "layer_types": ["conv"], "block_multiple_of": 8}
    torch.manual_seed(0)
    model = TokenByToken(_built("Lfm2Model", "Lfm2Config", **settings, conv_L_cache=kernel), **ALONE).to(F64).eval()
    for steps in range(1, 5):
        result = measure(model, embeddings(time=steps + 2), steps="time", train=False)
        assert len(result.steps) == steps
        # The oldest of the K tokens is kept and not read.
        assert math.isfinite(result.log_gain) == (steps < kernel)


def test_saved_tensors_may_be_copied_around_the_measurement():
    torch.manual_seed(0)
    copied = measure(MAMBA2.over_time(), embeddings(), steps="time", train=False)
    torch.manual_seed(0)
    model = MAMBA2.over_time(copied=False)
    with copied_when_saved():
        saved = measure(model, embeddings(), steps="time", train=False)
    assert means(saved.growth_rate.values()) == pytest.approx(means(copied.growth_rate.values()), abs=EXACT)


class InPlace(nn.Module):
    """A state that is handed in and never taken back, as the model writes into it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        state = [x.new_zeros(len(x), WIDTH, LAYERS) for _ in range(5)]
        with copied_when_saved(), InDouble():
            tokens = [self.model(inputs_embeds=token, state=state, use_cache=True) for token in x.split(1, dim=1)]
        return torch.cat([token.last_hidden_state for token in tokens], dim=1)


def test_state_written_in_place():
    torch.manual_seed(0)
    step = RWKV.over_time(packed=False)
    expected = measure(step, embeddings(1), steps="time", train=False)
    outputs: list[Tensor] = []

    def seen(y: Tensor) -> Tensor:
        outputs.append(y.detach())
        return y.square().sum()

    result = measure(InPlace(step.step.model).eval(), embeddings(1), steps="time", train=False, loss=seen)
    with torch.no_grad():
        assert torch.equal(outputs[0], step(embeddings(1))[0])
    # What is in a list is left alone, for a step may put another tensor there: the first state has no gradient.
    assert len(result.steps) == TIME - 1
    assert means(result.growth_rate.values()) == pytest.approx(means(expected.growth_rate.values())[1:], abs=EXACT)


def test_rwkv_token_by_token_has_a_joint_frame():
    """Samples that a model mixes by mistake are found to interact."""
    torch.manual_seed(0)
    model = RWKV.over_time()

    class FirstOfEach(RwkvStep):
        def advance(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
            y, state = super().advance(x, state)
            return y[: len(x), :1], state

    model.step = FirstOfEach(model.step.model)
    assert measure(model, embeddings(2), steps="time", train=False).frame == "joint"


# Closed forms ------------------------------------------------------------------------------------------------------

# Without a convolution a state is a tensor that is decayed and added to. What is added depends on the layers below, so
# that the Jacobian of all layers is block triangular, and its determinant the product of those of the decays.


def mamba_volume(layer: nn.Module, seen: dict[str, Tensor]) -> Tensor:
    """Gu & Dao 2023, eq. 4: `h ← exp(Δ A) h + …`, Δ for each channel, A for each number."""
    mixer = layer.mixer
    steps = F.softplus(seen["x_proj"][..., : mixer.time_step_rank] @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
    return (steps[..., None] * -mixer.A_log.exp()).sum((-1, -2))


def mamba2_volume(layer: nn.Module, seen: dict[str, Tensor]) -> Tensor:
    """Dao & Gu 2024: one decay `exp(Δ A)` for all numbers of a head."""
    mixer = layer.mixer
    steps = F.softplus(seen["in_proj"][..., -mixer.num_heads :] + mixer.dt_bias)
    return mixer.head_dim * mixer.ssm_state_size * (steps * -mixer.A_log.exp()).sum(-1)


def delta_volume(layer: nn.Module, seen: dict[str, Tensor]) -> Tensor:
    """Yang et al. 2024, gated delta rule: `S ← e^g (1 - β k kᵀ) S + β k vᵀ`, |k| = 1: one direction is erased by 1 - β."""
    net = layer.linear_attn
    strength, gate = seen["in_proj_ba"].chunk(2, dim=-1)
    decay = -net.A_log.exp() * F.softplus(gate + net.dt_bias)
    first = net.head_k_dim
    key = F.silu(seen["in_proj_qkvz"][..., first : 2 * first] * net.conv1d.weight[first : 2 * first, 0, 0])
    square = key.square().sum(-1, keepdim=True)
    erased = (1 - strength.sigmoid() * square / (square + 1e-6)).log()
    return net.head_v_dim * (net.head_k_dim * decay + erased).sum(-1)


def lightning_volume(layer: nn.Module, seen: dict[str, Tensor]) -> Tensor:
    """Qin et al. 2024: `S ← e^-s S + k vᵀ`, a slope s for each head, whatever the input."""
    attention = layer.self_attn
    return -(attention.head_dim**2) * attention.slope_rate.sum()


CLOSED = [
    pytest.param(MAMBA, mamba_volume, id="mamba"),
    pytest.param(MAMBA2, mamba2_volume, id="mamba2"),
    pytest.param(DELTA, delta_volume, id="qwen3-next"),
    pytest.param(LIGHTNING, lightning_volume, id="minimax"),
]


@pytest.mark.parametrize(("case", "volume"), CLOSED)
def test_volume_along_time_is_that_of_the_decays(case: Recurrent, volume: Callable[..., Tensor]):
    torch.manual_seed(0)
    model = case.over_time(*([] if case is LIGHTNING else [1]))
    size = model.step.size
    assert size == case.remembered
    x = embeddings()
    result = measure(model, x, steps="time", train=False, exponents=size, measures=["lyapunov_spectrum"])

    layers = blocks_of(model.step.model)
    seen: dict[tuple[int, str], Tensor] = {}
    for index, layer in enumerate(layers):
        for name, module in layer.named_modules():
            place = index, name.rpartition(".")[2]
            module.register_forward_hook(lambda _, __, out, place=place: seen.__setitem__(place, out))
    with torch.no_grad(), InDouble():
        model.step.model(inputs_embeds=x, use_cache=False)
        own = [{name: out for (i, name), out in seen.items() if i == index} for index in range(LAYERS)]
        volumes = [volume(*pair).expand(2, TIME) for pair in zip(layers, own)]
    # A determinant is as exact as its terms: one of some tens of numbers.
    assert math.fsum(means(result.lyapunov_spectrum)) == pytest.approx(float(sum(volumes).mean()), abs=EXACT)


def test_one_head_of_lightning_attention_decays_alike_in_all_directions():
    torch.manual_seed(0)
    model = OverTime(LightningStep(minimax(layers=1, heads=1))).to(F64).eval()
    slope = float(model.step.model.layers[0].self_attn.slope_rate)
    wanted = ["lyapunov_spectrum", "memory_horizon", "spectral_radius"]
    result = measure(model, embeddings(), steps="time", train=False, exponents=9, measures=wanted)
    assert means(result.lyapunov_spectrum) == pytest.approx([-slope] * 9, abs=1e-14)
    assert float(result.memory_horizon) == pytest.approx(math.log(100) / slope, rel=1e-9)
    assert means(result.spectral_radius.values()) == pytest.approx([math.exp(-slope)] * 5, rel=1e-12)
    assert means(result.growth_rate.values()) == pytest.approx([-slope] * TIME, abs=1e-14)


def test_rwkv_forgets_at_the_rate_of_its_decays():
    """Peng et al. 2023, eq. 16: numerator and denominator of each channel decay by ``w``, known from the weights alone.

    The model stores them divided by e^max, with the max beside them: the third number is no memory, and gone.
    """
    torch.manual_seed(0)
    time, count = 40, RWKV.remembered
    model = RWKV.over_time(wide=False)
    x = embeddings(1, time)
    result = measure(model, x, steps="time", train=False, exponents=count, measures=["lyapunov_spectrum"])
    decays = torch.cat([block.attention.time_decay for block in model.step.model.blocks]).exp().tolist()
    expected = sorted([-decay for decay in decays] * 2, reverse=True)
    found = means(result.lyapunov_spectrum)
    # What remains of a random start, the angle to 16 of 40 directions, is a few nats over any time: 1 to 2 on average.
    assert found == pytest.approx(expected, abs=6 / time)
    assert math.fsum(found) / count == pytest.approx(math.fsum(expected) / count, abs=2 / time)


# Cold starts -------------------------------------------------------------------------------------------------------


def test_the_initial_sums_of_rwkv_are_worth_nothing():
    """In the model's own initial state their max is -1e30, so that the first token replaces all three: no gradient.

    The same state written as (0, 0, 0) has one.
    """
    torch.manual_seed(0)
    model = RWKV.over_time()
    x = embeddings(1)
    warm = model.step.start(x)
    cold = warm.clone()
    cold[:, -WIDTH * LAYERS :] -= 1e30
    outputs, gradients = [], []
    for state in (warm, cold):
        state.requires_grad_()
        y, _ = model(x, state)
        outputs.append(y.detach())
        gradients.append(torch.autograd.grad(y, state, x)[0][:, 2 * WIDTH * LAYERS :])
    assert float((outputs[0] - outputs[1]).abs().max()) < 1e-12
    assert gradients[0].any() and not gradients[1].any()
    lasts = []
    for state in (warm, cold):
        result = measure(
            model,
            (x, state.detach()),
            steps="time",
            train=False,
            exponents=RWKV.remembered,
            measures=["lyapunov_spectrum"],
        )
        lasts.append(means(result.lyapunov_spectrum)[-1])
    # What is left are the last tokens, of which the last layer's second one is in no state.
    assert math.isfinite(lasts[0])
    assert TIME * lasts[1] < math.log(1e-12)


def test_recurrent_gemma_resets_at_position_zero():
    torch.manual_seed(0)
    model = GRIFFIN.over_time()
    assert math.isfinite(measure(model, embeddings(), steps="time", train=False).log_gain)
    model.step.position = 0
    # The convolutions' states remain, for as many tokens as they see.
    assert measure(model, embeddings(time=LAYERS * KERNEL), steps="time", train=False).log_gain == -math.inf
