"""Unusual initial values in the architectures of three libraries: each is built, and none is run.

    python benchmarks/unusual.py --results FILE           # about an hour on one core; appends to FILE, and goes on from there
    python benchmarks/unusual.py --results FILE --record  # writes docs/unusual.md as well
    python benchmarks/unusual.py --only gpt2              # prints what is found in one architecture
    python benchmarks/unusual.py --tiny                   # checks in a few seconds that the benchmark runs

A rule of ``unusual_parameters`` should find nothing in a healthy architecture. Every finding is listed with a judgement, which is
written down in ``JUDGED``; one that is not judged yet is listed as such. Weights are drawn from configurations; nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import io
import itertools
import json
import logging
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

import zoo
from torchvision_for_cpu import declare_torchvision_operators

from pytest_trainability import initialization
from pytest_trainability.records.names import template

Build = Callable[[], nn.Module]

LARGEST = 15_000_000
"""Parameters above which an architecture is left out."""
TOO_LARGE = "too large"
PER_FAMILY = 2
"""Architectures of timm with the same source file: those with a hint at a small size in the name, the shortest names first."""
HINTS = (
    "tiny",
    "nano",
    "pico",
    "atto",
    "femto",
    "xxs",
    "mini",
    "small",
    "lite",
    "_050",
    "18",
    "s12",
    "_b0",
    "_xs",
    "_t",
)
SMALL = {
    "hidden_size": 32,
    "d_model": 32,
    "dim": 32,
    "n_embd": 32,
    "embed_dim": 32,
    "emb_dim": 32,
    "embedding_size": 32,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "d_ff": 64,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "d_kv": 8,
    "head_dim": 8,
    "vocab_size": 99,
    "pad_token_id": 0,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "max_position_embeddings": 64,
    "image_size": 32,
    "patch_size": 8,
}
"""Attributes of configurations, and the values that make the architectures of transformers small."""

_GAINS = "true: transformers draws the gains of this model's batch normalizations from N(0, 0.02)"
_UNIT = "true: the configuration of transformers draws these weights from N(0, 1)"
_PADDING = "true: transformers draws the padding row of this model's embedding again"
JUDGED = {
    **dict.fromkeys(("efficientnet", "efficientloftr", "mobilevit", "mobilevitv2"), _GAINS),
    **dict.fromkeys(("modernbert", "modernbert-decoder", "modernvbert"), _PADDING),
    "cpmant": _UNIT,
    "phi4_multimodal": "true: transformers draws these weights from N(0, 1)",
    "xclip": "true: transformers draws these weights from N(0, 1), as it takes initializer_factor for their standard deviation",
    "vit_mae": "true: transformers leaves the table of sines empty, as it takes it for initialized, and it is frozen",
}
"""Judgement on the findings in an architecture."""


@dataclass(frozen=True)
class Result:
    """One architecture."""

    library: str
    name: str
    parameters: int
    findings: tuple[tuple[str, str, int], ...]
    """Name with numbers folded, reason, and number of parameters."""
    seconds: float
    error: str = ""


def of_transformers() -> Iterator[tuple[str, Build]]:
    """Yield the architectures of the zoo, then a small one for each configuration that has a base model."""
    import transformers

    yield from ((case.id, case.build) for case in zoo.CASES)
    yield from ((config.model_type, functools.partial(small, config)) for config in transformers.MODEL_MAPPING)


def small(config: Any) -> nn.Module:
    """Build the base model of a configuration with small values."""
    import transformers

    settings = config()
    for part in (
        settings,
        *(getattr(settings, name, None) for name in ("text_config", "vision_config", "audio_config")),
    ):
        for name, value in SMALL.items():
            if type(getattr(part, name, None)) is int:
                with contextlib.suppress(Exception):
                    setattr(part, name, value)
    built: nn.Module = transformers.AutoModel.from_config(settings)
    return built


def of_timm() -> Iterator[tuple[str, Build]]:
    """Yield some architectures of each family."""
    import timm

    families: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_models():
        families[timm.models.model_entrypoint(name).__module__].append(name)
    for names in families.values():
        small_first = sorted(names, key=lambda name: (not any(hint in name for hint in HINTS), len(name), name))
        yield from ((name, functools.partial(timm.create_model, name)) for name in small_first[:PER_FAMILY])


def of_torchvision() -> Iterator[tuple[str, Build]]:
    """Yield all classifiers."""
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        # The initialization of these two takes a minute without an argument.
        options = {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}
        yield name, functools.partial(torchvision.models.get_model, name, **options)


LIBRARIES = {"transformers": of_transformers, "timm": of_timm, "torchvision": of_torchvision}


def size_of(build: Build) -> int:
    """Return the number of parameters, without memory for them where the model can be built so."""
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


def examined(library: str, name: str, build: Build) -> Result:
    """Build an architecture under several seeds, and look for unusual values."""
    began = time.perf_counter()
    size, error = 0, ""
    findings: tuple[tuple[str, str, int], ...] = ()
    try:
        with contextlib.suppress(RuntimeError, NotImplementedError):
            size = size_of(build)
        if size <= LARGEST:
            findings = folded(initialization(build, seeds=1).unusual)
            size = size or sum(p.numel() for p in build().parameters())
        else:
            error = TOO_LARGE
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}".partition("\n")[0][:160]
    gc.collect()
    return Result(library, name, size, findings, time.perf_counter() - began, error)


def folded(findings: tuple[str, ...]) -> tuple[tuple[str, str, int], ...]:
    """Return name, reason and number of the findings that differ by a number in the name only."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for finding in findings:
        name, _, reason = finding.partition(": ")
        first.setdefault(template(name), reason)
        counts[template(name)] += 1
    return tuple((name, reason, counts[name]) for name, reason in first.items())


