"""The headline runs once more, as on a processor without the newest instructions: do their conclusions stand?

$ python results/instruction_sets.py avx2          # makes, or goes on with, results/reproducibility/avx2
$ python results/instruction_sets.py sse4 two-model/mnist-crossed-adam
$ python results/tables.py                         # puts the table into results/README.md

A run here has the options of the committed one but for the protections, of which it has those that the README tells of.
"""

import dataclasses
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from forgetless.comparison import ComparisonConfig
from forgetless.configuration import Configuration
from forgetless.experiments.two_model import TwoModelConfig
from forgetless.report import command_line
from forgetless.runs import EXPERIMENT, RunFolder
from forgetless.search import SearchConfig

HERE = Path(__file__).parent
RERUNS = HERE / "reproducibility"

SETS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "sse4": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
"""What PyTorch, its BLAS and oneDNN are told to use."""

RUNS: dict[str, dict[str, Any]] = {
    "two-model/mnist-crossed-adam": {"protection": ("none", "wpl")},
    "two-model/mnist-crossed-sgd": {"protection": ("none", "wpl")},
    "search/nas201-digits": {},
    "compare/recurrent-3": {"workers": 1},
    "compare/nas201-digits": {"protection": ("none", "matched-lr", "l2", "wpl", "mas", "si"), "workers": 1},
    "search/ptb": {"protection": ("none", "wpl"), "final_samples": 0, "interference_every": 0},
}
"""Which run, and what is changed in its options."""

CONFIGURATIONS: dict[str, type[Configuration]] = {
    "two-model": TwoModelConfig,
    "search": SearchConfig,
    "compare": ComparisonConfig,
}


def configuration(name: str) -> Any:
    """Of the rerun of a committed run."""
    options = {key: value for key, value in RunFolder(HERE / name).config.items() if key != EXPERIMENT}
    config = CONFIGURATIONS[name.split("/")[0]].from_dict(options)
    return dataclasses.replace(config, **RUNS[name])


def make(instruction_set: str, name: str) -> None:
    """One rerun, or the rest of it."""
    path = RERUNS / instruction_set / name.replace("/", "-")
    if path.exists():
        command = ["forgetless", "resume", str(path)]
    else:
        command = [*shlex.split(command_line(configuration(name))), "--output", str(path)]
    print(shlex.join(command), flush=True)
    program = [sys.executable, "-m", "forgetless", *command[1:]]
    subprocess.run(program, check=True, env={**os.environ, **SETS[instruction_set]})


if __name__ == "__main__":
    for wanted in sys.argv[2:] or RUNS:
        make(sys.argv[1], wanted)
