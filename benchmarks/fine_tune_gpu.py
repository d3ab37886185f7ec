"""The frontier of `forgetless fine-tune` with a model of about 50 million weights on a GPU. At small size on a CPU.

    python benchmarks/fine_tune_gpu.py    # one seed, at most 10 minutes on a GPU of the H100's class

A Transformer in the layout of GPT-2 (6 blocks of width 768, 12 heads, 256 tokens at a time, 8,000 word pieces) is
trained on the Old Testament and fine-tuned on the New, or on the text of `--to`, under each protection. Arms that are
not begun when the time is up are left out, and said to be. Numbers of one seed have no interval: they show whether what
is found with small models goes the same way, and what it costs.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from timing import environment

from forgetless.experiments.fine_tune.config import (
    EvidenceConfig,
    FineTuneConfig,
    FineTuneSchedule,
    LanguageModelConfig,
    TextsConfig,
    arms,
)
from forgetless.experiments.fine_tune.kind import FineTuneRun
from forgetless.experiments.fine_tune.records import FineTuneRecord
from forgetless.experiments.fine_tune.result import FineTuneResult
from forgetless.experiments.fine_tune.running import load_texts, run
from forgetless.parts import OptimizerConfig, RunConfig
from forgetless.protection import PROTECTIONS, ProtectionOptions

STRENGTHS: dict[str, tuple[float, ...]] = {
    "none": (),
    "slower": (3.0, 10.0),
    "wise-ft": (0.25, 0.5, 0.75),
    "replay": (1.0,),
    "lwf": (1.0,),
    "wpl-replay": (1.0,),
    "l2": (0.1, 1.0),
    "wpl": (1.0, 100.0),
    "lora": (8.0,),
    "osf": (0.5,),
}
"""Arms, the most telling first."""


class TimeIsUp(Exception):  # noqa: N818 - no error: it ends the run
    """Told between two arms."""


def protections() -> tuple[ProtectionOptions, ...]:
    """Options of every arm."""
    kinds: dict[str, Any] = {name: PROTECTIONS[name].Options for name in STRENGTHS}
    return tuple(
        made
        for name, strengths in STRENGTHS.items()
        for made in ([kinds[name](strength=each) for each in strengths] if strengths else [kinds[name]()])
    )


def config_of(device: str, to: str) -> FineTuneConfig:
    """What is run: at full size on a GPU, at a size that shows that the script runs on a CPU."""
    if device == "cuda":
        model = LanguageModelConfig(layers=6, width=768, heads=12, context=256, num_tokens=8000)
        schedule = FineTuneSchedule(pretraining=600, pretraining_rate=1e-3, steps=150, batch_size=16, evaluate_every=75)
        samples, rate = 64, 3e-4
    else:
        model = LanguageModelConfig(layers=2, width=32, heads=2, context=16, num_tokens=300)
        schedule = FineTuneSchedule(pretraining=20, steps=5, batch_size=8, evaluate_every=5)
        samples, rate = 8, 1e-3
    return FineTuneConfig(
        texts=TextsConfig(to=(to,)),
        model=model,
        protections=protections(),
        importance=EvidenceConfig(samples=samples),
        schedule=schedule,
        optimizer=OptimizerConfig(learning_rate=rate),
        run=RunConfig(seeds=1, device=device),
    )


def frontier(config: FineTuneConfig, minutes: float) -> FineTuneResult:
    """The arms that are made before the time is up."""
    until, found = time.perf_counter() + 60 * minutes, list[FineTuneRecord]()

    def keep(record: FineTuneRecord) -> None:
        found.append(record)
        if time.perf_counter() > until:
            raise TimeIsUp

    try:
        return run(config, on_run=keep)
    except TimeIsUp:
        return FineTuneResult.of(config, found)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", default="kjv-nt", help="the new text (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=8.5, help="after which no arm begins (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    console, device = Console(), "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        console.print("No GPU is here: at small size, which shows that the script runs and nothing else.")
    torch.set_float32_matmul_precision("high")  # TF32, as such models are trained
    config, begun = config_of(device, options.to), time.perf_counter()
    num_weights = load_texts(config).start.num_weights
    result = frontier(config, options.minutes)
    seconds = time.perf_counter() - begun
    console.print(FineTuneRun.table(result))
    left_out = [arm.label for arm in arms(config)[len(result.runs) + len(result.diverged) :]]
    name = torch.cuda.get_device_name() if device == "cuda" else environment()["cpu"]
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    memory = "" if peak is None else f", {peak:.1f} GiB of GPU memory"
    console.print(f"{name}: {num_weights / 1e6:.2g} million weights, {seconds:.0f} s{memory}.")
    if left_out:
        console.print(f"Left out, because the time was up: {', '.join(left_out)}.")
    if options.json is not None:
        written = {
            "benchmark": "fine_tune_gpu",
            "command": f"python benchmarks/fine_tune_gpu.py --to {options.to} --minutes {options.minutes:g}",
            "environment": {**environment(), "device": name},
            "num_weights": num_weights,
            "seconds": seconds,
            "gpu_memory_gib": peak,
            "left_out": left_out,
            "summary": [asdict(each) for each in result.summary()],
            **FineTuneRun.records(result),
        }
        options.json.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
