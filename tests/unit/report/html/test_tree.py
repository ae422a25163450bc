"""The module tree, and the badges at what is at fault."""

from __future__ import annotations

from documents import check, verdict

from pytest_trainability.report.html.tree import Badge, Node, faults, first_outside, tree


def modules(*rows: tuple[str, str]) -> list[dict]:
    return [{"name": name, "kind": kind, "count": 1} for name, kind in rows]


def outline(nodes: tuple[Node, ...]) -> list:
    return [(node.name, outline(node.children)) if node.children else node.name for node in nodes]


def find(nodes: tuple[Node, ...], path: str) -> Node:
    found = [node for node in nodes if node.path == path]
    return found[0] if found else next(f for node in nodes if (f := find_or_none(node.children, path)))


def find_or_none(nodes: tuple[Node, ...], path: str) -> Node | None:
    for node in nodes:
        if node.path == path:
            return node
        if (found := find_or_none(node.children, path)) is not None:
            return found
    return None


def test_folded_blocks_hold_what_is_inside_them():
    one = check("test_a.py::test_a", layers=3)
    nodes = tree(one["modules"], one["steps"]["names"], ())
    assert outline(nodes) == [
        ("", ["wte", ("h", [("{0-2}", ["ln_1", ("attn", ["c_attn"]), "mlp"])]), "ln_f"]),
    ]
    block = find(nodes, "h.{0-2}")
    assert (block.steps, block.ranges, block.count, block.kind) == ((0, 1, 2), "0-2", 3, "GPT2Block")


def test_patterns_of_other_numbers_find_the_module_around_them():
    found = tree(modules(("", "Net"), ("layer.{0-3}", "Stage"), ("layer.{1-3}.down", "Conv2d")), [], ())
    assert outline(found) == [("", [("layer.{0-3}", ["layer.{1-3}.down"])])]


def test_steps_of_calls_belong_to_their_module():
    found = tree(modules(("", "Reader"), ("rnn", "RNN")), [f"rnn[{k}]" for k in range(5)], ())
    assert find(found, "rnn").steps == (0, 1, 2, 3, 4)
    others = tree(modules(("", "Net"), ("{0,2}", "Linear"), ("1", "Tanh")), ["0", "2"], ())
    assert find(others, "{0,2}").steps == (0, 1) and find(others, "1").steps == ()


def test_steps_stand_for_modules_that_are_not_known():
    found = tree([], ["blocks.0", "blocks.1", "head"], ())
    assert [node.path for node in found] == ["blocks.{0-1}", "head"]


def test_long_lists_of_numbers_are_shortened():
    node = Node("{0,2,4,6,8-9,38}", "", "", 7, (), (), ())
    assert node.short == "{0,2,…,38}"
    assert Node("h.{0-11}.{1,3}", "", "", 1, (), (), ()).short == "h.{0-11}.{1,3}"


def test_badges_stand_at_the_module_of_a_parameter():
    one = check("test_a.py::test_a", layers=3, rate=0.0)
    one["verdicts"].append(
        verdict("gradient_norm", [1e-9], 1e-6, None, where="h.0.mlp.weight", worst=[["h.0.mlp.weight", 1e-9]])
    )
    nodes = tree(one["modules"], one["steps"]["names"], faults(one))
    assert find(nodes, "h.{0-2}.mlp").badges == (Badge("violation", "gradient_norm"),)
    assert find(nodes, "h").leads_to_fault and not find(nodes, "h.{0-2}.attn").leads_to_fault


def test_the_step_that_leaves_the_bound_has_a_badge():
    one = check("test_a.py::test_a", layers=3, leaves_band="at h.1, 2 of 3 steps from the output")
    assert first_outside(one) == 1
    nodes = tree(one["modules"], one["steps"]["names"], faults(one))
    assert find(nodes, "h.{0-2}").badges == (Badge("outside", "leaves the bound at h.1"),)
    for text in ("", "somewhere", "at h.1, 9 of 3 steps from the output", "at h.1, 0 of 3 steps from the output"):
        assert first_outside(one | {"leaves_band": text}) is None


def test_modules_that_the_cause_names_have_a_badge():
    cause = [
        "every step multiplies the gradient by 1",
        "20 × Linear (0, 2, …) multiply the gradient by 0.575 each: -11.1 of -37.8 nats",
        "h.*.mlp alone contributes 3 of 6 nats",
    ]
    one = check("a::b", layers=2) | {"cause": cause, "leaves_band": ""}
    one["modules"] = modules(
        ("", "Net"), ("{0,2}", "Linear"), ("{1,3}", "Tanh"), ("h.{0-1}.mlp", "MLP"), ("gradient", "X")
    )
    named = [name for name, badge in faults(one) if badge.kind == "cause"]
    assert named == ["{0,2}", "h.{0-1}.mlp"]


def test_changes_of_a_baseline_have_badges_where_the_test_fails():
    one = check("a::b", layers=2, rate=0.2, old_rate=0.0)
    assert ("h.{0-1}.mlp.weight", Badge("changed", "initial values")) in list(faults(one))
    one["baseline"]["status"] = "updated"
    assert [badge for _, badge in faults(one) if badge.kind == "changed"] == []
