"""Models that are named by text, built without a download."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_trainability import measure
from pytest_trainability.errors import UsageError
from pytest_trainability.sources.models import named_model

KINDS = {
    "gpt2": ("4 × GPT2Block", {"input_ids", "labels"}),
    "bert": ("4 × BertLayer", {"input_ids"}),
    "t5": ("8 × T5Block", {"input_ids", "labels"}),
    "vit": ("4 × ViTLayer", {"pixel_values", "labels"}),
    "resnet": ("8 × ResNetBottleNeckLayer", {"pixel_values", "labels"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_small_models_of_transformers_run_on_inputs_of_their_own(kind: str) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    steps, inputs = KINDS[kind]
    named = named_model(f"hf-tiny:{kind}")
    assert named.name == kind and named.inputs is not None
    assert named.inputs(torch.Generator().manual_seed(0)).keys() == inputs
    result = measure(named.build, named.inputs, seeds=1)
    assert result.steps.description == steps
    assert abs(result.log_gain) < 20


@pytest.mark.parametrize("kind", ["whisper", "speech_to_text", "marian", "moonshine"])
def test_encoders_with_decoders_are_whole_and_compute_a_loss(kind: str) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    named = named_model(f"hf-tiny:{kind}")
    model = named.build()
    assert type(model).__name__.endswith(("ForConditionalGeneration", "MTModel")) and named.inputs is not None
    found = model(**named.inputs(torch.Generator().manual_seed(0)))
    assert torch.isfinite(found.loss)


def test_the_default_configuration_is_not_reduced() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    with torch.device("meta"):
        model = named_model("hf:gpt2").build()
    # Without the head: transformers 5.0 does not tie it to the embedding on the meta device.
    assert sum(p.numel() for p in model.transformer.parameters()) == 124_439_808


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf:gtp2", r"must name a model type of transformers, .* Nearest: gpt2"),
        ("hf-tiny:", r"must name a model type of transformers"),
    ],
)
def test_unknown_types_are_refused_with_the_nearest(text: str, said: str) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(UsageError, match=said):
        named_model(text)


def test_models_of_timm_get_images_of_their_size() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    named = named_model("timm:test_vit")
    assert named.inputs is not None
    shape = named.inputs(torch.Generator()).shape
    assert shape == (4, 3, 160, 160)
    assert isinstance(named.build(), nn.Module)
    with pytest.raises(UsageError, match=r"Nearest: .*resnet18"):
        named_model("timm:resnt18")


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UsageError, match=r"^timm must be importable: pip install timm\."):
        named_model("timm:resnet18")


def test_a_place_names_a_factory_a_class_or_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_by_place.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(3, 3)\n"
        "        self.example_input_array = torch.ones(2, 3)\n"
        "finished = Net()\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("Net", "finished"):
        named = named_model(f"nets_by_place:{name}")
        assert named.name == name and named.inputs is not None
        assert measure(named.build, named.inputs, seeds=1).steps
    with pytest.raises(
        UsageError, match=r"^the model must be a factory, a class or a torch\.nn\.Module\. .* of class int"
    ):
        named_model("nets_by_place:number")


def test_the_first_error_is_told_with_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where transformers imports a torchvision that does not fit: it raises another error, which says nothing."""
    first = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "timm.py").write_text(
        f"try:\n    {first}\nexcept RuntimeError as error:\n    raise ImportError('x') from error\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError) as caught:
        named_model("timm:resnet18")
    assert str(caught.value) == (
        "timm must be importable: pip install timm. Importing it raised RuntimeError: operator torchvision::nms does not exist. "
        "This torchvision was built for another PyTorch: install both together, or uninstall torchvision."
    )
