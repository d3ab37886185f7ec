"""Seed 0 of committed runs once more: does the present code give the same records, but for the time that they took?

$ python results/same_numbers.py                      # against the runs limited to AVX2, in results/reproducibility
$ python results/same_numbers.py --before CHECKOUT    # against the code of another checkout, at a small size

A run repeats bit for bit where the processor computes the same way. The reruns under AVX2 say which way they took, so
that they repeat on every processor that has it; other committed runs do not. Writes results/same-numbers.json; what is
there already is not made again.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from instruction_sets import SETS, rerun
from page import HERE

from forgetless.experiments import load_config
from forgetless.options import command_line
from forgetless.protection import PROTECTIONS
from forgetless.runs import RunFolder, environment, write_atomically

PATH = HERE / "same-numbers.json"
NAMES: dict[str, tuple[str, ...]] = {
    "search/nas201-digits": ("none", "matched-lr", "wpl"),
    "compare/nas201-digits": ("none", "wpl", "si"),
    "compare/recurrent-3": ("none", "wpl"),
    "two-model/mnist-crossed-adam": ("none", "wpl"),
}
"""Run → the arms of it that run again."""

SMALL = {
    "cell": "forgetless search --space cell --cell.nodes 2 --cell.units 4 --protection none wpl l2 si --epochs 3 "
    "--models-per-epoch 2 --batches-per-model 4 --evaluation-batches 1 --strategy-steps 1 --samples-per-step 4 "
    "--final-samples 0 --protect-from 1",
    "nas201, held-out importance": "forgetless search --space nas201 --nas201.units 2 --protection none wpl mas "
    "coupling wpl-tolerance --coupling.num-examples 5 --epochs 3 --models-per-epoch 4 --batches-per-model 6 "
    "--importance held-out --final-samples 3 --final-batches 20 --protect-from 1",
    "recurrent, held-out importance": "forgetless search --recurrent.nodes 3 --text.vocabulary 300 --protection none "
    "wpl --epochs 3 --models-per-epoch 4 --batches-per-model 6 --importance held-out --final-samples 0 "
    "--protect-from 1",
    "two models": "forgetless two-model --data mnist --iterations 60 --iterations-a 120 --convergence 1 0.5 "
    "--protection none freeze wpl l2 mas si ewc coupling --evaluate-every 30 --seeds 1",
}
"""What is run by both codes: every space, and every way to the importance."""

Record = dict[str, Any]


def without_time(value: Any) -> Any:
    """A record without what depends on the clock, and the digest of what is written."""
    if isinstance(value, dict):
        return {k: without_time(v) for k, v in value.items() if k != "digest" and not k.endswith("seconds")}
    return [without_time(each) for each in value] if isinstance(value, list) else value


def records(folder: Path, arms: Iterable[str], seed: int = 0) -> list[Record]:
    """Every record of a seed in a run folder and the runs inside it: of some arms, and of none of them."""
    files = sorted(folder.rglob("metrics.jsonl"))
    found = (json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return [without_time(r) for r in found if r.get("seed") == seed and r.get("protection") in {*arms, None}]


def compared(mine: Iterable[Record], theirs: Iterable[Record]) -> Record:
    """How many records both have, to the last bit, and what only one has."""
    one, two = (Counter(json.dumps(r, sort_keys=True) for r in each) for each in (mine, theirs))
    apart = [*(one - two).elements(), *(two - one).elements()]
    return {"same": (one & two).total(), "apart": len(apart), "first_apart": sorted(apart)[:4]}


def run(command: str, output: Path, **variables: str) -> None:
    program = [sys.executable, "-W", "ignore", "-m", "forgetless", *shlex.split(command)[1:], "--output", str(output)]
    print(command, flush=True)
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **variables})


def repeated(output: Path, known: Record) -> Iterator[tuple[str, Record]]:
    """Against what is committed."""
    for name, arms in [pair for pair in NAMES.items() if pair[0] not in known]:
        folder = RunFolder(rerun("avx2", name))
        tables = load_config(folder).to_dict()
        of = tables.get("search", tables)
        of["run"] = of["run"] | {"seeds": 1}
        of["protections"] = [each for each in of["protections"] if each["name"] in arms]
        if "tests" in tables:
            tables["tests"] = tables["tests"] | {"allow_few_seeds": True}
        command = command_line(type(load_config(folder)).from_dict(tables), folder.header.experiment)
        run(command, output / name.replace("/", "-"), **SETS["avx2"])
        found = compared(records(output / name.replace("/", "-"), arms), records(rerun("avx2", name), arms))
        yield name, {"command": command, "against": folder.environment["git_revision"], **found}


def of_two_codes(output: Path, known: Record, checkout: Path) -> Iterator[tuple[str, Record]]:
    """Against the code of another checkout."""
    git = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    revision = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    for name, command in [pair for pair in SMALL.items() if pair[0] not in known]:
        folders = {which: output / f"{which}-{name.partition(',')[0].replace(' ', '-')}" for which in ("now", "then")}
        run(command, folders["now"])
        run(command, folders["then"], PYTHONPATH=str(checkout / "src"))
        found = compared(*(records(folder, PROTECTIONS) for folder in folders.values()))
        yield name, {"command": command, "against": revision, **found}


def main() -> None:
    found: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        is_before = sys.argv[1:2] == ["--before"]
        part = found.setdefault("small" if is_before else "repeated", {})
        pairs = of_two_codes(output, part, Path(sys.argv[2]).resolve()) if is_before else repeated(output, part)
        for name, one in pairs:
            part[name] = one
            print(name, {key: one[key] for key in ("same", "apart")}, flush=True)
            found["environment"] = environment()
            write_atomically(PATH, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
