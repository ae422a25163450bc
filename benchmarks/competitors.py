"""Other packages that check models before or during training, on the faults and healthy models of ``benchmarks/faults.py``.

    python -m venv .venv-competitors
    .venv-competitors/bin/pip install torch numpy scipy pytest
    .venv-competitors/bin/pip install pytest-torch torchtest2 torchmortem torch-audit traintools syndset model-clinic guardtower
    .venv-competitors/bin/python benchmarks/competitors.py --save FILE             # a few hours on one core; can be interrupted
    .venv-competitors/bin/python benchmarks/competitors.py --save FILE --every 4   # a quarter of the faults
    .venv-competitors/bin/python benchmarks/competitors.py --save FILE --table --record   # its table, into docs/faults.md
    python benchmarks/competitors.py --tiny                                        # checks in seconds that it runs

Each package is called as its README says, with the batch, the loss and the optimizer of the case. What it reports as a warning or
worse counts as found on a fault, and as a false alarm on a healthy model. A fault is told from its twin if something is found on
it and nothing on the twin. Packages that watch training see 20 steps.

Everything is repeated on five lists of seeds: one seed for packages that take one model, two for the preset of this project. The
intervals are those of the mean over the lists, at a confidence of 95 %. A package that is not installed is named and left out,
and an exception of a package counts as nothing found.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "examples")]

from faults import HEALTHY, MORE_HEALTHY, SCORED, Case, flagged, half, measured
from faults.pages import write_between
from faults.training import BUDGETS

WATCHED_STEPS = 20
LISTS = 5
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Quantile of Student's t for an interval of 95 %, by number of lists."""


