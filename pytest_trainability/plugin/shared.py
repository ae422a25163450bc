"""``trainability_factory``: one measurement for several tests, made by a fixture of their module, class, package or session."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import pytest

from .collected import node_id
from .collection import MARKER, marker_settings
from .fixture import Trainability, context_settings, with_settings
from .gate import placed
from .unmeasured import cause_in_user_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from ..measurement import Measurement

__all__ = [
    "SHARED",
    "SharedMeasurements",
    "TrainabilityFactory",
    "judge_shared",
    "trainability_factory",
    "wide_scope_explained",
]


class SharedMeasurements:
    """The measurements of a session that no test owns. They live as long as the fixtures that hold them."""

    def __init__(self) -> None:
        self._found: WeakValueDictionary[int, Measurement] = WeakValueDictionary()

    def add(self, measurement: Measurement) -> None:
        """Note a measurement."""
        self._found[id(measurement)] = measurement

    def find(self, value: Any) -> Measurement | None:
        """Return a value that is one of them; None for another value."""
        found = self._found.get(id(value))
        return found if found is value else None


SHARED = pytest.StashKey[SharedMeasurements]()


@pytest.fixture(scope="session")
def trainability_factory(request: pytest.FixtureRequest) -> TrainabilityFactory:
    """``trainability_factory(model, inputs)`` measures a model for several tests, in a fixture of any scope."""
    return TrainabilityFactory(request.config)


class TrainabilityFactory:
    """Measures models for several tests; the type of the fixture ``trainability_factory``."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def __call__(
        self,
        model: nn.Module | type[nn.Module] | Callable[[], nn.Module],
        inputs: Any,
        **options: Any,
    ) -> Measurement:
        """Measure a model once. Every test that takes the result as an argument judges the bounds of its own marker on it.

        >>> @pytest.fixture(scope="module")  # doctest: +SKIP
        ... def gpt(trainability_factory):
        ...     return trainability_factory(GPT, batch, seeds=8)

        Args:
            model: A factory, which is called once per seed, or a finished module.
            inputs: The batch, or a function that draws one from a generator.
            **options: Further arguments of :func:`pytest_trainability.measure`. Defaults of ``seeds``, ``device`` and ``dtype``
                are the values of the command line or the ini file. All seeds are drawn.

        Returns:
            The measurement. A test gets it with its own name in reports and in baselines.

        Raises:
            UsageError: An argument is invalid, or a bound, which belongs to a test.
            ModelError: The model cannot be built or run.
        """
        __tracebackhide__ = True
        from ..errors import TrainabilityError, UsageError
        from ..measurement import Context, measure_in
        from ..measures import MEASURES

        if bounds := [name for name in options if name in MEASURES]:
            msg = (
                f"trainability_factory() measures for several tests. Each test has its own bounds: give {', '.join(bounds)} to "
                "its marker, or to check() of the measurement."
            )
            raise UsageError(msg)
        try:
            given = with_settings(self._config, options, {})
            context = Context(**context_settings(self._config), seeds_by_default=options.get("seeds") is None)
            found = measure_in(context, model, inputs, **given)
        except TrainabilityError as error:
            raise error.with_traceback(None) from cause_in_user_code(error)
        self._config.stash[SHARED].add(found)
        return found


def judge_shared(item: pytest.Function) -> None:
    """Judge the bounds of a test on the shared measurements among its arguments, and hand each over as one of this test.

    Raises:
        TrainabilityFailure: A bound does not hold.
        UsageError: The marker sets other seeds, another device or another type than the measurement has.
    """
    __tracebackhide__ = True
    if item.get_closest_marker(MARKER) is None:
        return
    shared = item.config.stash[SHARED]
    for name, value in item.funcargs.items():
        found = shared.find(value)
        if found is not None:
            item.funcargs[name] = _judged_at(item, found)


def _judged_at(item: pytest.Function, shared: Measurement) -> Measurement:
    """Return a shared measurement as one of a test, judged. A failure points to the test, whose body does not run then."""
    __tracebackhide__ = True

    def judge(trainability: Trainability) -> Measurement:
        __tracebackhide__ = True
        refuse_other_settings(item, shared)
        return trainability(shared)

    code = item.function.__code__ if hasattr(item.function, "__code__") else judge.__code__
    found: Measurement = placed(judge, code.co_filename, code.co_firstlineno, code.co_name)(Trainability(item))
    return found


def refuse_other_settings(item: pytest.Item, shared: Measurement) -> None:
    """Refuse a marker that sets what the shared measurement has otherwise.

    Raises:
        UsageError: It does.
    """
    __tracebackhide__ = True
    from ..errors import UsageError

    marked = marker_settings(item)
    has = {"seeds": shared.seeds, "device": shared.device, "dtype": shared.dtype}
    for name, value in has.items():
        wanted = marked.get(name, value)
        if wanted in {value, "auto"} or (name == "device" and str(value).startswith(f"{wanted}:")):
            continue
        shown = {"seeds": f"{len(shared.seeds)} seeds"}.get(name, f"{name} {value}")
        msg = (
            f"the marker of {node_id(item)} sets {name}, and the shared measurement of {shared.name} was made with {shown}. Pass "
            f"{name}= to trainability_factory(), or measure in the test: trainability(model, inputs)."
        )
        raise UsageError(msg)


@contextmanager
def wide_scope_explained() -> Iterator[None]:
    """Say what to do where a fixture of a wider scope takes ``trainability``, which belongs to one test."""
    __tracebackhide__ = True
    try:
        yield
    except pytest.fail.Exception as error:
        text = str(error)
        if "ScopeMismatch" not in text or "fixture trainability " not in text:
            raise
        cure = (
            "trainability_factory(model, inputs) measures for several tests: take this fixture instead of trainability."
        )
        msg = f"{text}\n{cure}"
        raise pytest.fail.Exception(msg, pytrace=False) from None
