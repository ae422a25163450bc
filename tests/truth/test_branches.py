"""Residual steps: what branches add to the stream and to its gradient, from matrices that are known and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
import zoo
from torch import Tensor, nn
from towers import F64, Residual, gaussian, normal, orthogonal, repeated

from pytest_trainability import measure
from pytest_trainability.engine.isolation import derived_seed
from pytest_trainability.measures.depth.residual_branches import skips_of

WIDTH, BATCH = 12, 5
BOTH = ["branch_ratio", "branch_gradient_share"]


def means(profile: Any) -> dict[str, float]:
    return {name: found.mean for name, found in profile.items()}


class Step(nn.Module):
    """One layer as a branch, and one of the ways to add it."""

    def __init__(self, gain: float, way: str = "plus") -> None:
        super().__init__()
        self.inner, self.way = orthogonal(WIDTH, gain), way

    def forward(self, x: Tensor) -> Tensor:
        f = self.inner(x.clone() if self.way == "in place" else x)
        if self.way == "reversed":
            return f + x
        if self.way == "in place":
            x += f
            return x
        if self.way == "into the branch":
            f += x
            return f
        if self.way == "scaled":
            return torch.add(x, f / 4, alpha=4)
        if self.way == "minus":
            return x - f
        if self.way == "views":
            # As in OPT, which flattens samples and positions.
            y = (x.reshape(-1) + f.reshape(-1) / 2).view(x.shape)
            return y.unsqueeze(0).squeeze(0) + f / 2
        if self.way == "turned":
            return (x.T + f.T).T
        if self.way == "summed":
            # Python's sum begins with 0.
            return sum([x, f])
        return x + f


WAYS = ["plus", "reversed", "in place", "into the branch", "scaled", "minus", "views", "turned", "summed"]


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_orthogonal_branches(way, dtype):
    """`x + g Q x`: the branch is g times as long as the stream, and so is what it adds to any gradient."""
    gains = (0.1, 1.0, 3.0)
    result = measure(
        lambda: nn.Sequential(*(Step(gain, way) for gain in gains)).to(dtype),
        normal(BATCH, WIDTH),
        steps=Step,
        dtype=dtype,
        measures=BOTH,
    )
    # Rounding of sums over 12 numbers.
    tolerance = 40 * torch.finfo(dtype).eps
    assert means(result.branch_ratio) == pytest.approx(dict(zip("012", gains)), rel=tolerance)
    shares = {name: gain**2 / (1 + gain**2) for name, gain in zip("012", gains)}
    # Skip and branch are told apart by a difference, which costs the smaller one digits: g = 0.1 loses one or two.
    assert means(result.branch_gradient_share) == pytest.approx(shares, rel=50 * tolerance)


def test_two_branches_are_summed():
    """`(I - A)(I + B)`: the step adds `B - A - AB`; cotangents are those of the sweep."""
    A, B, C = (0.3 * torch.randn(3, WIDTH, WIDTH, dtype=F64, generator=torch.Generator().manual_seed(0))).unbind()
    identity = torch.eye(WIDTH, dtype=F64)

    class Two(nn.Module):
        def __init__(self, *matrices: Tensor) -> None:
            super().__init__()
            self.matrices = nn.ParameterList(nn.Parameter(matrix) for matrix in matrices)

        def forward(self, x: Tensor) -> Tensor:
            for number, matrix in enumerate(self.matrices):
                x = x - x @ matrix.T if number else x + x @ matrix.T
            return x

    x = torch.randn(1, WIDTH, dtype=F64, generator=torch.Generator().manual_seed(1))
    result = measure(nn.Sequential(Two(B, A), Two(C)), x, steps=Two, measures=BOTH)
    first, second = (identity - A) @ (identity + B) - identity, C
    after = x + x @ first.T
    expected = {"0": float((x @ first.T).norm() / x.norm()), "1": float((after @ second.T).norm() / after.norm())}
    assert means(result.branch_ratio) == pytest.approx(expected, rel=1e-12)
    u = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(derived_seed(0, "cotangent 0"))).double()
    shares = {}
    for name, F_l in (("1", second), ("0", first)):
        added = u @ F_l
        shares[name] = float(added.square().sum() / (added.square().sum() + u.square().sum()))
        u = u + added
    # Cancellation in u + Fᵀu - u costs a digit.
    assert means(result.branch_gradient_share) == pytest.approx(shares, rel=1e-11)


@pytest.mark.parametrize(
    "add",
    [
        lambda x, f: x + 0.5 + f,
        lambda x, f: 0.5 + x + f,
        lambda x, f: f + (x - (-0.5)),
        lambda x, f: torch.add(x, 1, alpha=0.5) + f,
        lambda x, f: torch.add(input=x, alpha=0.25, other=2) + f,
        lambda x, f: (x + f).add_(0.5),
    ],
    ids=["plus", "reversed", "minus", "alpha", "by name", "in place"],
)
def test_a_number_is_a_branch_of_its_size(add):
    """`x + ½ + g Q x`."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = orthogonal(WIDTH, 0.3)

        def forward(self, x: Tensor) -> Tensor:
            return add(x, self.inner(x))

    torch.manual_seed(0)
    model = nn.Sequential(Shifted(), Shifted()).double()
    x = torch.randn(BATCH, WIDTH, dtype=F64)
    result = measure(model, x, steps=Shifted, measures=BOTH)
    expected = {}
    with torch.no_grad():
        for name, step in model.named_children():
            branch = 0.5 + step.inner(x)
            expected[name] = float(branch.norm() / x.norm())
            x = x + branch
    assert means(result.branch_ratio) == pytest.approx(expected, rel=1e-12)
    # A number is the same whatever the input is: no gradient comes through it.
    assert result.branch_gradient_share.max == pytest.approx(0.09 / 1.09, rel=1e-11)


