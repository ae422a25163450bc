"""Valid and invalid values of the keys of ``trainability.toml``, for tests of their reader and of their schema."""

from __future__ import annotations

from typing import Any

from pytest_trainability import within
from pytest_trainability.gate.keys import Condition
from pytest_trainability.records.calls import Call

__all__ = ["INVALID", "VALID"]

VALID: dict[str, list[tuple[Any, Any]]] = {
    "model": [("nets:build", "nets:build"), ("hf:gpt2", "hf:gpt2")],
    "inputs": [
        ("8x3", ("8x3",)),
        (["8x3", "mask:8x3"], ("8x3", "mask:8x3")),
        ({"input_ids": "ids:4x3<9"}, ("input_ids=ids:4x3<9",)),
        ("nets:batch", ("nets:batch",)),
    ],
    "targets": [("ids:8<10", ("ids:8<10",))],
    "loss": [("mse", "mse"), ("nn.CrossEntropyLoss", "nn.CrossEntropyLoss"), ("nets:loss", "nets:loss")],
    "steps": [("layers", "layers"), (["stem", "body.0"], ["stem", "body.0"])],
    "seeds": [(2, (0, 1)), ("3-4", (3, 4)), ([5], (5,))],
    "exponents": [(3, 3)],
    "train": [(False, False)],
    "device": [("cuda:1", "cuda:1")],
    "dtype": [("torch.float64", "float64")],
    "preset": [("mlp", "mlp")],
    "bounds": [
        ({"log_gain": "within(3)", "nonfinite": "<= 0"}, None),
        ({"log_gain": [-3, 3]}, {"log_gain": within(3)}),
    ],
    "tolerances": [({"log_gain": 1}, {"log_gain": 1.0})],
    "contract": [("contracts.py:GPT", "contracts.py:GPT"), ({"**": "zeros()"}, {"**": "zeros()"})],
    "baseline": [(True, True), ("a/b.json", "a/b.json")],
    "marks": [("slow", (Call("slow"),)), (["timeout(60)"], (Call("timeout", (60,)),))],
    "skip": [
        ({"missing": "timm", "reason": "no images"}, Condition(("timm",), reason="no images")),
        ({"missing": ["a", "b"], "unless": "cuda"}, Condition(("a", "b"), "cuda")),
    ],
    "parameters": [({"width": [1, 2]}, {"width": [1, 2]})],
}
"""Values as a file has them, and as they are read; None for a value that is not compared."""

INVALID: dict[str, list[tuple[Any, str]]] = {
    "model": [
        (3, "it must be a text such as 'package.module:build'"),
        ("nets", "Got a text: 'nets'"),
        (":x", "must be"),
        ("package.nets.build", "or 'timm:resnet18', with a colon: 'package.nets:build'. Got a text"),
    ],
    "inputs": [([], "Got a list"), ("8xx3", "inputs must be sizes such as"), ([3], "it must be a text such as")],
    "targets": [("ids:8", "inputs must be sizes such as")],
    "loss": [("cross_entropi", "Did you mean 'cross_entropy'?"), (3, "it must be a text such as 'cross_entropy'")],
    "steps": [(3, "it must be 'auto', 'blocks', 'layers'"), ("", "Got a text: ''"), ([], "Got a list")],
    "seeds": [(0, "seeds must be a number of at least 1"), (True, "Got true or false: True"), ({}, "Got a table")],
    "exponents": [(0, "of at least 1. Got 0"), (1.5, "Got a number: 1.5"), (True, "Got true or false: True")],
    "train": [("yes", "it must be true (train mode) or false (eval mode). Got a text: 'yes'")],
    "device": [("gpu", "the device must be auto, cpu, cuda, cuda:N or mps")],
    "dtype": [("int8", "dtype must be a floating type")],
    "preset": [("mpl", "Did you mean 'mlp'?")],
    "bounds": [("within(3)", "it must be a table by measure"), ({"log_gian": "within(3)"}, "Did you mean 'log_gain'?")],
    "tolerances": [({"log_gain": -1}, "must be a finite number of at least 0")],
    "contract": [
        (3, "it must be a file such as"),
        ({}, "Got a table"),
        ({"**": 3}, "it must be a file such as"),
        ("contract.json", "it must be a file such as 'contracts.py:GPT', MODULE:NAME, or a table of rules"),
    ],
    "baseline": [("gpt", "it must be true, false or the path of a file such as"), (3, "Got a whole number: 3")],
    "marks": [
        (3, "it must be a list of marks"),
        (["parametrize('a', [1])"], "cannot be set here: write parameters"),
        (["trainability"], "cannot be set here: bounds and settings are keys"),
        (["pytest.mark.slow"], "cannot be set here: write it without pytest.mark"),
        (["slow("], "a mark is invalid: it must be written as name or name(1, two='three')"),
    ],
    "skip": [
        ("timm", "it must be a table with missing, unless or reason"),
        ({"mising": "timm"}, "unknown key 'mising'. Did you mean 'missing'?"),
        ({"unless": "tpu"}, "it must be a device: cuda or mps"),
        ({"missing": {"a": "b"}}, "it must be the name of a module"),
    ],
    "parameters": [
        (3, "it must be a table of lists by argument"),
        ({"width": 3}, "it must be a list of one value or more"),
        ({"width": [3, 3]}, "its values must differ"),
        ({"the width": [3]}, "it must be the name of an argument"),
    ],
}
"""Values, and a part of what is said about them."""
