"""What the page shows of a check, derived from the document."""

from __future__ import annotations

import math

import pytest
from documents import change, check, error, estimate, profile, verdict

from pytest_trainability.report.html.content import STATUSES, content, troubles


def test_the_headline_is_the_first_bound_that_fails():
    one = content(check("test_a.py::test_a", rate=-2.0))
    assert one.headline == f"log_gain {one.check['verdicts'][0]['text']} must lie in [-5, 5]"


def test_headlines_of_other_checks():
    held = check("a::b")
    assert content(held).headline == ""
    assert content(held | {"status": "failed"}).headline == "the test failed"
    assert content(held | {"status": "failed", "failure": "assert 1 > 2"}).headline == "assert 1 > 2"
    assert content(held | {"cautions": ["the output is not finite"]}).headline == "the output is not finite"
    marginal = check("a::b", status="marginal")
    marginal["verdicts"][0].update(marginal=True, seeds_needed=23.2)
    assert content(marginal).headline.endswith("must lie in [-5, 5]: marginal: about 24 seeds would settle it")
    marginal["verdicts"][0].update(seeds_needed="inf")
    assert content(marginal).headline.endswith("no number of seeds would settle it")
    changed = check("a::b", rate=0.1, old_rate=0.0)
    assert (
        content(changed).headline == "changed since the baseline: initial values h.*.mlp.weight 0.02 → 0.04 and 1 more"
    )
    changed["baseline"]["changes"] = [change("modules", math.nan, math.nan, math.nan, kind="new", elements=["h.2"])]
    assert content(changed).headline == "changed since the baseline: modules 1 new"
    changed["baseline"]["status"] = "missing"
    assert content(changed).headline == "no baseline"


def test_changes_are_sorted_by_their_size_in_tolerances():
    one = check("a::b", rate=0.1, old_rate=0.0)
    one["baseline"]["changes"] = [
        change("log_gain", 0.0, 3.0, 1.0),
        change("activation_rms", 0.0, 1386.3, 1.0),
        change("gradient_norm", 1.0, 9.0, 1.0, shift=-8.0),
        change("unused_parameters", math.nan, math.nan, math.nan, kind="new", elements=["a", "b"], count=2),
        change("loss_log_gain", 0.0, math.inf, 0.3, shift=math.nan),
        change("excess_loss", 0.0, 0.5, 0.0),
    ]
    changes = content(one).changes
    assert [found.measure for found in changes] == [
        *("unused_parameters", "loss_log_gain", "excess_loss", "activation_rms", "gradient_norm", "log_gain")
    ]
    assert [found.size_text for found in changes] == ["", "", "", "1,400 × tolerance", "8 × tolerance", "3 × tolerance"]
    assert changes[0].where == "2 new" and changes[0].elements == ("a", "b")
    assert [0 < found.percent <= 100 for found in changes] == [True] * 6


def test_every_bound_has_a_picture_also_where_it_holds():
    one = check("a::b")
    one["verdicts"] += [
        verdict("gradient_norm", [1e-3], 1e-6, None, scale="log", where="h.0.mlp.weight", elements=25),
        verdict("unused_parameters", [0.0], None, 0.0, elements=0, remark="no parameter to judge"),
    ]
    holding, norm, empty = content(one).bounds
    assert holding.picture is not None and holding.picture.description.endswith("bound [-5, 5]")
    assert norm.remarks == ("worst h.0.mlp.weight",)
    assert empty.picture is None and empty.remarks == ("nothing was measured", "no parameter to judge")


def test_anchors_are_stable_and_different():
    names = ["a::b", "a::c", "a::\ud800", "<script>"]
    anchors = [content(check(name)).anchor for name in names]
    assert anchors == [content(check(name), 7).anchor for name in names]
    assert len(set(anchors)) == 4 and all(anchor.isalnum() for anchor in anchors)


