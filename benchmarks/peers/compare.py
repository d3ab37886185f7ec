"""Libraries beside forgetless: is their Fisher that of the examples, and what do it and a protected step cost?

    .venv-peers/bin/python benchmarks/peers/compare.py --json results/peers.json

See requirements.txt for the environment. The network is 784-512-512-512-10 (0.93 million weights) over MNIST. Its
Fisher is compared with the slow reference, one example at a time in float64: `factor` is the ratio of sums, 1 for the
mean over examples of the squared gradient of each; `correlation` is Pearson's over all weights. Times are ratios to one
ordinary forward and backward pass over the same batches (Fisher) and to an unprotected step of SGD at batch 128,
interleaved, medians. Memory is what the process's peak rises by (Fisher) and what is held between steps, in bytes per
weight.
"""

import json
import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from libraries import FISHERS, STEPS, Batch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import compare, environment, growth, in_batches, mnist_or_random, parser, prepare

TASKS = (1, 10)
STEP_BATCH = 128
COMMAND = "python benchmarks/peers/compare.py"


@dataclass(frozen=True)
class Row:
    """What was found of one library.

    Attributes:
        name: Library and version.
        factor: Sum of its Fisher over that of the reference.
        correlation: Pearson's, over all weights.
        fisher_ratio: Time of the Fisher over that of a forward and backward pass.
        fisher_bytes: By how much the peak memory rises during the Fisher, per weight, above that pass.
        step_ratios: Time of a step over an unprotected one's, by number of earlier tasks; empty where it has none.
        step_bytes: Memory held between steps per weight, by number of earlier tasks.
    """

    name: str
    factor: float
    correlation: float
    fisher_ratio: float
    fisher_bytes: float
    step_ratios: dict[int, float]
    step_bytes: dict[int, float]


def network() -> nn.Module:
    """784-512-512-512-10, in evaluation mode."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (784, 512, 512):
        layers += [nn.Linear(width, 512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10)).eval()


def trained(batches: Sequence[Batch]) -> nn.Module:
    """The network after one pass of Adam."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for inputs, labels in batches:
        for part, answers in zip(inputs.split(100), labels.split(100), strict=True):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            F.cross_entropy(model(part), answers).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model


def reference(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Mean over examples of the squared gradient of each, one at a time, in float64."""
    exact = deepcopy(model).double()
    total = [torch.zeros_like(p) for p in exact.parameters()]
    num_examples = 0
    for inputs, labels in batches:
        for image, label in zip(inputs.double(), labels, strict=True):
            loss = F.cross_entropy(exact(image[None]), label[None])
            for sum_, gradient in zip(total, torch.autograd.grad(loss, list(exact.parameters())), strict=True):
                sum_ += gradient.square()
            num_examples += 1
    return torch.cat([sum_.flatten() for sum_ in total]) / num_examples


def quality(name: str, model: nn.Module, batches: Sequence[Batch], exact: Tensor) -> tuple[float, float]:
    """Factor and correlation of a library's Fisher to the reference."""
    values = torch.cat([value.flatten() for value in FISHERS[name](deepcopy(model), batches)]).double()
    return (values.sum() / exact.sum()).item(), torch.corrcoef(torch.stack([values, exact]))[0, 1].item()


def peak_bytes(name: str, batches: Sequence[Batch]) -> float:
    """By how much a library's Fisher raises the peak memory of a new process, once its modules are loaded. Linux."""
    warnings.simplefilter("ignore")
    prepare(1)
    FISHERS[name](network(), [(inputs[:2], labels[:2]) for inputs, labels in batches[:1]])
    model = network()
    return growth(partial(FISHERS[name], model, batches))


def measure(batches: list[Batch], few: list[Batch], rounds: int) -> list[Row]:
    """A row per library.

    Args:
        batches: Whose Fisher is timed.
        few: Those that the slow reference goes through.
        rounds: Timed rounds.
    """
    model = trained(batches)
    num_weights = sum(p.numel() for p in model.parameters())
    exact = reference(model, few)
    timings = compare({name: partial(fisher, deepcopy(model), batches) for name, fisher in FISHERS.items()}, rounds)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = [pool.apply(peak_bytes, (name, batches)) for name in FISHERS]
    steps = protected_steps(model, batches[0], rounds)
    return [
        Row(
            timing.name,
            *quality(timing.name, model, few, exact),
            fisher_ratio=timing.ratio,
            fisher_bytes=(peak - peaks[0]) / num_weights,
            step_ratios={tasks: ratio for tasks, (ratio, _) in steps[timing.name].items()},
            step_bytes={tasks: size / num_weights for tasks, (_, size) in steps[timing.name].items()},
        )
        for timing, peak in list(zip(timings, peaks, strict=True))[1:]
    ]


def protected_steps(model: nn.Module, batch: Batch, rounds: int) -> dict[str, dict[int, tuple[float, int]]]:
    """By library and number of earlier tasks: a step's time over an unprotected one's, and the bytes that are held."""
    inputs, labels = batch
    made = {
        (name, tasks): step(deepcopy(model), tasks, (inputs[:STEP_BATCH], labels[:STEP_BATCH]))
        for name, step in STEPS.items()
        for tasks in TASKS
    }
    timings = compare({f"{name}:{tasks}": step for (name, tasks), (step, _) in made.items()}, 5 * rounds)
    found: dict[str, dict[int, tuple[float, int]]] = {name: {} for name in FISHERS}
    for ((name, tasks), (_, held)), timing in zip(made.items(), timings, strict=True):
        found[name][tasks] = (timing.ratio, sum(t.numel() * t.element_size() for t in held))
    return found


def main() -> None:
    """Measure, print and write."""
    warnings.simplefilter("ignore")  # theirs, of one another's versions
    command = parser(__doc__, rounds=20)
    command.add_argument("--examples", type=int, default=10_000, help="for the times (default %(default)s)")
    command.add_argument(
        "--reference-examples", type=int, default=2_000, help="for factor and correlation (default %(default)s)"
    )
    options = command.parse_args()
    prepare(options.threads)
    images, labels, data = mnist_or_random(options.examples)
    few = in_batches(images[: options.reference_examples], labels[: options.reference_examples], 100)
    rows = measure(in_batches(images, labels, 1000), few, options.rounds)
    show(rows)
    if options.json is not None:
        result = {
            "benchmark": "peers/compare",
            "command": f"{COMMAND} --rounds {options.rounds} --threads {options.threads}",
            "environment": environment(),
            "data": f"{len(images):,} examples of {data}, batch 1000; reference: {len(few)} batches of 100",
            "rounds": options.rounds,
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def show(rows: Sequence[Row]) -> None:
    """Print two tables."""
    fisher = Table("Fisher", "factor", "correlation", "time", "bytes per weight")
    step = Table("step", *(f"{what}, {tasks} earlier" for tasks in TASKS for what in ("time", "bytes per weight")))
    for row in rows:
        found = (row.factor, row.correlation, row.fisher_ratio, row.fisher_bytes)
        fisher.add_row(row.name, *(f"{number:.3g}" for number in found))
        if row.step_ratios:
            pairs = ((row.step_ratios[tasks], row.step_bytes[tasks]) for tasks in TASKS)
            step.add_row(row.name, *(f"{number:.3g}" for pair in pairs for number in pair))
    for table in (fisher, step):
        Console().print(table)


if __name__ == "__main__":
    main()