def test_share_gives_the_growth_rate_of_uncorrelated_branches():
    """`x + V relu(W x)`, wide: ‖Fᵀu‖² = σ²/2 for a unit u, and the growth rate is -½ ln(1 - share) = ½ ln(1 + σ²/2)."""
    width, square = 256, 0.5

    def layer() -> nn.Module:
        return Residual(
            gaussian(width, width, variance=1 / width), nn.ReLU(), gaussian(width, width, variance=square / width)
        )

    result = measure(repeated(layer, 6), normal(4, width), seeds=4, measures=[*BOTH, "growth_rate"])
    for name, share in result.branch_gradient_share.items():
        # ‖Fᵀu‖² is a product of two χ²/N with N and N/2 degrees: it varies by √(2/N + 4/N + 1/N) = 17 %; 16 of them, of which
        # the four of one seed share their weights. 4 standard errors of a mean of four are 33 %, of a share of 0.2 that is 0.055.
        assert share == pytest.approx(square / 2 / (1 + square / 2), abs=0.055)
        # u·Fᵀu has a standard deviation of √(σ²/2 / N) = 0.03 per trajectory.
        assert result.growth_rate[name].mean == pytest.approx(-0.5 * math.log1p(-share.mean), abs=4 * 0.03 / 2)


def test_a_branch_that_is_overwritten_once_it_was_added():
    """`h = x + b`, then b becomes something else, then `h + k`: what was added is summed, not what is left of it."""

    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = orthogonal(WIDTH, 0.5), orthogonal(WIDTH, 0.25)

        def forward(self, x: Tensor) -> Tensor:
            branch = self.first(x)
            h = x + branch
            branch.mul_(0)
            return h + self.second(x)

    torch.manual_seed(0)
    model = nn.Sequential(Reused(), Reused())
    x = torch.randn(BATCH, WIDTH, dtype=F64)
    result = measure(model, x, steps=Reused, measures=["branch_ratio"])
    expected = {}
    with torch.no_grad():
        for name, step in model.named_children():
            branch = step.first(x) + step.second(x)
            expected[name] = float(branch.norm() / x.norm())
            x = x + branch
    assert means(result.branch_ratio) == pytest.approx(expected, rel=1e-12)


def test_two_streams_count_together():
    """As in reversible networks: what both branches add, over both streams."""

    class Coupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = orthogonal(WIDTH, 0.1), orthogonal(WIDTH, 3.0)

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return a + self.left(b), b + self.right(a)

    class Streams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Coupled() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            a, b = x, 2 * x
            for block in self.blocks:
                a, b = block(a, b)
            return a + b

    torch.manual_seed(0)
    model = Streams()
    x = torch.randn(BATCH, WIDTH, dtype=F64)
    result = measure(model, x, steps=Coupled, measures=["branch_ratio"])
    a, b, expected = x, 2 * x, {}
    with torch.no_grad():
        for number, block in enumerate(model.blocks):
            added = torch.cat([block.left(b), block.right(a)])
            expected[f"blocks.{number}"] = float(added.norm() / torch.cat([a, b]).norm())
            a, b = block(a, b)
    assert means(result.branch_ratio) == pytest.approx(expected, rel=1e-12)


