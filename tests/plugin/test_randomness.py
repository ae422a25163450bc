"""Random numbers of tests that measure: they do not depend on the tests that ran before."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pytest_trainability import measure
from pytest_trainability.engine import isolation

if TYPE_CHECKING:
    from _pytest.pytester import Pytester

DRAWS = """
import json, random
from pathlib import Path
import numpy, pytest, torch
from small_nets import images, net

def drawn():
    return [*torch.randn(2).tolist(), random.random(), numpy.random.rand()]

def keep(name, *values):
    Path(f"{name}.drawn").write_text(json.dumps(values))

@pytest.fixture
def data():
    return drawn()

def test_a(trainability):
    keep("a", drawn())

def test_plain():
    drawn()

@pytest.mark.trainability
def test_b(data):
    keep("b", data, drawn())

def test_c(trainability, data):
    first = drawn()
    trainability(net, images, seeds=2)
    keep("c", data, first, drawn())
"""


def draws(project: Pytester, *args: str) -> dict[str, list[list[float]]]:
    """Run a session, and return the numbers that each test drew."""
    assert project.runpytest_inprocess("-p", "no:cacheprovider", *args).ret == pytest.ExitCode.OK
    found = {path.stem: json.loads(path.read_text()) for path in project.path.glob("*.drawn")}
    for path in project.path.glob("*.drawn"):
        path.unlink()
    return found


def test_draws_of_body_and_fixtures_do_not_depend_on_other_tests(project: Pytester) -> None:
    project.makepyfile(test_it=DRAWS)
    together = draws(project)
    assert set(together) == {"a", "b", "c"}
    reordered = draws(project, "test_it.py::test_c", "test_it.py::test_b", "test_it.py::test_a")
    alone = {name: draws(project, f"test_it.py::test_{name}")[name] for name in "abc"}
    assert reordered == together
    assert alone == together


LATE = """
import random
import numpy, pytest, torch
from small_nets import images, net

def drawn():
    return [*torch.randn(2).tolist(), random.random(), numpy.random.rand()]

@pytest.fixture
def data():
    return drawn()

def test_late(request, data):
    print("DRAWN", data, drawn())
    request.getfixturevalue("trainability")(net, images, seeds=1)

@pytest.fixture
def measured(request):
    return request.getfixturevalue("trainability")

def test_by_a_fixture(measured, data):
    print("DRAWN", data, drawn())

def test_by_a_helper(request):
    request.getfixturevalue(chr(116) + "rainability")(net, images, seeds=1)
    print("DRAWN", drawn())

def test_plain():
    print("FREE", drawn())
"""
LATE_DOCTEST = """
>>> import torch
>>> torch.randn(2).tolist() == DRAWN
True
>>> take = getfixture('trainability')
"""


def test_tests_that_take_the_fixture_while_they_run_draw_the_same_numbers(project: Pytester) -> None:
    torch.manual_seed(3)
    project.makepyfile(test_it=LATE)
    outlines = [project.runpytest_inprocess("-s").outlines for _ in range(2)]
    drawn, free = ([[line for line in run if word in line] for run in outlines] for word in ("DRAWN", "FREE"))
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3
    assert free[0] != free[1], "a test that does not measure goes on with the numbers of the session"


def test_a_doctest_that_takes_the_fixture_draws_the_same_numbers(project: Pytester) -> None:
    """Doctests have no function whose call could be seeded."""
    generator = torch.Generator().manual_seed(isolation.derived_seed(0, "body"))
    project.makefile(".txt", test_doc=LATE_DOCTEST.replace("DRAWN", repr(torch.randn(2, generator=generator).tolist())))
    project.runpytest_inprocess().assert_outcomes(passed=1)


def test_measurement_does_not_change_the_generators_of_the_test(project: Pytester) -> None:
    project.makepyfile(
        test_it="""
        import torch
        from pytest_trainability.engine import isolation
        from small_nets import images, net
        def test_it(trainability):
            trainability(net, images, seeds=2)
            after = torch.randn(3)
            torch.default_generator.manual_seed(isolation.derived_seed(0, "body"))
            assert torch.equal(after, torch.randn(3))
        """
    )
    project.runpytest_inprocess().assert_outcomes(passed=1)


def test_fixture_and_body_draw_different_numbers(project: Pytester) -> None:
    """Inputs from a fixture and weights from the body must be independent."""
    project.makepyfile(test_it=DRAWS)
    fixture, body = draws(project)["b"]
    assert not set(fixture) & set(body)


@pytest.mark.parametrize("scope", ["class", "module", "session"])
def test_draws_of_fixtures_do_not_depend_on_shared_fixtures(project: Pytester, scope: str) -> None:
    project.makepyfile(
        test_it=DRAWS
        + f"""