def test_charts_are_ordered_and_share_their_names_with_tables():
    one = content(check("a::b", layers=3))
    assert [chart.title for chart in one.charts] == [
        "Accumulated log gain along depth",
        "Gradient norm and rms of each parameter",
        "lyapunov_spectrum, nats/step",
    ]
    assert [chart.title for chart in one.more_charts] == ["growth_rate, nats", "activation_rms"]
    steps, parameters = one.tables[:2]
    assert (steps.axis, steps.names, len(steps.rows)) == ("steps", ("h.0", "h.1", "h.2"), one.charts[0].count)
    assert (parameters.axis, len(parameters.rows)) == ("parameters", one.charts[1].count)
    assert [column.title for column in parameters.columns] == ["gradient norm", "rms", "entries"]
    assert parameters.rows[0][0] == "wte.weight" and parameters.rows[0][2] == "0.02"


def test_the_table_of_steps_accumulates_as_the_chart_does():
    one = content(check("a::b", layers=2, growth=[1.0, 2.5], values=[]))
    assert one.tables[0].rows == [("h.0", "1", "3.5"), ("h.1", "2.5", "2.5")]


def test_growth_without_values_is_enough_for_a_course():
    one = content(check("a::b", layers=2, growth=["nan", 2.5], values=[], tensors=[], modules=[]))
    assert [chart.title for chart in one.charts] == ["Accumulated log gain along depth"]
    assert one.most_heat == 2.5


def test_a_contract_alone_has_neither_gain_nor_charts():
    steps = {"text": "40 parameters", "names": [], "along": ""}
    one = content(check("a::b", steps=steps, growth=[], values=[], tensors=[], modules=[], leaves_band=""))
    assert (one.gain, one.charts, one.tables, one.nodes) == ("", (), (), ())


def test_a_profile_of_other_names_has_a_chart_and_a_table_of_its_own():
    one = check("a::b", layers=2)
    one["values"].append(profile("attention_entropy", {"h.0.attn": [1.0], "h.1.attn": [2.0]}, "other"))
    found = content(one)
    assert found.more_charts[-1].axis == found.tables[-1].axis == "m1"


def test_a_bound_on_the_exponent_bounds_the_course():
    """The largest exponent times the number of steps is the log gain, unless steps are left out of the average."""
    one = check("a::b", layers=10, bounds=None)
    gain = one["log_gain"]["mean"]
    one["verdicts"] = [verdict("lyapunov_max", [gain / 10], -0.1, 0.1, unit="nats/step")]
    assert any("bound [-1, 1]" in series.label for series in content(one).charts[0].series)
    one["verdicts"] = [verdict("lyapunov_max", [gain / 5], -0.1, 0.1, unit="nats/step")]
    assert not any("bound" in series.label for series in content(one).charts[0].series)


def test_initial_values_before_and_after_are_drawn_with_the_gradients():
    chart = content(check("a::b", layers=2, rate=0.2, old_rate=0.0)).charts[1]
    styles = {one.style for one in chart.series if one.path}
    assert {"dot norm", "ring norm", "dot rms", "ring rms"} <= styles


@pytest.mark.parametrize(
    ("mean", "finite", "text"),
    [("nan", "finite on 1 of 4 seeds", "finite on 1 of 4 seeds"), ("-inf", "", "-inf nats"), ("nan", "", "nan nats")],
)
def test_gains_that_are_not_finite(mean, finite, text):
    gain = {"mean": mean, "low": "nan", "high": "nan", "finite": finite, "spread": "nan"}
    assert content(check("a::b", log_gain=gain)).gain == text


def test_scalars_and_names_are_listed():
    one = check("a::b")
    one["values"].append(
        estimate("unused_parameters", [1.0]) | {"kind": "names", "names": ["a.weight"], "elements": []}
    )
    found = content(one)
    assert [values.measure for values in found.scalars] == ["log_gain", "lyapunov_max"]
    assert [values.names for values in found.listed] == [("a.weight",)]


def test_errors_have_a_status_and_different_anchors():
    found = troubles([error("a::b", "no loss"), error("a::b", "no loss")], 5)
    assert [one.status.word for one in found] == ["error", "error"]
    assert troubles([error("a::b", "no loss", expected=True)], 0)[0].status.word == "expected"
    assert [one.order for one in found] == [5, 6]
    assert len({one.anchor for one in found}) == 2
    assert found[0].status is STATUSES["not measured"] and found[0].status.is_red
