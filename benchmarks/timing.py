"""Compares functions' times on a machine that is never quiet: interleaved rounds, medians, ratios within a round."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Timing:
    """How long one function took.

    Attributes:
        name: What was timed.
        seconds: Median over the rounds.
        ratio: Median over the rounds of its time divided by the yardstick's in the same round.
        ratio_low: First quartile of that ratio.
        ratio_high: Third quartile.
    """

    name: str
    seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float


def compare(functions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> list[Timing]:
    """Time functions one after the other, round by round, so that a slow moment of the machine meets them all.

    Args:
        functions: Name → what is timed. The first is the yardstick. The order alternates between rounds.
        rounds: Timed rounds, at least 20 for a number that is published.
        warmup: Rounds before them that are not timed.

    Returns:
        One timing per function, in the order given.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(-warmup, rounds):
        for name in functions if turn % 2 else reversed(list(functions)):
            start = time.perf_counter()
            functions[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    yardstick = next(iter(seconds.values()))
    timings = []
    for name, values in seconds.items():
        ratios = [value / unit for value, unit in zip(values, yardstick, strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        timings.append(Timing(name, statistics.median(values), ratio, low, high))
    return timings


def mnist_or_random(num_examples: int) -> tuple[Tensor, Tensor, str]:
    """Images (N, 784), labels (N,) and the name of the data: MNIST where it is found, else random numbers."""
    try:
        from forgetless.data import load_images

        train = load_images("mnist").train
        if len(train.images) >= num_examples:
            return train.images[:num_examples].flatten(1).float(), train.labels[:num_examples], "MNIST"
        reason = f"MNIST's training split has only {len(train.images)} examples"
    except (OSError, ValueError) as error:
        reason = str(error)
    Console(stderr=True).print(f"Random data instead of MNIST: {reason}", style="yellow", markup=False)
    return torch.randn(num_examples, 784), torch.randint(10, (num_examples,)), "random"


def in_batches(inputs: Tensor, labels: Tensor, size: int) -> list[Batch]:
    """The examples in order, `size` at a time."""
    return list(zip(torch.split(inputs, size), torch.split(labels, size), strict=True))


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=rounds, help="timed runs of each (default %(default)s)")
    options.add_argument("--threads", type=int, default=1, help="of PyTorch (default %(default)s)")
    options.add_argument("--json", type=Path, help="write the results to this file")
    return options


def prepare(threads: int) -> None:
    """Fix what would otherwise differ between runs. Denormal numbers slow a CPU several times: they become 0."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def environment() -> dict[str, Any]:
    """Versions, processor and number of threads."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "flush_denormal": True,
    }


def growth(function: Callable[[], object]) -> float:
    """By how many bytes the process grows while the function runs, at most; nan where the kernel does not tell."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return float("nan")

    def kilobytes(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    clear.write_text("5")
    before = kilobytes("VmRSS")
    function()
    return 1024.0 * (kilobytes("VmHWM") - before)


def cpu_name() -> str:
    """The processor's name as the kernel knows it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def print_tables(tables: Mapping[str, Sequence[Timing]]) -> None:
    """Print one table per yardstick."""
    for title, timings in tables.items():
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for column in ("ms", "ratio", "quartiles"):
            table.add_column(column, justify="right")
        for timing in timings:
            quartiles = f"{timing.ratio_low:.2f}–{timing.ratio_high:.2f}"
            table.add_row(timing.name, f"{1e3 * timing.seconds:.2f}", f"{timing.ratio:.2f}", quartiles)
        Console().print(table)


def report(
    benchmark: str,
    tables: Mapping[str, Sequence[Timing]],
    rounds: int,
    json_path: Path | None,
    facts: Mapping[str, Sequence[Mapping[str, str | float]]] | None = None,
) -> None:
    """Print one table per yardstick and, with a path, write everything as JSON; `facts` are tables of other numbers."""
    facts = facts or {}
    for title, rows in facts.items():
        table = Table(*rows[0], title=title, title_justify="left")
        for row in rows:
            table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
        Console().print(table)
    print_tables(tables)
    if json_path is not None:
        result = {
            "benchmark": benchmark,
            "command": f"python benchmarks/{benchmark}.py --rounds {rounds} --threads {torch.get_num_threads()}",
            "environment": environment(),
            "rounds": rounds,
            "tables": {title: [asdict(timing) for timing in timings] for title, timings in tables.items()},
            "facts": facts,
        }
        json_path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
