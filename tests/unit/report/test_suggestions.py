"""Suggested bounds as a marker to paste."""

from __future__ import annotations

import pytest

from pytest_trainability.checks.bounds import Bound, at_least, at_most, within
from pytest_trainability.records.suggestions import Suggestion, TestSuggestions
from pytest_trainability.report.suggestions import bound_code, imports_of, suggested_bounds, suggestion_lines


def of_test(*suggestions: Suggestion, test: str = "test_a.py::test_b", **changes: object) -> TestSuggestions:
    return TestSuggestions(**{"test": test, "model": "Net", "seeds": 8, "suggestions": suggestions, **changes})  # type: ignore[arg-type]


def gain(low: float | None = -0.5, high: float | None = 0.1, **changes: object) -> Suggestion:
    return Suggestion("log_gain", "-0.20 ± 0.05 nats", low, high, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bound", "code"),
    [
        (within(3), "within(3)"),
        (within(0), "within(0)"),
        (within(-0.62, 0.31), "within(-0.62, 0.31)"),
        (at_most(0), "at_most(0)"),
        (at_least(1.6e-5), "at_least(1.6e-05)"),
        (within(-2, -2), "within(-2, -2)"),
        (at_least(1e-6, excluding="*.bias"), 'at_least(1e-06, excluding="*.bias")'),
        (within(0, 2, matching=("a.*", "b.*")), 'within(0, 2, matching=("a.*", "b.*"))'),
        (at_most(1e300), "at_most(1e+300)"),
    ],
)
def test_a_bound_is_written_as_python_that_gives_it_back(bound: Bound, code: str) -> None:
    assert bound_code(bound) == code
    assert eval(code, {"within": within, "at_least": at_least, "at_most": at_most}) == bound


def test_a_bound_without_one_is_that_of_the_seeds() -> None:
    (found,) = suggested_bounds([gain()])
    assert (found.code, found.kept) == ("within(-0.5, 0.1)", "")


def test_a_wider_bound_is_narrowed() -> None:
    (found,) = suggested_bounds([gain(current=(-3.0, 3.0))])
    assert (found.code, found.kept) == ("within(-0.5, 0.1)", "")


def test_a_narrower_bound_is_kept_and_said() -> None:
    (found,) = suggested_bounds([gain(current=(-0.3, 3.0))])
    assert found.code == "within(-0.3, 0.1)"
    assert found.kept == (
        "kept where it is narrower than within(-0.5, 0.1), which the seeds support: other seeds may fail it"
    )


def test_an_end_that_only_the_present_bound_has_is_kept() -> None:
    (found,) = suggested_bounds([gain(low=None, current=(-3.0, None))])
    assert (found.code, found.kept) == ("within(-3, 0.1)", "")


def test_a_bound_that_fails_is_kept_and_said() -> None:
    (found,) = suggested_bounds([gain(current=(1.0, None), holds=False)])
    assert found.code == "at_least(1)"
    assert found.kept == "fails now, and is kept: bring the model back, or change it by hand"


def test_a_bound_without_support_is_kept_and_the_reason_said() -> None:
    (found,) = suggested_bounds([gain(None, None, missing="one draw has no spread", current=(-3.0, 3.0))])
    assert (found.code, found.kept) == ("within(3)", "kept: one draw has no spread")


def test_a_default_is_left_out_unless_the_seeds_narrow_it() -> None:
    assert not list(suggested_bounds([gain(current=(-0.5, 0.1), is_default=True)]))
    assert not list(suggested_bounds([gain(current=(1.0, None), holds=False, is_default=True)]))
    (found,) = suggested_bounds([gain(current=(-3.0, 3.0), is_default=True)])
    assert found.code == "within(-0.5, 0.1)"


def test_patterns_of_the_present_bound_stay() -> None:
    (found,) = suggested_bounds([gain(current=(-3.0, 3.0), excluding=("*.bias",))])
    assert found.code == 'within(-0.5, 0.1, excluding="*.bias")'


def test_the_imports_are_those_that_the_bounds_need() -> None:
    found = list(suggested_bounds([gain(), Suggestion("unused_parameters", "none", None, 0.0)]))
    assert imports_of(found) == "from pytest_trainability import at_most, within"
    assert imports_of([]) == ""


