"""Names, shapes and fans of parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pytest_trainability import UsageError
from pytest_trainability.init.places import Place, fans_of, tensors_of


@pytest.mark.parametrize("shape", [(3, 4), (8, 4, 3), (6, 2, 5, 3), (4, 3, 2, 2, 2)])
def test_fans_are_those_of_torch(shape: tuple[int, ...]) -> None:
    """``xavier_uniform_`` of torch draws within ``√(6 / (fan_in + fan_out))``, ``kaiming_uniform_`` within ``√(6 / fan_in)``."""
    fan_in, fan_out = fans_of(Place("w", shape))
    torch_fans = nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    assert (fan_in, fan_out) == torch_fans


def test_a_vector_has_no_fans() -> None:
    with pytest.raises(UsageError, match=r"two or more dimensions. 'b' has the shape \(3,\)"):
        fans_of(Place("b", (3,)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.wte = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.wte.weight
        self.norm = nn.BatchNorm1d(3)
        self.blocks = nn.ModuleList([self.norm, self.norm])


def test_numbers_of_heads_are_facts_if_there_are_several() -> None:
    """A rule may divide by them. One head, and a switch that is called a head, explain nothing."""
    model = nn.ModuleList([nn.Linear(2, 2) for _ in range(5)])
    for module, (name, value) in zip(
        model, [("num_heads", 1), ("n_head", 8), ("heads", 2), ("head_mask", True), ("width", 9)]
    ):
        setattr(module, name, value)
    assert tensors_of(model).facts == {"heads": (2, 8)}
    assert tensors_of(model[0]).facts == {}


def test_all_names_lead_to_shared_tensors() -> None:
    found = tensors_of(Tied())
    assert found.parameters["head.weight"] is found.parameters["wte.weight"]
    assert {"norm.weight", "blocks.0.weight", "blocks.1.weight"} <= found.parameters.keys()
    assert {"norm.running_mean", "blocks.1.num_batches_tracked"} <= found.buffers.keys()
    assert found.place("head.bias") == Place("head.bias", (5,), (5, 3))
    assert found.facts == {"heads": (4,)}
    assert found.place("head.bias").of_shape((2,)).weight == (5, 3)


def test_parametrized_weights_are_computed_and_leave_the_model_alone() -> None:
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 5)), parametrizations.weight_norm(nn.Linear(5, 4))
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = tensors_of(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert found.sources == {
        "0.weight": ("0.parametrizations.weight.original",),
        "1.weight": ("1.parametrizations.weight.original0", "1.parametrizations.weight.original1"),
    }
    assert torch.equal(found.parametrized["1.weight"], model[1].weight)
    assert not found.parametrized["0.weight"].requires_grad
    assert found.place("1.weight") == Place("1.weight", (4, 5), None)
    assert found.place("1.bias") == Place("1.bias", (4,), (4, 5))


def test_a_module_below_itself_and_a_missing_one_add_no_names() -> None:
    model = nn.Module()
    model.layer = nn.Linear(2, 2)
    model.layer.parent = model
    model.register_module("missing", None)
    assert list(tensors_of(model).parameters) == ["layer.weight", "layer.bias"]
