"""Does a budget hold on old text that nothing has seen, is it used, and what does the new text pay for it?

$ python results/budgets.py rates                 # learning rates, on seed 100
$ python results/budgets.py pilot                 # all arms on seed 100
$ python results/budgets.py confirm               # seeds 0 to 3: 120 runs under a budget, with their baselines
$ python results/budgets.py confirm --seeds 0 2   # a part of them; several processes may share the work
$ python results/tables.py                        # puts the tables into results/pages/budgets.md

A small Transformer (2 layers of width 64, contexts of 32 word pieces) is trained on the Old Testament. Then all of its
weights are fine-tuned for 250 steps on the New Testament (near) or the Penn Treebank (distant) by each of five
optimizers, under `Budget(nats)` on 256 texts that the model wrote itself. No old data are used. Increase and new loss
are those on test text, which nothing else sees.

Baselines get the same training time, which is 5/3 of the steps: without protection, whose straight path back is
WiSE-FT; and L2-SP at four strengths. At each run's own increase of the old loss, their new loss is read off the line
between the two nearest of their points.

The learning rate of each optimizer is the one of RATES with the lowest loss on new validation text without protection,
on seed 100: no protected run and no old text decides it.

HYPOTHESIS, written before the seeds 0 to 3 were run: over the 120 runs the test increase is at most the budget in at
least 95 %; where the unprotected model exceeds the budget, 60 % or more of it is used on distant text, and less on near
text, because a model that is not at its optimum gets better at old text by reading its like, which own texts cannot
show; and the new loss is lower than that of WiSE-FT and of L2-SP at the same old loss in at least 90 % of the runs.

Writes results/budgets.json after every run; what is there already is not made again.
"""

import argparse
import fcntl
import functools
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from forgetless import Budget, WeightPlasticity, sample_text
from forgetless.experiments.fine_tune.text import Windows, WordPieces, load_lines, next_token_loss
from forgetless.experiments.fine_tune.transformer import SmallTransformer
from forgetless.runs import environment, write_atomically

PATH = Path(__file__).parent / "budgets.json"

OLD, TARGETS = "kjv-ot", ("kjv-nt", "ptb")
NUM_TOKENS, WIDTH, LAYERS, HEADS, CONTEXT, BATCH = 1000, 64, 2, 4, 32, 16
PRETRAINING, STEPS = 6000, 250
BASELINE_STEPS = STEPS * 5 // 3  # a step under a budget takes 8 own texts beside 16 new ones, through 4/3 of a pass
NUM_TEXTS, TEXT_LENGTH, MOST_WINDOWS = 256, 128, 512
PILOT, SEEDS = 100, (0, 1, 2, 3)
BUDGETS = (0.02, 0.05, 0.2)
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


# ---- optimizers --------------------------------------------------------------------------------------------------


def one(make: Callable[..., Optimizer], **options: Any) -> Callable[[nn.Module, float], list[Optimizer]]:
    return lambda model, rate: [make(model.parameters(), lr=rate, **options)]


