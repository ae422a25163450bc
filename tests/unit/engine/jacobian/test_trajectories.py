"""Trajectories: divisions of states, and states as vectors of real numbers."""

from __future__ import annotations

from dataclasses import replace

import models
import pytest
import torch
from models import ARCHITECTURES, BATCH, WIDTH
from products import some_cotangents
from torch import nn

from pytest_trainability.engine.jacobian.trajectories import Division, Trajectories, factorized_on, possible_divisions

BY_ID = {case.id: case for case in ARCHITECTURES}


def test_names() -> None:
    assert Division(4).name == "per sample"
    assert Division(1).name == "joint"


@pytest.mark.parametrize(
    ("division", "shape"),
    [
        (Division(3, 0), (3, 5)),
        (Division(3, 0), (6, 2, 2)),
        (Division(3, 1), (4, 3, 2)),
        (Division(1), (4, 3)),
        (Division(1), ()),
    ],
    ids=str,
)
def test_rows_restore_and_multiply_agree(division: Division, shape: tuple[int, ...]) -> None:
    """Reshaping, its inverse, and factors by trajectory describe the same division."""
    columns = torch.randn(2, *shape, dtype=torch.float64)
    rows = division.rows(columns)
    assert rows.shape == (division.count, 2, columns[0].numel() // division.count)
    assert torch.equal(division.restore(rows, torch.Size(shape)), columns)
    factors = torch.arange(1, division.count + 1, dtype=torch.float64)
    scaled = torch.stack([division.multiply(column, factors) for column in columns])
    assert torch.equal(division.rows(scaled), rows * factors[:, None, None])
    for number, column in enumerate(columns):
        torch.testing.assert_close(division.norms([column, None]), rows[:, number].norm(dim=1))


def test_an_unknown_dimension_is_the_first_of_the_right_length() -> None:
    """A recurrent state may hold (samples, units) and (layers, samples, units)."""
    division = Division(3, None)
    flat, layered = torch.randn(1, 3, 5), torch.randn(1, 2, 3, 5)
    assert torch.equal(division.rows(flat)[:, 0], flat[0])
    assert torch.equal(division.rows(layered)[:, 0], layered[0].transpose(0, 1).reshape(3, 10))
    assert torch.equal(division.restore(division.rows(layered), layered.shape[1:]), layered)


@pytest.mark.parametrize(
    ("division", "yes", "no"),
    [
        (Division(3, 0), [(3,), (6, 2)], [(), (4, 3)]),
        (Division(3, 1), [(4, 3), (4, 6, 2)], [(3,), (3, 4)]),
        (Division(3, None), [(5, 3), (6, 5), (3,)], [(), (5, 6)]),
        (Division(1, 1), [(), (3,), (4, 5)], []),
    ],
    ids=str,
)
def test_a_tensor_is_divided_if_its_dimension_is_a_multiple(division: Division, yes: list, no: list) -> None:
    assert all(division.divides(shape) for shape in yes)
    assert not any(division.divides(shape) for shape in no)
    for shape in yes:
        assert division.norms([torch.ones(shape)]).square().sum() == pytest.approx(torch.ones(shape).numel())


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(4, 5)], [Division(4, 0)]),
        ([(8, 5), (4,)], [Division(4, 0)]),
        ([(4, 4)], [Division(4, 0), Division(4, 1)]),
        ([(3, 4), (2, 4, 5)], [Division(4, 1)]),
        ([(4, 5), (3, 4)], []),
        ([(4, 5), ()], []),
        ([(3, 4), (4,)], []),
    ],
    ids=str,
)
def test_possible_divisions(shapes: list[tuple[int, ...]], expected: list[Division]) -> None:
    assert list(possible_divisions(shapes, 4)) == expected


# States as vectors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "unet", "complex-state", "mixed-complex-state", "encoder-decoder"])
def test_rows_and_columns_are_inverse_and_isometric(name: str) -> None:
    chain = models.cut_case(BY_ID[name], dtype=torch.float64).chain
    joint, last = Trajectories(chain, Division(1)), len(chain)
    columns = some_cotangents(chain)
    rows = joint.as_rows(last, columns)
    assert rows.shape == (1, 3, joint.dimensions(last)) and rows.dtype == torch.float64
    for back, column in zip(joint.as_columns(last, rows), columns):
        assert back is not None and column is not None
        assert back.dtype == column.dtype and torch.equal(back, column)
    for number in range(3):
        norm = joint.division.norms([None if c is None else c[number] for c in columns])
        assert float(norm) == pytest.approx(float(rows[0, number].norm()), rel=1e-14)


def test_a_complex_number_has_two_dimensions() -> None:
    chain = models.cut_case(BY_ID["complex-state"]).chain
    index = next(i for i in range(len(chain) + 1) if chain.shapes(i)[0][1].is_complex)
    joint = Trajectories(chain, Division(1))
    assert joint.dimensions(index) == 2 * sum(shape.numel() for shape, _ in chain.shapes(index))
    assert Trajectories(chain, Division(BATCH)).dimensions(index) == joint.dimensions(index) // BATCH


def test_zero_cotangents_are_rows_of_zeros() -> None:
    chain = models.cut(models.mlp(2), torch.randn(BATCH, WIDTH)).chain
    rows = Trajectories(chain, Division(BATCH)).as_rows(0, [None], count=2)
    assert rows.shape == (BATCH, 2, WIDTH) and rows.dtype == torch.float32 and not rows.any()


def test_rows_are_padded_to_the_least_number_of_dimensions() -> None:
    chain = models.cut(models.mlp(2), torch.randn(BATCH, WIDTH)).chain
    trajectories, columns = Trajectories(chain, Division(BATCH)), [torch.randn(1, BATCH, WIDTH)]
    rows = trajectories.as_rows(0, columns, least=WIDTH + 2, dtype=torch.float64)
    assert rows.shape == (BATCH, 1, WIDTH + 2) and rows.dtype == torch.float64
    assert torch.equal(rows[:, :, :WIDTH].float(), trajectories.as_rows(0, columns)) and not rows[:, :, WIDTH:].any()


def test_half_precision_is_factorized_in_float32() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).bfloat16()
    trajectories = Trajectories(models.cut(model, torch.randn(2, 4, dtype=torch.bfloat16)).chain, Division(2))
    rows = trajectories.as_rows(0, [torch.randn(1, 2, 4, dtype=torch.bfloat16)])
    (column,) = trajectories.as_columns(0, rows)
    assert rows.dtype == torch.float32
    assert column is not None and column.dtype == torch.bfloat16


def test_vectors_are_factorized_on_the_cpu_where_a_device_has_no_factorizations() -> None:
    assert factorized_on(torch.device("mps")) == torch.device("cpu")
    assert factorized_on(torch.device("cuda", 1)) == torch.device("cuda", 1)


# Acting steps ----------------------------------------------------------------------------------------------------


def test_all_steps_act_on_all_trajectories() -> None:
    chain = models.cut(models.mlp(2), torch.randn(3, WIDTH)).chain
    assert Trajectories(chain, Division(3)).acting().tolist() == [[True] * 3] * 2


def test_steps_act_on_the_first_trajectories_of_a_packed_batch() -> None:
    """None means all; a joint trajectory is acted on in every step."""
    chain = replace(models.cut(models.mlp(3), torch.randn(3, WIDTH)).chain, active=(None, 2, 1))
    assert Trajectories(chain, Division(3)).acting().int().tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert Trajectories(chain, Division(1)).acting().tolist() == [[True]] * 3
