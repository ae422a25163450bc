"""Constants that the code of modules passes to PyTorch functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from torch import Tensor, nn

from pytest_trainability.engine.capture.recorder import capture
from pytest_trainability.engine.capture.settings import SettingsObserver


class Code(nn.Module):
    """Runs a function of itself and of its input."""

    def __init__(self, run: Callable[[Code, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.inner, self.table = nn.Tanh(), nn.Parameter(torch.zeros(5, 4))
        self.register_buffer("factor", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def no_gradient(run: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return run()


def settings(model: nn.Module, x: Tensor) -> dict[str, list[str]]:
    found: dict[str, list[str]] = (
        capture(model, (x,), {}, instruments=(SettingsObserver,)).watched[SettingsObserver].found
    )
    return found


CALLS: dict[str, tuple[Callable[[Code, Tensor], Tensor], list[str]]] = {
    "a dimension": (lambda m, x: x.softmax(-1), ["softmax(dim=-1)"]),
    "named": (lambda m, x: torch.mean(x, dim=1, keepdim=True) * x, ["mean(dim=1, keepdim=True)"]),
    "a factor": (lambda m, x: 3 * x, ["mul(3)"]),
    "in place": (lambda m, x: x.clone().mul_(0.1), ["mul(0.1)"]),
    "a constant tensor": (lambda m, x: x * m.factor, ["mul(0.5)"]),
    "a computed constant": (lambda m, x: x / torch.tensor(9.0).sqrt(), ["tensor(9)", "sqrt(9)", "div(3)"]),
    "a maximum": (lambda m, x: x.max(1).values[:, None] + x, ["max(1)", "getitem((:))"]),
    "two tensors": (lambda m, x: x + x * x, []),
    "a number of the input": (lambda m, x: x * x.mean(), []),
    "a function of PyTorch": (lambda m, x: F.layer_norm(x, (4,), eps=0.1), ["layer_norm((4), eps=0.1)"]),
    "defaults": (lambda m, x: F.gelu(x, approximate="none"), []),
    "another than the default": (lambda m, x: F.gelu(x, approximate="tanh"), ["gelu(approximate='tanh')"]),
    "a number computed in place": (
        lambda m, x: x * no_gradient(lambda: m.factor.copy_(x.mean())),
        ["mean(no_grad)", "copy(0.5)"],
    ),
    "what a module returned": (lambda m, x: m.inner(x) * 2, ["mul(inner, 2)"]),
    "shapes": (lambda m, x: x.view(1, -1).expand(2, -1).reshape(-1, 4), []),
    "positions": (lambda m, x: x[0] + m.table[torch.arange(4)], ["getitem(0)", "arange(4)", "getitem(table, 0…3)"]),
    "one position": (
        lambda m, x: x + m.table[torch.zeros(3, dtype=torch.long)].sum(0),
        ["zeros(3, dtype=int64)", "getitem(table, 0…0)", "sum(dim=0)"],
    ),
    "a graph that is cut": (
        lambda m, x: m.inner(x).detach() + x.detach() * m.table[0, 0],
        ["detach(inner)", "detach()", "getitem(table, (0, 0))"],
    ),
    "what has no graph": (lambda m, x: x + no_gradient(lambda: m.inner(x) * x), ["mul(inner, no_grad)"]),
    "what needs no graph": (
        lambda m, x: x + no_gradient(lambda: torch.zeros_like(x) + (x > 0) * m.factor),
        ["gt(0)", "mul(0.5)"],
    ),
    "positions of the input": (lambda m, x: m.table[x.argmax(-1)] + x, ["argmax(-1)"]),
    "slices": (lambda m, x: x[:, 1:], ["getitem((:, 1:))"]),
    "a mask": (
        lambda m, x: x.masked_fill(torch.ones(3, 4).triu(1).bool(), -1e9),
        ["ones(3, 4)", "triu(diagonal=1)", "masked_fill(value=-1e+09)"],
    ),
}


@pytest.mark.parametrize(("run", "texts"), CALLS.values(), ids=CALLS.keys())
def test_the_constants_of_a_call_are_noted(run: Callable[[Code, Tensor], Tensor], texts: list[str]) -> None:
    assert settings(Code(run), torch.randn(3, 4)).get("Code", []) == texts


def test_calls_belong_to_the_module_whose_code_makes_them() -> None:
    inner = Code(lambda m, x: m.inner(x) + 1)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.LayerNorm(4, eps=0.5), inner), nn.Dropout(0.25))
    assert settings(model, torch.randn(3, 4)) == {
        "1.0": ["layer_norm((4), eps=0.5)"],
        "1.1": ["add(inner, 1)"],
        "2": ["dropout(p=0.25)"],
    }


class Reads(nn.Module):
    """Hands a mask, a factor or a scaled input to the modules inside it."""

    def __init__(self, give: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.give, self.first, self.second = give, nn.Linear(4, 4), nn.Bilinear(4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        given = self.give(x)
        return self.second(self.first(given), given.view(-1, 4))  # type: ignore[no-any-return]


READ: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, list[tuple[str, str]]]]] = {
    "through functions and copies of sizes": (
        lambda x: (x.reshape(4, 3).T / 3).clone(),
        {"div(3)": [("first", ""), ("second", "input2")]},
    ),
    "by the calling code itself": (lambda x: (x > 0) * x, {}),
    "several calls": (
        lambda x: (x - 0.5) * 2,
        {"sub(0.5)": [("first", ""), ("second", "input2")], "mul(2)": [("first", ""), ("second", "input2")]},
    ),
    "no constant": (lambda x: x + x, {}),
}


@pytest.mark.parametrize(("give", "readers"), READ.values(), ids=READ.keys())
def test_what_inner_modules_read_is_followed(
    give: Callable[[Tensor], Tensor], readers: dict[str, list[tuple[str, str]]]
) -> None:
    observer = capture(Reads(give), (torch.randn(3, 4),), {}, instruments=(SettingsObserver,)).watched[SettingsObserver]
    assert {text: [*found] for (_, text), found in observer.readers.items()} == readers


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_fused_layers_have_named_flags(kind: type[nn.RNNBase]) -> None:
    calls = settings(kind(4, 4, batch_first=True), torch.randn(2, 3, 4))[kind.__name__]
    assert "num_layers=1, dropout=0, train=True, bidirectional=False, batch_first=True" in calls[-1]


def test_the_observer_changes_no_result() -> None:
    model, x = Code(lambda m, x: m.inner(x.softmax(-1)) * 2 + m.table[torch.arange(3)]), torch.randn(3, 4)
    watched = capture(model, (x,), {}, instruments=(SettingsObserver,))
    assert torch.equal(watched.output, model(x))
