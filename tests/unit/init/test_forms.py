"""What initial values look like: each form of a parameter is recognized, on several seeds and on a single draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from pytest_trainability import UsageError
from pytest_trainability.init.forms import forms_of
from pytest_trainability.records.initial_values import InitialValues

I = nn.init  # noqa: E741


def forms(build: Callable[[], nn.Module], seeds: int = 4) -> dict[str, InitialValues]:
    def models() -> Iterator[tuple[int, nn.Module]]:
        for seed in range(seeds):
            torch.manual_seed(seed)
            yield seed, build()

    with torch.random.fork_rng(devices=[]):
        return forms_of(models())


class One(nn.Module):
    """A model with one parameter."""

    def __init__(self, made: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(made)


def filled(fill: Callable[[Tensor], object], *shape: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        made = torch.empty(shape)
        fill(made)
        return One(made)

    return build


def with_zero_row(weight: Tensor) -> None:
    I.normal_(weight, std=0.02)
    weight[1] = 0


CASES: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "zeros": (filled(I.zeros_, 7), "constant", "constant 0"),
    "ones": (filled(I.ones_, 7, 3), "constant", "constant 1"),
    "another constant": (filled(lambda t: t.fill_(0.1), 7), "constant", "constant 0.1"),
    "normal": (filled(lambda t: I.normal_(t, std=0.02), 80, 50), "normal", "normal, std 0.02"),
    "normal around one": (filled(lambda t: I.normal_(t, 1.0, 0.02), 80, 50), "normal", "normal, std 0.02, mean 1"),
    "truncated": (
        filled(lambda t: I.trunc_normal_(t, std=0.02, a=-0.04, b=0.04), 80, 50),
        "truncated normal",
        "truncated normal, std 0.0176, within ±0.04",
    ),
    "uniform": (filled(lambda t: I.uniform_(t, -0.1, 0.1), 80, 50), "uniform", "uniform within ±0.1"),
    "uniform from zero": (filled(lambda t: I.uniform_(t, 0, 1), 80, 50), "uniform", "uniform from 0 to 1"),
    "orthogonal": (filled(lambda t: I.orthogonal_(t, 1.4), 40, 30), "orthogonal", "orthogonal, gain 1.4"),
    "identity": (filled(I.eye_, 9, 9), "identity", "identity"),
    "scaled identity": (filled(lambda t: I.eye_(t).mul_(0.9), 9, 9), "identity-like", "near 0.9 × identity"),
    "noisy identity": (
        filled(lambda t: I.eye_(t).add_(torch.randn_like(t), alpha=1e-3), 40, 40),
        "identity-like",
        "near 1 × identity",
    ),
    "dirac": (filled(I.dirac_, 8, 8, 3), "dirac", "dirac"),
    "sparse": (filled(lambda t: I.sparse_(t, 0.75), 60, 60), "sparse", "75 % zeros, rms of the others 0.0…"),
    "a padding row": (filled(with_zero_row, 60, 50), "normal", "normal, std 0.02, row 1 zero"),
    "not finite": (filled(lambda t: t.fill_(1)[0].fill_(math.nan), 4), "not finite", "1 of 4 entries are NaN…"),
    "exponential": (filled(lambda t: t.exponential_(), 60, 60), "unknown", "mean …"),
    "empty": (filled(lambda t: t, 0, 3), "unknown", "empty"),
}


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize(("build", "form", "text"), CASES.values(), ids=CASES.keys())
def test_a_form_is_recognized(build: Callable[[], nn.Module], form: str, text: str, seeds: int) -> None:
    found = forms(build, seeds)["w"]
    assert found.form == form
    beginning = text.removesuffix("…")
    assert found.text.startswith(beginning) if beginning != text else found.text == text


def test_size_mean_and_outlier_are_those_of_all_entries() -> None:
    """Also where a row of zeros is left out of the distribution."""
    weights = []

    def build() -> nn.Module:
        made = torch.randn(40, 30).double()
        made[2] = 0
        weights.append(made)
        return One(made)

    found, together = forms(build)["w"], torch.stack(weights)
    rms = float(together.square().mean().sqrt())
    assert (found.shape, found.dtype, found.kind) == ((40, 30), "float64", "parameter")
    assert found.rms == pytest.approx(rms, rel=1e-12)
    assert found.mean == pytest.approx(float(together.mean()), rel=1e-9)
    assert found.outlier == pytest.approx(float(together.abs().max()) / rms, rel=1e-12)


def test_what_has_no_numbers_has_none() -> None:
    broken, zero = forms(CASES["not finite"][0])["w"], forms(CASES["zeros"][0])["w"]
    assert math.isnan(broken.rms)
    assert math.isnan(broken.outlier)
    assert (zero.rms, zero.mean) == (0, 0)
    assert math.isnan(zero.outlier)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(30, 20)
        self.head = nn.Linear(20, 30, bias=False)
        self.head.weight = self.wte.weight
        self.target = nn.Parameter(self.wte.weight.detach().clone())


def test_tied_and_copied_parameters_name_the_first_one() -> None:
    found = forms(Tied)
    assert (found["head.weight"].form, found["head.weight"].text) == ("tied", "tied to wte.weight")
    assert found["head.weight"].rms == found["wte.weight"].rms
    assert (found["wte.weight"].form, found["wte.weight"].text) == ("copied", "the same entries as target")


class Seeded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        own = torch.Generator().manual_seed(0)
        self.seeded = nn.Parameter(torch.randn(40, 30, generator=own))
        self.turned = nn.Parameter(I.orthogonal_(torch.empty(20, 20), generator=own))
        self.drawn = nn.Linear(30, 40)
        self.steps = nn.Parameter(torch.linspace(-1, 1, 200))
        self.register_buffer("table", torch.sin(torch.arange(100.0)[:, None] * torch.arange(1, 9) / 9))
        self.register_buffer("hidden", torch.zeros(3), persistent=False)
        self.register_buffer("count", torch.tensor(0))


def test_what_is_not_drawn_again_between_seeds_says_so() -> None:
    found = forms(Seeded)
    assert found["seeded"].text == "normal, std 1, not drawn again between seeds"
    assert found["turned"].text == "orthogonal, gain 1, not drawn again between seeds"
    assert {name for name, values in found.items() if values.redrawn} == {"drawn.weight", "drawn.bias"}


def test_tables_are_no_draws() -> None:
    found = forms(Seeded)
    assert found["steps"].form == found["table"].form == "table"
    assert found["steps"].text.endswith("the same on all seeds")


def test_equal_steps_are_no_uniform_draw_on_a_single_seed_either() -> None:
    found = forms(Seeded, seeds=1)
    assert found["steps"].form == found["table"].form == "unknown"
    assert not any(values.redrawn for values in found.values())


def test_floating_buffers_follow_the_parameters() -> None:
    found = forms(Seeded)
    assert [name for name, values in found.items() if values.kind == "buffer"] == ["table", "hidden"]
    assert list(found)[-2:] == ["table", "hidden"]


def test_layers_share_the_form_that_agrees_with_all() -> None:
    def build() -> nn.Module:
        layers = nn.ModuleList(nn.Linear(24, 24, bias=False) for _ in range(6))
        for layer in layers:
            I.normal_(layer.weight, std=0.02)
        return layers

    assert {values.text for values in forms(build, seeds=1).values()} == {"normal, std 0.02"}


def test_complex_and_integer_parameters_have_a_row() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Parameter(torch.randn(30, 30, dtype=torch.complex64))
            self.i = nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)

    found = forms(Other)
    assert (found["c"].form, found["c"].dtype) == ("normal", "complex64")
    assert found["i"].text == "of type int64"


def test_complex_unitary_matrices_are_orthogonal() -> None:
    """With the gain 1, whose real and imaginary parts have an rms of 1/√(2n) each."""

    def build() -> nn.Module:
        return One(torch.linalg.qr(torch.randn(16, 16, dtype=torch.complex64)).Q)

    assert forms(build)["w"].text == "orthogonal, gain 1"


def test_models_with_other_parameters_are_refused() -> None:
    def build() -> nn.Module:
        return nn.Linear(2, 2, bias=torch.initial_seed() == 0)

    with pytest.raises(UsageError, match="seed 1 has others than the first one"):
        forms(build)