PAGE = """# Unusual initial values of known architectures

`python benchmarks/unusual.py --record` writes this page. Each architecture was built under different seeds, and not run. Those of
transformers are small ones, from their configurations; those of timm and torchvision have their usual sizes, up to {largest}
million parameters.

{counts}

## Findings

{findings}
"""


def page(results: list[Result]) -> str:
    """Return the page: counts by library, and every finding."""
    counts = [
        "| library | architectures | without a finding | larger, or not built from such a configuration |",
        "|---|---|---|---|",
    ]
    for library in LIBRARIES:
        tried = {(r.library, r.name): r for r in results if r.library == library}
        own = [r for r in tried.values() if not r.error]
        clean = sum(not r.findings for r in own)
        counts.append(f"| {library} | {len(own)} | {clean} | {len(tried) - len(own)} |")
    rows = [
        f"| {r.library} | {r.name} | `{name}` | {count} | {reason} | {JUDGED.get(r.name, 'not judged')} |"
        for r in results
        for name, reason, count in r.findings
    ]
    heads = ["| library | architecture | parameter | number | reason | judgement |", "|---|---|---|---|---|---|"]
    text = "\n".join([*heads, *rows]) if rows else "Nothing was found."
    return PAGE.format(largest=LARGEST // 1_000_000, counts="\n".join(counts), findings=text)


def cases(libraries: list[str]) -> Iterator[tuple[str, str, Build]]:
    """Yield library, name and factory, of all libraries in turn."""
    rows = itertools.zip_longest(*(LIBRARIES[library]() for library in libraries))
    yield from ((library, *case) for row in rows for library, case in zip(libraries, row) if case is not None)


def read(path: Path | None) -> list[Result]:
    """Return the results of an earlier call."""
    lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
    found = map(json.loads, lines)
    return [Result(**{**line, "findings": tuple(map(tuple, line["findings"]))}) for line in found]


def show(result: Result) -> None:
    """Print one result."""
    count = sum(number for *_, number in result.findings)
    print(f"{result.library} {result.name}: {result.error or f'{count} found'}, {result.seconds:.1f} s", flush=True)
    for name, reason, number in result.findings:
        print(f"  {name} ({number}): {reason}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="Two small architectures.")
    parser.add_argument("--library", choices=LIBRARIES, help="One library alone.")
    parser.add_argument("--only", nargs="*", help="Names of architectures.")
    parser.add_argument("--results", type=Path, help="File of results: architectures in it are not built again.")
    parser.add_argument("--most", type=int, help="Number of architectures to build at most.")
    parser.add_argument("--record", action="store_true", help="Write docs/unusual.md.")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    declare_torchvision_operators()
    libraries = ["transformers"] if options.tiny else [options.library] if options.library else list(LIBRARIES)
    results = read(options.results)
    # An architecture that could not be built is tried again.
    known = {(result.library, result.name) for result in results if result.error in {"", TOO_LARGE}}
    left = 2 if options.tiny else options.most
    for library, name, build in cases(libraries) if left != 0 else ():
        if (options.only and name not in options.only) or (library, name) in known:
            continue
        known.add((library, name))
        with contextlib.redirect_stdout(io.StringIO()):
            result = examined(library, name, build)
        results.append(result)
        show(result)
        if options.results is not None:
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")
        left = None if left is None else left - 1
        if left == 0:
            break
    built = [result for result in results if not result.error]
    print(f"nothing unusual in {sum(not result.findings for result in built)} of {len(built)}")
    if options.record:
        (ROOT / "docs" / "unusual.md").write_text(page(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