class Positional(nn.Module):
    """Takes one tensor, where the model takes keywords or several tensors; the others are constants."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, first: Tensor) -> Any:
        if isinstance(self.inputs, dict):
            names = list(self.inputs)
            return self.model(**{**self.inputs, names[0]: first})
        return self.model(first, *self.inputs[1:])


class Setting:
    """A model with its batch, loss and optimizer."""

    def __init__(self, case: Case, seed: int) -> None:
        torch.manual_seed(seed)
        self.case, self.model = case, case.build()
        inputs, self.target = case.task(torch.Generator().manual_seed(seed))
        self.inputs = (
            inputs
            if isinstance(inputs, Tensor)
            else next(iter(inputs.values() if isinstance(inputs, dict) else inputs))
        )
        if not isinstance(inputs, Tensor):
            self.model = Positional(self.model, inputs)
        budget = BUDGETS[case.family]
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = budget.optimizer(trained, budget.rates[1])

    def loss(self, output: Any, target: Tensor) -> Tensor:
        if self.case.loss is not None:
            return self.case.loss(output, target)
        return output.mean() if isinstance(output, Tensor) else output["loss"]

    def step(self) -> Tensor:
        """Return the loss of the batch."""
        return self.loss(self.model(self.inputs), self.target)


Findings = Iterator[str]
"""Yields what a package reports as a warning or worse, in its words."""


def torchtest2(s: Setting) -> Findings:
    import torchtest2

    report = torchtest2.check_model(s.model, s.inputs, s.target, loss_fn=s.loss, optimizer=s.optimizer)
    yield from (str(result) for result in (*report.failures, *report.warnings))


def pytest_torch(s: Setting) -> Findings:
    from pytest_torch import (
        assert_all_params_receive_grad,
        assert_gradients_finite,
        assert_overfits_one_batch,
        check_inference_contract,
    )

    def loss(output: Any) -> Tensor:
        return s.loss(output, s.target)

    checks: dict[str, Callable[[], object]] = {
        "inference contract": lambda: check_inference_contract(s.model, s.inputs),
        "finite gradients": lambda: assert_gradients_finite(s.model, s.inputs, loss),
        "all parameters receive a gradient": lambda: assert_all_params_receive_grad(s.model, s.inputs, loss),
        "overfits one batch": lambda: assert_overfits_one_batch(s.model, s.inputs, loss),
    }
    for name, check in checks.items():
        s.model.train(name != "inference contract")
        try:
            check()
        except AssertionError as error:
            yield f"{name}: {error}"


def torchmortem(s: Setting) -> Findings:
    from torchmortem import Autopsy

    with Autopsy(s.model, optimizer=s.optimizer) as autopsy:
        for _ in range(WATCHED_STEPS):
            s.optimizer.zero_grad()
            loss = s.step()
            loss.backward()
            s.optimizer.step()
            autopsy.step(loss=loss.item())
    findings = autopsy._report.findings
    yield from (f"{f.title}: {f.summary} {f.affected_layers}" for f in findings if f.severity.name != "INFO")


def torch_audit(s: Setting) -> Findings:
    from torch_audit import autopatch

    auditor = autopatch(s.model, optimizer=s.optimizer, every_n_steps=1, reporters=[])
    for _ in range(3):
        s.optimizer.zero_grad(set_to_none=True)
        s.step().backward()
        s.optimizer.step()
    result = auditor.finish(report=False)
    auditor.unpatch()
    yield from (
        f"{f.rule_id} {f.entity or f.module_path}: {f.message}" for f in result.findings if f.severity.value != "INFO"
    )


def traintools(s: Setting) -> Findings:
    from traintools import BatchInspector, GradientHealthMonitor

    batches, gradients = BatchInspector(), GradientHealthMonitor(max_grad_norm=1.0)
    for step in range(3):
        report = batches.inspect(s.inputs, s.target, step=step)
        yield from report.warnings
        s.step().backward()
        report = gradients.inspect(s.model, step=step, lr=s.optimizer.param_groups[0]["lr"])
        yield from report.warnings
        s.optimizer.step()
        s.optimizer.zero_grad()


def syndset(s: Setting) -> Findings:
    import syndset

    report = syndset.audit(s.model, s.inputs, s.target, loss_fn=s.loss)
    yield from (f"{c['name']}: {c['summary']} {c['details']}" for c in report.checks if c["tag"] != "PASS")


def model_clinic(s: Setting) -> Findings:
    from model_clinic import diagnose

    yield from (str(f) for f in diagnose(s.model.state_dict()) if f.severity != "INFO")


def guardtower(s: Setting) -> Findings:
    import guardtower

    report = guardtower.audit(s.model, s.step, optimizer=s.optimizer, inputs=s.inputs)
    yield from (str(f) for f in (*report.errors, *report.warnings))


PACKAGES: dict[str, Callable[[Setting], Findings]] = {
    "pytest-torch": pytest_torch,
    "torchtest2": torchtest2,
    "torchmortem": torchmortem,
    "torch-audit": torch_audit,
    "traintools": traintools,
    "syndset": syndset,
    "model-clinic": model_clinic,
    "guardtower": guardtower,
}
OURS = "pytest-trainability"
PAGE = ROOT / "docs" / "faults.md"


def found_by(package: str, case: Case, number: int) -> list[str]:
    """Return what a package finds on a list of seeds, by the number of the list."""
    if package == OURS:
        return list(flagged(case, measured(case, range(2 * number, 2 * number + 2))))
    torch.manual_seed(number)
    silent = io.StringIO()
    with redirect_stdout(silent), redirect_stderr(silent):
        try:
            return list(PACKAGES[package](Setting(case, number)))
        except Exception as error:  # Of any kind: the package was not made for this model.
            print(f"{package} on {case.id}: {error!r}", file=sys.__stderr__)
            return []


def installed() -> list[str]:
    return [name for name in PACKAGES if find_spec(name.replace("-", "_")) is not None]


# Results ----------------------------------------------------------------------------------------------------------

Key = tuple[str, int, str]
"""Package, list of seeds and case."""


def read(path: Path | None) -> dict[Key, list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
    found = [json.loads(line) for line in lines]
    return {(one["package"], one["list"], one["case"]): one["found"] for one in found}


def run(cases: Sequence[Case], packages: Sequence[str], lists: int, path: Path | None) -> dict[Key, list[str]]:
    """Run packages on cases as far as the file has no results, and add them to it."""
    results = read(path)
    for number in range(lists):
        for case in cases:
            for package in packages:
                key = (package, number, case.id)
                if key not in results:
                    results[key] = found_by(package, case, number)
                    line = json.dumps(
                        dict(zip(("package", "list", "case"), key)) | {"found": results[key]}, ensure_ascii=False
                    )
                    if path is not None:
                        with path.open("a", encoding="utf-8") as file:
                            file.write(line + "\n")
                    else:
                        print(line, flush=True)
    return results


Judge = Callable[[dict[Key, list[str]], str, int, Case], bool | None]
"""Whether a package is right about a case on a list of seeds; None where it was not run."""


def found(results: dict[Key, list[str]], package: str, number: int, case: Case) -> bool | None:
    known = results.get((package, number, case.id))
    return None if known is None else bool(known)


def told_apart(results: dict[Key, list[str]], package: str, number: int, case: Case) -> bool | None:
    assert case.twin is not None
    both = [found(results, package, number, one) for one in (case, case.twin)]
    return None if None in both else both == [True, False]


def share(results: dict[Key, list[str]], package: str, cases: Sequence[Case], judge: Judge) -> str:
    """Return the share of cases, with its interval over the lists of seeds."""
    numbers = sorted({number for who, number, _ in results if who == package})
    judged = [[right for case in cases if (right := judge(results, package, n, case)) is not None] for n in numbers]
    shares = [fmean(one) for one in judged if one]
    if not shares:
        return "–"
    if len(shares) not in STUDENT:
        return f"{fmean(shares):.2f}"
    return f"{fmean(shares):.2f} ± {STUDENT[len(shares)] * stdev(shares) / math.sqrt(len(shares)):.2f}"


def table(results: dict[Key, list[str]]) -> Iterator[str]:
    """Yield the table of the cases that every package has been run on."""
    packages = list(dict.fromkeys(who for who, _, _ in results))
    ran = set.intersection(*({case for who, _, case in results if who == package} for package in packages))
    visible = [case for case in SCORED if case.right is not None and case.right.visible and case.id in ran]
    twins = {case.twin.id: case.twin for case in visible if case.twin is not None}
    healthy = [case for case in (*HEALTHY, *MORE_HEALTHY) if case.id in ran and case.id not in twins]
    columns: tuple[tuple[str, Sequence[Case], Judge], ...] = (
        ("found, half A", [case for case in visible if half(case) == "A"], found),
        ("found, half B", [case for case in visible if half(case) == "B"], found),
        ("found", visible, found),
        ("false alarms on twins", [*twins.values()], found),
        ("told from the twin", visible, told_apart),
        ("false alarms on other healthy models", healthy, found),
    )
    yield f"| package | {' | '.join(f'{name} ({len(cases)})' for name, cases, _ in columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for package in packages:
        cells = [share(results, package, cases, judge) for _, cases, judge in columns]
        yield f"| {package} | {' | '.join(cells)} |"


def chosen(every: int) -> list[Case]:
    """Return every so many faults with their twins, and as many healthy models."""
    faults = SCORED[::every]
    twins = {case.twin.id: case.twin for case in faults if case.twin is not None}
    healthy = [case for case in (*HEALTHY, *MORE_HEALTHY) if not case.id.startswith("transformers")]
    return [*faults, *twins.values(), *(case for case in healthy[::every] if case.id not in twins)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="names of faults; default: all faults, twins and healthy models"
    )
    parser.add_argument("--lists", type=int, default=LISTS, help="number of lists of seeds")
    parser.add_argument("--every", type=int, default=1, help="take only every so many faults and healthy models")
    parser.add_argument(
        "--packages", nargs="+", choices=[OURS, *PACKAGES], help="default: this project and those installed"
    )
    parser.add_argument("--save", type=Path, help="file of results, which is continued")
    parser.add_argument("--table", action="store_true", help="print the table of the file, without running anything")
    parser.add_argument("--record", action="store_true", help="write the table to docs/faults.md")
    parser.add_argument("--tiny", action="store_true", help="one fault, one list: checks that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    missing = sorted({*PACKAGES} - {*installed()})
    if missing:
        print(f"not installed: {', '.join(missing)}")
    cases = chosen(given.every)
    names = ["layer-of-small-weights"] if given.tiny else given.names
    if names:
        cases = [case for case in cases if case.id in names]
    packages = given.packages or [OURS, *installed()]
    results = read(given.save) if given.table else run(cases, packages, 1 if given.tiny else given.lists, given.save)
    text = "\n".join(table(results))
    print(text)
    if given.record:
        write_between(PAGE, "competitors", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
