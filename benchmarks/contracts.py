"""Contracts of the architectures in ``tests/zoo.py`` and of twenty of timm: written on eight seeds, checked on four others.

    python benchmarks/contracts.py             # about fifteen minutes on one core
    python benchmarks/contracts.py --record    # writes docs/contracts.md
    python benchmarks/contracts.py --only gpt2 # prints the contract as well; with --record, the other rows of the page stay
    python benchmarks/contracts.py --tiny      # checks in a few seconds that the benchmark runs

Weights are drawn from configurations; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

import zoo
from torchvision_for_cpu import declare_torchvision_operators

from pytest_trainability.init.words import failure_text
from pytest_trainability.init.writing import contract_of, rules_of, source_of
from pytest_trainability.measurement.initialization import judge_contract, models_of

WRITTEN_ON, CHECKED_ON = range(8), range(100, 104)
TIMM = (
    "resnet18",
    "resnet26d",
    "resnext26ts",
    "densenet121",
    "efficientnet_lite0",
    "mobilenetv3_small_050",
    "mobilenetv2_050",
    "mnasnet_small",
    "regnetx_002",
    "convnext_atto",
    "convnextv2_atto",
    "convmixer_768_32",
    "ghostnet_050",
    "vgg11",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "cait_xxs24_224",
    "mixer_s32_224",
    "poolformer_s12",
    "xcit_nano_12_p16_224",
)


@dataclass(frozen=True)
class Result:
    """One architecture."""

    library: str
    name: str
    parameters: int
    rules: int
    unknown: int
    """Rules ``init.anything``."""
    holds: bool
    seconds: float
    source: str
    message: str


def contract(library: str, name: str, build: Callable[[], nn.Module]) -> Result:
    """Write the contract of an architecture, and check it on other seeds."""
    began = time.perf_counter()
    written = contract_of(models_of(build, WRITTEN_ON))
    judgement = judge_contract(rules_of(written), build, CHECKED_ON)
    return Result(
        library,
        name,
        len(judgement.names),
        len(written),
        sum("init.anything(" in text for text in written.values()),
        judgement.holds,
        time.perf_counter() - began,
        source_of(written),
        "" if judgement.holds else failure_text(judgement, name),
    )


def architectures() -> Iterator[tuple[str, str, Callable[[], nn.Module]]]:
    """Yield library, name and factory."""
    declare_torchvision_operators()
    yield from (("transformers", case.id, case.build) for case in zoo.CASES)
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        print(f"timm cannot be imported: {error}", file=sys.stderr)
        return
    yield from (("timm", name, functools.partial(timm.create_model, name, num_classes=10)) for name in TIMM)


HEADS = ("| library | architecture | parameters | rules | `anything` | holds |", "|---|---|---|---|---|---|")


def row(r: Result) -> str:
    """Return a result as a row of the table."""
    return f"| {r.library} | {r.name} | {r.parameters} | {r.rules} | {r.unknown} | {'yes' if r.holds else '**no**'} |"


def rows_of(page: str) -> dict[tuple[str, str], str]:
    """Return the rows of a page by library and architecture."""
    rows = (line for line in page.splitlines() if line.startswith("| ") and line not in HEADS)
    return {(row.split(" | ")[0][2:], row.split(" | ")[1]): row for row in rows}


def record(results: list[Result], path: Path) -> None:
    """Write the page. Rows of architectures that were not examined stay as they are."""
    rows = rows_of(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows |= {(r.library, r.name): row(r) for r in results}
    order = [(library, name) for library, name, _ in architectures()]
    ordered = [rows[key] for key in order if key in rows]
    holding = sum(line.endswith("| yes |") for line in ordered)
    page = PAGE.format(holding=holding, count=len(ordered), table="\n".join([*HEADS, *ordered]))
    path.write_text(page, encoding="utf-8")


PAGE = """# Contracts of known architectures

`python benchmarks/contracts.py --record` writes this page. Each contract was written on eight seeds and checked on four others.
{holding} of {count} hold. The architectures of transformers are small ones, from their configurations; those of timm have their
usual sizes. `anything` counts rules that make no statement, because no known distribution agrees.

{table}
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="Two small architectures.")
    parser.add_argument("--only", nargs="*", help="Names of architectures. Their contracts are printed.")
    parser.add_argument("--record", action="store_true", help="Write docs/contracts.md.")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    only = ["gpt2", "bert"] if options.tiny else options.only
    results = []
    for library, name, build in architectures():
        if only and name not in only:
            continue
        result = contract(library, name, build)
        results.append(result)
        print(
            f"{library} {name}: {result.rules} rules for {result.parameters} parameters, {result.seconds:.1f} s",
            flush=True,
        )
        if options.only:
            print(result.source)
        if result.message:
            print(result.message)
    holding = sum(result.holds for result in results)
    print(f"{holding} of {len(results)} hold")
    if options.record:
        record(results, ROOT / "docs" / "contracts.md")
    return int(holding < len(results))


if __name__ == "__main__":
    sys.exit(main())
