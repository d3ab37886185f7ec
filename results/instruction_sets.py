"""The headline runs once more, as on a processor without the newest instructions: do their conclusions stand?

$ python results/instruction_sets.py avx2          # makes, or goes on with, results/reproducibility/avx2
$ python results/instruction_sets.py sse4 two-model/mnist-crossed-adam
$ python results/tables.py                         # puts the tables into results/pages/other-processors.md

A rerun has the options of the committed run, and those of its protections that RUNS names.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comparisons
from page import load, shown, table

from forgetless.comparison.result import ComparisonResult
from forgetless.configuration import Configuration
from forgetless.experiments import load_config
from forgetless.experiments.two_model import TwoModelResult
from forgetless.options import command_line
from forgetless.report.formats import probability
from forgetless.runs import RunFolder
from forgetless.search.result import SearchResult

HERE = Path(__file__).parent
RERUNS = HERE / "reproducibility"

SETS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "sse4": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
"""What PyTorch, its BLAS and oneDNN are told to use."""

RUNS: dict[str, dict[str, Any]] = {
    "two-model/mnist-crossed-adam": {"protections": ("none", "wpl")},
    "two-model/mnist-crossed-sgd": {"protections": ("none", "wpl")},
    "search/nas201-digits": {},
    "compare/recurrent-3": {},
    "compare/nas201-digits": {"protections": ("none", "matched-lr", "l2", "wpl", "mas", "si")},
    "search/ptb": {"protections": ("none", "wpl"), "selection": {"final_samples": 0}, "interference": {"every": 0}},
}
"""Which run, which of its protections, and what is changed in its tables."""


def rerun(instruction_set: str, name: str) -> Path:
    """The folder of one."""
    return RERUNS / instruction_set / name.replace("/", "-")


def make(instruction_set: str, name: str) -> None:
    """One rerun, or the rest of it."""
    path = rerun(instruction_set, name)
    if path.exists():
        command = ["forgetless", "resume", str(path)]
    else:
        folder = RunFolder(HERE / name)
        config = _changed(load_config(folder), RUNS[name])
        command = [*shlex.split(command_line(config, folder.header.experiment)), "--output", str(path)]
    print(shlex.join(command), flush=True)
    program = [sys.executable, "-m", "forgetless", *command[1:]]
    subprocess.run(program, check=True, env={**os.environ, **SETS[instruction_set]})


def _changed(config: Configuration, changes: Mapping[str, Any]) -> Configuration:
    """The configuration with some of its protections, and with other values in its tables."""
    tables = config.to_dict()
    search = tables.get("search", tables)  # that of a comparison
    for name, change in changes.items():
        if name == "protections":
            search[name] = [each for each in search[name] if each["name"] in change]
        else:
            search[name] |= change
    tables["resources"] = tables["resources"] | {"workers": 1}
    return type(config).from_dict(tables)


def tables() -> list[str]:
    """The headline numbers of the committed runs and of their reruns, side by side, a table per run."""
    made = [name for name in SETS if (RERUNS / name).is_dir()]
    parts = []
    for name in RUNS:
        reruns = {each: headlines(path) if (path := rerun(each, name)).exists() else {} for each in made}
        rows = [
            {"": label, "committed": committed, **{each: found.get(label, "–") for each, found in reruns.items()}}
            for label, committed in headlines(HERE / name).items()
            if any(label in found for found in reruns.values())
        ]
        if rows:
            parts.append(f"## `{name}`\n\n{table(rows)}")
    return parts


def reductions(instruction_set: str) -> list[float]:
    """Mean share of the forgetting of two models that weight plasticity prevents, in every row of the reruns."""
    paths = [rerun(instruction_set, name) for name in RUNS if name.startswith("two-model/")]
    arms = [s for path in paths for s in load(path).summary()]
    return [s.reduction.mean for s in arms if s.protection == "wpl"]


def headlines(path: Path) -> dict[str, str]:
    """The numbers of a run that pages tell of, by what they are."""
    result = load(path)
    if isinstance(result, TwoModelResult):
        return _of_two_models(result)
    return _of_search(result) if isinstance(result, SearchResult) else _of_comparison(result)


def _of_two_models(result: TwoModelResult) -> dict[str, str]:
    found: dict[str, str] = {}
    for convergence in result.config.chain.convergence:
        where = "A at convergence" if convergence == 1 else f"A stopped at {convergence:.0%}"
        arms = {s.protection: s for s in result.summary() if s.convergence == convergence}
        plain, held = arms["none"], arms["wpl"]
        found[f"{where}: forgetting, points"] = shown(plain.forgetting, 100, 1)
        found[f"{where}: of seed 0"] = _of_seed_0(result, convergence)
        found[f"{where}: reduction, %"] = shown(held.reduction, 100, 1)
        found[f"{where}: B against unprotected, points"] = shown(held.cost_b, -100, 2)
    return found


def _of_seed_0(result: TwoModelResult, convergence: float) -> str:
    runs = [r for r in result.runs if (r.seed, r.convergence, r.protection) == (0, convergence, "none")]
    return f"{100 * runs[0].forgetting:.1f}"


def _of_search(result: SearchResult) -> dict[str, str]:
    scale, digits = result.unit.scale, 1 if result.unit.scale == 100 else 3
    found: dict[str, str] = {}
    for s in result.summary():
        found[f"forgetting, {s.protection}"] = shown(s.forgetting_mean, scale, digits)
        if s.protection == "wpl":
            found["reduction by wpl, %"] = shown(s.reduction_mean, 100, 0)
        found[f"reward, {s.protection}"] = shown(s.reward, 1, 3)
    return found


def _of_comparison(result: ComparisonResult) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in sorted(result.ranked, key=str):
        if not row.is_search:
            continue
        for name, (difference, p) in zip(("reward", "err₂"), comparisons.effects(result, row), strict=False):
            found[f"{row}: {name} against none"] = f"{shown(difference, 1, 4)}, {_probability(p)}"
    for row, gain, p in sorted(comparisons.gains(result), key=lambda each: str(each[0])):
        found[f"{row}: better than random by"] = f"{shown(gain, 1, 3)}, {_probability(p)}"
    return found


def _probability(p: float) -> str:
    shown = probability(p)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


if __name__ == "__main__":
    for wanted in sys.argv[2:] or RUNS:
        make(sys.argv[1], wanted)