def test_the_lines_are_python_with_the_settings_of_the_present_marker() -> None:
    lines = suggestion_lines([of_test(gain(), settings=(("preset", '"cnn"'),))])
    assert lines == [
        "from pytest_trainability import within",
        "",
        "# test_a.py::test_b, 8 seeds",
        "@pytest.mark.trainability(",
        '    preset="cnn",',
        "    log_gain=within(-0.5, 0.1),  # -0.20 ± 0.05 nats",
        ")",
    ]
    compile("\n".join([*lines, "def test(): pass"]), "lines", "exec")


def test_a_table_gets_the_lines_of_its_bounds_in_toml() -> None:
    bounded = gain(current=(-3.0, 3.0), excluding=("*.bias",))
    lines = suggestion_lines([of_test(gain()), of_test(bounded, test="trainability.toml::gpt", table="test.gpt")])
    assert lines[0] == "from pytest_trainability import within"
    table = lines[lines.index("# trainability.toml::gpt, 8 seeds") + 1 :]
    assert table == [
        "[test.gpt.bounds]",
        "log_gain = 'within(-0.5, 0.1, excluding=\"*.bias\")'  # -0.20 ± 0.05 nats",
    ]
    cases = [of_test(gain(), test=f"trainability.toml::gpt[width={width}]", table="test.gpt") for width in (8, 16)]
    lines = suggestion_lines(cases)
    assert lines[0] == "# trainability.toml::gpt, one table for 2 tests, 8 seeds"
    assert lines[1:3] == ["[test.gpt.bounds]", 'log_gain = "within(-0.5, 0.1)"  # -0.20 ± 0.05 nats']


def test_the_tests_of_one_function_share_a_marker_that_holds_for_all() -> None:
    tests = [of_test(gain(low, high), test=f"test_a.py::test_b[{low}]") for low, high in [(-1.0, 0.0), (2.0, 3.0)]]
    text = "\n".join(suggestion_lines(tests))
    assert "# test_a.py::test_b, one marker for 2 tests, 8 seeds" in text
    assert "log_gain=within(-1, 3)," in text
    assert "# log_gain differs: within(-1, 0) for [-1.0], within(2, 3) for [2.0]" in text


def test_tests_with_other_present_bounds_have_markers_of_their_own() -> None:
    tests = [of_test(gain(current=(-x, x)), test=f"test_a.py::test_b[{x}]") for x in (3.0, 4.0)]
    assert "\n".join(suggestion_lines(tests)).count("@pytest.mark.trainability(") == 2


def test_a_measure_that_one_of_the_tests_lacks_is_left_out() -> None:
    loss = Suggestion("initial_loss", "2.3", 2.0, 2.6)
    tests = [of_test(gain(), loss, test="a::b[1]"), of_test(gain(), test="a::b[2]")]
    assert "initial_loss" not in "\n".join(suggestion_lines(tests))


def test_two_measurements_of_one_test_share_its_marker() -> None:
    tests = [of_test(gain(-1.0, 0.0)), of_test(gain(2.0, 3.0))]
    text = "\n".join(suggestion_lines(tests))
    assert "# test_a.py::test_b, for 2 measurements, 8 seeds" in text and "log_gain=within(-1, 3)," in text


@pytest.mark.parametrize(
    ("fixed", "cure"), [(True, "pass a factory instead of a finished module"), (False, "pass seeds=8")]
)
def test_one_draw_supports_nothing_and_the_way_out_is_said(fixed: bool, cure: str) -> None:
    found = gain(None, None, missing="one draw has no spread")
    lines = suggestion_lines([TestSuggestions("test_a.py::test_b", "Net", 1, (found,), fixed=fixed)])
    assert lines[-2:] == [
        "# its numbers support no bound",
        f"# log_gain: no bound, because one draw has no spread: {cure}",
    ]


def test_a_failed_test_is_marked() -> None:
    assert "the test has failed, its numbers may not be healthy" in suggestion_lines([of_test(gain(), passed=False)])[2]


@pytest.mark.parametrize(
    ("seeds", "fixed", "said"), [(2, False, True), (3, False, True), (4, False, False), (1, True, False)]
)
def test_few_seeds_are_said_to_support_wide_bounds(seeds: int, fixed: bool, said: bool) -> None:
    text = "\n".join(suggestion_lines([of_test(gain(), seeds=seeds, fixed=fixed)]))
    assert (f"# {seeds} seeds support wide bounds only: measure with seeds = 8" in text) == said