@pytest.fixture(scope={scope!r})
def shared():
    return drawn()

class TestShared:
    def test_d(self, trainability, shared, data):
        keep("d", shared, data)

    def test_e(self, trainability, shared, data):
        keep("e", shared, data)
"""
    )
    together = draws(project, "-k", "TestShared")
    alone = draws(project, "-k", "test_e")
    assert alone["e"] == together["e"]


def test_tests_that_do_not_measure_keep_their_generators(project: Pytester) -> None:
    """Neither the plugin nor a measuring test between them changes their random numbers."""
    project.makepyfile(
        test_it="""
        import random
        import numpy, torch
        from small_nets import images, net

        torch.manual_seed(11), random.seed(11), numpy.random.seed(11)
        found = []

        def draw():
            found.append([torch.rand(1).item(), random.random(), numpy.random.rand()])

        def test_before():
            draw()

        def test_measures(trainability):
            torch.rand(7), random.random(), numpy.random.rand(3)
            trainability(net, torch.randn(4, 8), seeds=2)

        def test_after():
            draw()
            torch.manual_seed(11), random.seed(11), numpy.random.seed(11)
            undisturbed = [[torch.rand(1).item(), random.random(), numpy.random.rand()] for _ in range(2)]
            assert found == undisturbed
        """
    )
    project.runpytest_inprocess().assert_outcomes(passed=3)


def test_session_restores_the_generators(project: Pytester) -> None:
    project.makepyfile(test_it=DRAWS)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    draws(project, "-m", "trainability")
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_measure_gives_the_same_numbers_outside_the_fixture(project: Pytester) -> None:
    """``measure`` in a test, the fixture, and ``measure`` outside a session agree."""
    project.makepyfile(
        test_it="""
        import json
        from pathlib import Path
        from pytest_trainability import measure
        from small_nets import images, net

        def keep(name, result):
            found = {"log_gain": result.log_gain.values, "norms": [e.values for e in result.gradient_norm.values()]}
            Path(f"{name}.drawn").write_text(json.dumps([found]))

        def test_plain():
            keep("plain", measure(net, images, seeds=3))

        def test_fixture(trainability):
            keep("fixture", trainability(net, images, seeds=3))
        """
    )
    found = draws(project)

    def net() -> torch.nn.Module:
        return torch.nn.Sequential(*(layer for _ in range(6) for layer in (torch.nn.Linear(8, 8), torch.nn.Tanh())))

    here = measure(net, torch.linspace(-1, 1, 32).reshape(4, 8), seeds=3)
    assert found["plain"] == found["fixture"]
    assert found["plain"][0]["log_gain"] == list(here.log_gain.values)  # type: ignore[call-overload]


def test_draws_of_a_session_fixture_do_not_depend_on_the_test_that_sets_it_up(project: Pytester) -> None:
    """A test that does not measure may set the fixture up."""
    project.makepyfile(
        test_it="""
        import pytest, torch

        @pytest.fixture(scope="session")
        def batch():
            return torch.randn(3)

        def test_first(batch):
            print("DRAWN", batch.tolist())

        def test_measures(batch, trainability):
            print("DRAWN", batch.tolist())
        """
    )
    together, alone = (project.runpytest_inprocess("-s", *names).outlines for names in ([], ["-k", "measures"]))
    assert len({line.partition("DRAWN")[2] for line in (*together, *alone) if "DRAWN" in line}) == 1


def test_module_draws_the_same_numbers_in_every_session(project: Pytester) -> None:
    """The numbers that a module draws at import do not depend on the modules before."""
    project.makepyfile(test_a="import torch\ntorch.randn(5)\ndef test_a():\n    pass")
    project.makepyfile(
        test_it="""
        import torch
        batch = torch.randn(3)

        def test_measures(trainability):
            print("DRAWN", batch.tolist())
        """
    )
    runs = [project.runpytest_subprocess("-s", *names).outlines for names in ([], ["test_it.py"])]
    assert len({line.partition("DRAWN")[2] for lines in runs for line in lines if "DRAWN" in line}) == 1


@pytest.mark.parametrize(
    "line", ["from torch import nn, randn", "import pytest, torch", "from small_nets import net, torch"]
)
def test_module_is_seeded_for_every_form_of_importing_torch(project: Pytester, line: str) -> None:
    project.makepyfile(
        test_it=f"""
        {line}
        batch = {"randn" if "randn" in line else "torch.randn"}(3)

        def test_measures(trainability):
            print("DRAWN", batch.tolist())
        """
    )
    runs = [project.runpytest_inprocess("-s").outlines for _ in range(2)]
    assert len({line.partition("DRAWN")[2] for lines in runs for line in lines if "DRAWN" in line}) == 1