def muon(model: nn.Module, rate: float) -> list[Optimizer]:
    """Muon for the matrices of the blocks, AdamW at its own rate for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks")]
    held = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in held]
    return [torch.optim.Muon(matrices, lr=rate, weight_decay=0.0), torch.optim.AdamW(rest, lr=2e-3, weight_decay=0.0)]


OPTIMIZERS: dict[str, Callable[[nn.Module, float], list[Optimizer]]] = {
    "SGD, momentum 0.9": one(torch.optim.SGD, momentum=0.9),
    "AdamW": one(torch.optim.AdamW, weight_decay=0.0),
    "RMSprop": one(torch.optim.RMSprop),
    "Adagrad": one(torch.optim.Adagrad),
    "Muon, rest by AdamW": muon,
}
RATES: dict[str, tuple[float, ...]] = {
    "SGD, momentum 0.9": (0.01, 0.02, 0.05),
    "AdamW": (1e-3, 2e-3, 4e-3),
    "RMSprop": (3e-4, 1e-3, 2e-3),
    "Adagrad": (0.01, 0.02, 0.04),
    "Muon, rest by AdamW": (0.002, 0.005, 0.01),
}


# ---- text and the old model --------------------------------------------------------------------------------------


@functools.cache
def texts() -> dict[str, Windows]:
    lines = {name: load_lines(name) for name in (OLD, *TARGETS)}
    pieces = WordPieces(lines[OLD].splits["train"], NUM_TOKENS)
    return {name: Windows(each, pieces, BATCH, CONTEXT) for name, each in lines.items()}


@functools.cache
def pretrained(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """The weights of the old model, and texts that it wrote."""
    sizes = (NUM_TOKENS, WIDTH, LAYERS, HEADS, CONTEXT, PRETRAINING, NUM_TEXTS, TEXT_LENGTH, seed)
    path = Path(tempfile.gettempdir()) / f"forgetless-budgets-{'-'.join(map(str, sizes))}.pt"
    if path.exists():
        weights, own = torch.load(path, weights_only=True)
        return weights, own
    torch.manual_seed(seed)
    model = SmallTransformer(NUM_TOKENS, WIDTH, LAYERS, HEADS, CONTEXT)
    train(model, [torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)], texts()[OLD], PRETRAINING, seed)
    generator = torch.Generator().manual_seed(seed)
    first = torch.ones(NUM_TEXTS, 1, dtype=torch.long)  # the token before each line
    own = sample_text(model, first, TEXT_LENGTH - 1, context=CONTEXT, generator=generator)
    own = own.reshape(-1, CONTEXT)
    torch.save((model.state_dict(), own), path)
    return model.state_dict(), own


def train(model: nn.Module, optimizers: list[Optimizer], text: Windows, steps: int, seed: int) -> None:
    """Under a learning rate that falls linearly to 0."""
    schedules = [LambdaLR(optimizer, lambda step: 1 - step / steps) for optimizer in optimizers]
    for inputs, targets in text.training_batches(steps, torch.Generator().manual_seed(seed)):
        model.zero_grad()
        loss = next_token_loss(model(inputs), targets)
        if not math.isfinite(float(loss.detach())):
            return
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()


# ---- one fine-tuning ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """One fine-tuning.

    Attributes:
        optimizer: Its name.
        rate: Its first learning rate.
        to: The new text.
        protection: `none`, `l2` or `budget`.
        strength: α of `l2`; the budget in nats; 0 without.
        seed: Of the old model and of the batches.
    """

    optimizer: str
    rate: float
    to: str
    protection: str
    strength: float
    seed: int


def losses(model: nn.Module, to: str, split: str = "test") -> tuple[float, float]:
    """Of the old and the new text, in nats per token."""
    old, new = (texts()[name].error(model, split, MOST_WINDOWS) for name in (OLD, to))
    return old, new


def fine_tune(arm: Arm) -> dict[str, Any]:
    """What the old text loses, and what the new one reaches."""
    weights, own = pretrained(arm.seed)
    model = SmallTransformer(NUM_TOKENS, WIDTH, LAYERS, HEADS, CONTEXT)
    model.load_state_dict(weights)
    old_before, new_before = losses(model, arm.to)
    optimizers = OPTIMIZERS[arm.optimizer](model, arm.rate)
    start = time.perf_counter()
    keep = None
    if arm.protection == "budget":
        keep = Budget(arm.strength, on=own, seed=arm.seed).attach(model, optimizers)
    elif arm.protection == "l2":
        plasticity = WeightPlasticity(model, arm.strength)
        plasticity.consolidate(model, {name: torch.ones_like(p) for name, p in model.named_parameters()})
        for optimizer in optimizers:
            plasticity.attach(optimizer)
    steps = STEPS if arm.protection == "budget" else BASELINE_STEPS
    train(model, optimizers, texts()[arm.to], steps, 1000 + arm.seed)
    report = None if keep is None else asdict(keep.finish())
    seconds = time.perf_counter() - start
    old, new = losses(model, arm.to)
    found = {
        "old_before": old_before,
        "increase": old - old_before,
        "new_before": new_before,
        "new": new,
        "new_validation": losses(model, arm.to, "validation")[1],
    }
    finite = {key: value if math.isfinite(value) else None for key, value in found.items()}
    path = back(model, weights, arm.to, old_before) if arm.protection == "none" else None
    return {**asdict(arm), **finite, "report": report, "path": path, "seconds": seconds}


def back(model: nn.Module, weights: dict[str, Tensor], to: str, old_before: float) -> list[tuple[float, float, float]]:
    """(share, increase, new loss) on the straight path back to the old weights."""
    ends = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = []
    for share in SHARES:
        model.load_state_dict({name: torch.lerp(weights[name], end, share) for name, end in ends.items()})
        old, new = losses(model, to)
        found.append((share, old - old_before, new))
    model.load_state_dict(ends)
    return found


# ---- what is run -------------------------------------------------------------------------------------------------


def rate_arms() -> Iterator[Arm]:
    for to, (name, rates) in itertools.product(TARGETS, RATES.items()):
        for rate in rates:
            yield Arm(name, rate, to, "none", 0.0, PILOT)


def arms(rates: dict[tuple[str, str], float], seeds: tuple[int, ...]) -> Iterator[Arm]:
    """All of a seed before the next."""
    kinds = [("none", 0.0), *(("budget", nats) for nats in BUDGETS), *(("l2", alpha) for alpha in STRENGTHS)]
    for seed, (protection, strength), to, name in itertools.product(seeds, kinds, TARGETS, OPTIMIZERS):
        yield Arm(name, rates[name, to], to, protection, strength, seed)


def chosen_rates(rows: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """(optimizer, new text) → the rate with the lowest loss on new validation text, without protection."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["optimizer"], row["to"])
        is_one = row["seed"] == PILOT and row["protection"] == "none" and row["new_validation"] is not None
        if is_one and (key not in best or row["new_validation"] < best[key]["new_validation"]):
            best[key] = row
    return {key: row["rate"] for key, row in best.items()}


def read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    return {"environment": environment(), "rows": [], **found}


def add(row: dict[str, Any]) -> None:
    """To what is there, which another process may have added to."""
    with (Path(tempfile.gettempdir()) / "forgetless-budgets.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read()
        found["rows"].append(row)
        write_atomically(PATH, json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("rates", "pilot", "confirm"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keys = list(Arm.__dataclass_fields__)
    if given.what == "rates":
        wanted = list(rate_arms())
    else:
        wanted = list(arms(chosen_rates(read()["rows"]), (PILOT,) if given.what == "pilot" else tuple(given.seeds)))
    for arm in wanted:
        if tuple(asdict(arm).values()) in {tuple(row[key] for key in keys) for row in read()["rows"]}:
            continue
        row = fine_tune(arm)
        add(row)
        shown = {key: round(v, 4) if isinstance(v, float) else v for key, v in row.items() if key != "path"}
        print(shown, flush=True)


if __name__ == "__main__":
    main()