def test_shares_where_gradients_leave_the_range_of_floats():
    """Sixty steps `x - 0.9 x` take 1e-60 off a gradient, which float32 has no number for: 0.81 to 0.01 at each."""

    class Shrinking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(-0.9 * torch.eye(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return x + x @ self.weight

    model = nn.Sequential(*(Shrinking() for _ in range(60)))
    result = measure(model, torch.ones(BATCH, WIDTH), dtype=torch.float32, measures=["branch_gradient_share"])
    # 0.1 u - u is -0.9 u to the rounding of u.
    assert means(result.branch_gradient_share) == pytest.approx(
        dict.fromkeys(map(str, range(60)), 0.81 / 1.81), rel=1e-5
    )


def test_samples_without_a_gradient_have_no_share():
    """Half of the samples is masked behind the steps: the mean is over the others."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = orthogonal(WIDTH, 1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * (torch.arange(len(x)) % 2)[:, None]

    model = nn.Sequential(Step(0.5), Step(2.0), Masked())
    result = measure(model, normal(4, WIDTH), steps=["0", "1", "2"], measures=["branch_gradient_share"])
    assert result.frame == "per sample"
    assert means(result.branch_gradient_share) == pytest.approx({"0": 0.2, "1": 0.8}, rel=1e-11)


def test_gradients_of_later_readers_are_those_of_the_stream():
    """A later module reads a state, too: what comes back past the step adds to what comes through its skip.

    The last state is (x_1, x_2, x_3), for the sum behind the steps reads all three.
    """

    class Collecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Step(gain) for gain in (0.5, 1.0, 2.0))

        def forward(self, x: Tensor) -> Tensor:
            states = [x]
            for block in self.blocks:
                states.append(block(states[-1]))
            return states[1] + states[2] + states[3]

    torch.manual_seed(0)
    model, x = Collecting(), torch.randn(1, WIDTH, dtype=F64)
    result = measure(model, x, steps=Step, measures=["branch_gradient_share"])
    generator = torch.Generator().manual_seed(derived_seed(0, "cotangent 0"))
    u1, u2, u3 = (torch.randn(1, WIDTH, generator=generator).double() for _ in range(3))
    shares = {}
    with torch.no_grad():
        first, second, third = (block.inner.weight for block in model.blocks)
        shares["blocks.2"] = share(u3 @ third, u3 + u2)
        u2 = u2 + u3 + u3 @ third
        shares["blocks.1"] = share(u2 @ second, u2 + u1)
        u1 = u1 + u2 + u2 @ second
        shares["blocks.0"] = share(u1 @ first, u1)
    # Cancellation in the sums costs a digit.
    assert means(result.branch_gradient_share) == pytest.approx(shares, rel=1e-11)


def share(by_branch: Tensor, by_skip: Tensor) -> float:
    return float(by_branch.square().sum() / (by_branch.square().sum() + by_skip.square().sum()))


# Healthy and broken models ----------------------------------------------------------------------------------------


def test_zero_initialized_branches_are_exactly_zero():
    """Fixup, SkipInit, zero-initialized projections: zero survives the average over seeds on its log scale."""
    result = measure(
        repeated(lambda: Residual(gaussian(WIDTH, WIDTH, variance=1.0), nn.Tanh(), scale=0.0), 4),
        normal(BATCH, WIDTH),
        measures=BOTH,
    )
    for profile in (result.branch_ratio, result.branch_gradient_share):
        assert list(profile) == ["0", "1", "2", "3"]
        assert all(found.mean == 0 and set(found.values) == {0.0} for found in profile.values())
    result.check(branch_ratio=(None, 0.1), branch_gradient_share=(0, 0.1))


def test_layer_scale():
    """A branch of a millionth is measured as such in float32, in which the sum has lost its digits."""
    layers = repeated(lambda: Residual(orthogonal(WIDTH, 1.0), scale=1e-6), 3)
    result = measure(layers, normal(BATCH, WIDTH), dtype=torch.float32, measures=["branch_ratio"])
    assert means(result.branch_ratio) == pytest.approx(dict.fromkeys("012", 1e-6), rel=1e-5)


def test_large_embeddings_drown_the_branches():
    """Pre-normalization makes branches that do not know how large the stream is (fault 20: embeddings of std 30)."""

    def block() -> nn.Module:
        return Residual(
            nn.LayerNorm(WIDTH, eps=1e-12, dtype=F64), gaussian(WIDTH, WIDTH, variance=1 / WIDTH), nn.Tanh()
        )

    x = torch.randn(BATCH, WIDTH, dtype=F64, generator=torch.Generator().manual_seed(0))
    usual, large = (measure(repeated(block, 4), scale * x, measures=BOTH) for scale in (1.0, 30.0))
    # The first block meets the same direction; the others a stream that the first ones have turned less.
    assert large.branch_ratio["0"].mean == pytest.approx(usual.branch_ratio["0"].mean / 30, rel=1e-9)
    assert large.branch_ratio.max < 0.05 < 0.2 < usual.branch_ratio.min
    assert large.branch_gradient_share.max < 0.01 < usual.branch_gradient_share.min


class BasicBlock(nn.Module):
    """ResNet's, with a rectifier behind the sum."""

    def __init__(self, fan_in: int = 4, fan_out: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.Conv2d(fan_out, fan_out, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(fan_out) for _ in range(2))
        self.shortcut = nn.Identity() if fan_in == fan_out else nn.Conv2d(fan_in, fan_out, 1)
        self.relu = nn.ReLU(inplace=True)

    def branch(self, x: Tensor) -> Tensor:
        return self.norms[1](self.second(self.relu(self.norms[0](self.first(x)))))

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out += self.shortcut(x)
        return self.relu(out)


def test_resnet():
    """By hand, in a joint frame: the branch's RMS, and its part of the gradient in front of the rectifier."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), BasicBlock(), BasicBlock(), BasicBlock(4, 6), BasicBlock(6, 6))
    model = model.double()
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    result = measure(model, images, steps=BasicBlock, measures=BOTH)
    assert result.frame == "joint"
    # A projection in the skip is no identity.
    assert list(result.branch_ratio) == list(result.branch_gradient_share) == ["2", "3", "5"]
    with torch.no_grad():
        states = [model[:end](images) for end in range(2, 7)]
    ratios, shares = {}, {}
    u = torch.randn(states[-1].shape, generator=torch.Generator().manual_seed(derived_seed(0, "cotangent 0"))).double()
    for index in (5, 4, 3, 2):
        block, x = model[index], states[index - 2].clone().requires_grad_()
        branch, shortcut = block.branch(x), block.shortcut(x)
        total = branch + shortcut
        masked = u * (total > 0)
        if index != 4:
            ratios[str(index)] = float((branch.norm() / x.norm()).detach())
            (added,) = torch.autograd.grad(branch, x, masked, retain_graph=True)
            shares[str(index)] = float(added.square().sum() / (added.square().sum() + masked.square().sum()))
        (u,) = torch.autograd.grad(total, x, masked)
    assert means(result.branch_ratio) == pytest.approx(ratios, rel=1e-12)
    assert means(result.branch_gradient_share) == pytest.approx(shares, rel=1e-10)


def test_watching_leaves_the_model_as_it_was():
    """The second run moves BatchNorm's statistics, too; they are put back."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BasicBlock(), BasicBlock())
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    result = measure(model, images, steps=BasicBlock)
    later = result.branch_ratio
    assert later == measure(model, images, steps=BasicBlock, measures=BOTH).branch_ratio
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# What is a residual step ------------------------------------------------------------------------------------------


class PostNormed(Residual):
    """Normalization behind the sum."""

    def __init__(self) -> None:
        super().__init__(gaussian(WIDTH, WIDTH, variance=1 / WIDTH))
        self.norm = nn.LayerNorm(WIDTH, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Averaged(nn.Module):
    """`(x + f) / √2` shrinks the skip; `x ↦ f - x` turns it round; `x + f(x)` of a broadcast x spreads it."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self.inner, self.way = nn.Linear(WIDTH, WIDTH), way

    def forward(self, x: Tensor) -> Tensor:
        f = torch.tanh(self.inner(x))
        return [(x + f) / math.sqrt(2), f - x, torch.add(f, x, alpha=0.5), x * 0.9 + f][self.way]


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(*(PostNormed() for _ in range(3))),
        models.mlp,
        models.DenseNet,
        *(lambda way=way: nn.Sequential(*(Averaged(way) for _ in range(3))) for way in range(4)),
    ],
    ids=["post-norm", "plain", "concatenated", "averaged", "reversed", "halved", "shrunk"],
)
def test_steps_without_an_identity_path(build):
    width = models.WIDTH if build in {models.mlp, models.DenseNet} else WIDTH
    result = measure(build, normal(BATCH, width), dtype=F64, measures=BOTH)
    assert len(result.branch_ratio) == len(result.branch_gradient_share) == 0


def test_sums_outside_the_steps():
    """`x = x + block(x)` written around the blocks: a sum belongs to the step that runs when it is made, the next one."""
    torch.manual_seed(0)
    model = models.AddOutside(models.Branch).double()
    x = torch.randn(BATCH, models.WIDTH, dtype=F64, generator=torch.Generator().manual_seed(0))
    sums: list[float] = []
    hooks = [
        block.register_forward_hook(lambda m, args, f: sums.append(float(f.norm() / args[0].norm())))
        for block in model.blocks
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    result = measure(model, x, steps="blocks", measures=BOTH)
    assert means(result.branch_ratio) == pytest.approx({f"blocks.{i}": sums[i - 1] for i in range(1, 4)}, rel=1e-12)
    assert 0 < result.branch_gradient_share.min < result.branch_gradient_share.max < 1


def test_branches_of_random_depth_and_dropout():
    """The second run draws the masks of the first one: the model itself says what it has added."""

    added: dict[nn.Module, list[float]] = {}

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            kept = (torch.rand(len(x), 1) > 0.3) / 0.7
            branch = kept * F.dropout(torch.tanh(self.inner(x)), 0.5)
            added.setdefault(self, []).append(float((branch.norm() / x.norm()).detach()))
            return x + branch

    model = nn.Sequential(Dropped(), Dropped())
    result = measure(model, torch.ones(BATCH, WIDTH), steps=Dropped, measures=BOTH)
    for name, layer in model.named_children():
        assert result.branch_ratio[name].mean == pytest.approx(added[layer][0], rel=1e-6)
        assert added[layer][0] == added[layer][1]


def test_a_model_that_does_something_else_the_second_time():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = nn.Linear(WIDTH, WIDTH), []

        def forward(self, x: Tensor) -> Tensor:
            self.calls.append(1)
            for _ in self.calls:
                x = x + self.inner(x)
            return x

    from pytest_trainability.errors import ModelError

    with pytest.raises(
        ModelError, match=r"both runs must do the same. 0 made 1 additions in the first run and 2 in the second"
    ):
        measure(nn.Sequential(Counting(), Counting()), torch.ones(BATCH, WIDTH), measures=["branch_ratio"])


def test_euler_steps_along_time():
    """`h + dt f(h)`: residual steps in time."""

    class Euler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = Step(0.1)

        def forward(self, h: Tensor) -> Tensor:
            for _ in range(10):
                h = self.cell(h)
            return h

    result = measure(lambda: Euler(), normal(BATCH, WIDTH), steps="time", measures=BOTH)
    assert len(result.branch_ratio) == 10
    assert result.branch_ratio.min == pytest.approx(0.1, rel=1e-12)
    assert result.branch_gradient_share.max == pytest.approx(0.01 / 1.01, rel=1e-9)


# Models of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "bart", "mixtral"])
def test_transformers(architecture):
    """What blocks return less what they were given, seen by hooks; BART normalizes behind its sums."""
    pytest.importorskip("transformers")
    case = next(case for case in zoo.CASES if case.id == architecture)
    torch.manual_seed(0)
    model, inputs = case.build(), case.inputs(torch.Generator().manual_seed(0))
    found: dict[str, float] = {}
    result = measure(model, inputs, train=False, measures=BOTH)
    kinds = {str(step) for step in result.steps}
    handles = []
    for path, module in model.named_modules():
        if path in kinds:
            handles.append(module.register_forward_hook(_ratio_into(found, path)))
    with torch.no_grad():
        model.eval()(**inputs)
    for handle in handles:
        handle.remove()
    if architecture == "bart":
        assert len(result.branch_ratio) == 0
    else:
        # float32: hooks see what sums differ by.
        assert means(result.branch_ratio) == pytest.approx(found, rel=1e-4)
        assert all(0 < share < 1 for share in means(result.branch_gradient_share).values())


def _ratio_into(found: dict[str, float], path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        after = output[0] if isinstance(output, tuple) else output
        found[path] = float((after - args[0]).norm() / args[0].norm())

    return hook


def test_older_of_two_tensors_is_the_stream():
    """Both operands of a sum made around the blocks lead back to the state; the branch is the younger one."""
    cut = models.cut_case(next(case for case in models.ARCHITECTURES if case.id == "add-outside"))
    for index in range(2, len(cut.chain) + 1):
        for skip in skips_of(cut.chain, index):
            places = [cut.graph.place[node] for node, _ in cut.chain.cut.states[index - 1]]
            assert places[skip.earlier] == min(places)
