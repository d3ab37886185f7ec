"""One fine-tuning of a small GPT under each optimizer with the same α: does A lose the same under all?

$ python results/optimizers.py rates         # learning rates, on seed 100
$ python results/optimizers.py confirm       # seeds 0, 1 and 2
$ python results/tables.py                   # puts the table into results/pages/optimizers.md

A Transformer that predicts characters (2 layers of width 64, contexts of 32) is trained on the Penn Treebank. Then all
of its weights are fine-tuned on the King James text by each optimizer of docs/optimizers.md: nothing weighs in but the
loss and the penalty (no weight decay, no clipping), the learning rate falls linearly to 0, and batches are the same.

The learning rate of each optimizer is the one of RATES with the lowest loss on the new validation text without
protection, after 400 steps on seed 100: no protected run and no old text decides it. Importance is the empirical
Fisher per target.

HYPOTHESIS, written before the seeds 0, 1 and 2 were run: with the optimizer's metric what A loses is within a factor of
2 over the optimizers, at α = 1 and at α = 100. With d = 1 in place of the metric it is not.

Writes results/optimizers.json after every fine-tuning; what is there already is not made again. Lion is left out
where lion-pytorch is not installed.
"""

import contextlib
import functools
import importlib.util
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from forgetless import WeightPlasticity, diagonal_fisher
from forgetless.data.text import TextData, load_text
from forgetless.runs import environment, write_atomically

PATH = Path(__file__).parent / "optimizers.json"

CONTEXT, BATCH, WIDTH, HEADS, LAYERS = 32, 8, 64, 4, 2
STEPS_A, STEPS_B, STEPS_OF_RATES = 2500, 700, 400
PILOT, SEEDS = 100, (0, 1, 2)
ARMS = (("metric", 1.0), ("metric", 100.0), ("identity", 100.0), ("none", 0.0))

Optimizers = list[Optimizer]


# ---- text and model ----------------------------------------------------------------------------------------------


def characters(data: TextData) -> dict[str, str]:
    """Each split as one line of characters; a line's end is a new line."""
    words = [word.replace("<eos>", "\n") for word in data.vocabulary]
    names = ("train", "importance", "validation", "test")
    return {name: " ".join(words[i] for i in getattr(data, name)[:300_000].tolist()) for name in names}


@functools.cache
def texts() -> tuple[dict[str, dict[str, Tensor]], int]:
    """Text → split → characters as numbers; and how many characters there are, in both texts together."""
    found = {name: characters(load_text(name)) for name in ("ptb", "kjv")}
    alphabet = sorted({c for splits in found.values() for text in splits.values() for c in text})
    number = {c: i for i, c in enumerate(alphabet)}
    coded = {
        name: {split: torch.tensor([number[c] for c in text]) for split, text in splits.items()}
        for name, splits in found.items()
    }
    return coded, len(alphabet)


class Block(nn.Module):
    """Pre-norm attention and feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.queries, self.keys, self.values, self.mixed = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        queries, keys, values = (
            layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.queries, self.keys, self.values)
        )
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)  # (B, heads, T, width/heads)
        x = x + self.mixed(attended.transpose(1, 2).flatten(-2))
        residual: Tensor = self.narrow(F.gelu(self.wide(self.norm_2(x))))
        return x + residual


class SmallGPT(nn.Module):
    """Characters (B, T) → logits (B, T, characters)."""

    def __init__(self, num_characters: int) -> None:
        super().__init__()
        self.character, self.place = nn.Embedding(num_characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, num_characters, bias=False)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.05)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device).expand_as(x)
        logits: Tensor = self.head(self.norm(self.blocks(self.character(x) + self.place(places))))
        return logits


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.mT, targets, reduction="none")


def batches(text: Tensor, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        start = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=generator)
        index = start + torch.arange(CONTEXT)
        yield text[index], text[index + 1]


@torch.no_grad()
def loss_on(model: nn.Module, text: Tensor, num: int = 512) -> float:
    """Mean loss in nats per character on the same chunks at each call, spread over the text."""
    starts = torch.linspace(0, len(text) - CONTEXT - 2, num).long().unsqueeze(1)
    index = starts + torch.arange(CONTEXT)
    return float(token_loss(model(text[index]), text[index + 1]).mean())


# ---- optimizers --------------------------------------------------------------------------------------------------


def muon(model: nn.Module, rate: float) -> Optimizers:
    """Muon for the matrices of the blocks, AdamW at its own rate for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks")]
    held = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in held]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=3e-3, weight_decay=0.0),
    ]


def one(make: Callable[..., Optimizer], **options: Any) -> Callable[[nn.Module, float], Optimizers]:
    return lambda model, rate: [make(model.parameters(), lr=rate, **options)]


def transformers_adafactor(model: nn.Module, rate: float) -> Optimizers:
    from transformers.optimization import Adafactor

    return [Adafactor(model.parameters(), lr=rate, relative_step=False, scale_parameter=False, warmup_init=False)]


def lion(model: nn.Module, rate: float) -> Optimizers:
    from lion_pytorch import Lion

    return [Lion(model.parameters(), lr=rate)]


OPTIMIZERS: dict[str, Callable[[nn.Module, float], Optimizers]] = {
    "SGD": one(torch.optim.SGD),
    "SGD, momentum 0.9": one(torch.optim.SGD, momentum=0.9),
    "ASGD": one(torch.optim.ASGD),
    "Adam": one(torch.optim.Adam),
    "Adamax": one(torch.optim.Adamax),
    "NAdam": one(torch.optim.NAdam),
    "RAdam": one(torch.optim.RAdam),
    "RMSprop": one(torch.optim.RMSprop),
    "Adagrad": one(torch.optim.Adagrad),
    "Adadelta": one(torch.optim.Adadelta),
    "Adafactor": one(torch.optim.Adafactor),
    "transformers' Adafactor": transformers_adafactor,
    "Muon, rest by AdamW": muon,
    "Lion": lion,
}

_ADAM = (1e-3, 3e-3, 1e-2)
RATES: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(OPTIMIZERS, _ADAM),
    **dict.fromkeys(("SGD", "ASGD"), (0.1, 0.3, 1.0)),
    "SGD, momentum 0.9": (0.03, 0.1, 0.3),
    "Adagrad": (0.01, 0.03, 0.1),
    "Adadelta": (1.0, 3.0, 10.0),
    "Adafactor": (0.01, 0.03, 0.1),
    "Muon, rest by AdamW": (0.003, 0.01, 0.03),
    "Lion": (1e-4, 3e-4, 1e-3),
}


# ---- one fine-tuning ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """One fine-tuning.

    Attributes:
        optimizer: Its name.
        rate: Its first learning rate.
        protection: `none`, `metric` or `identity`, which takes d = 1 in place of the optimizer's metric.
        alpha: 0 without protection.
        seed: Of A, of the batches of B, and of nothing else.
        steps: Of B.
    """

    optimizer: str
    rate: float
    protection: str
    alpha: float
    seed: int
    steps: int = STEPS_B


@functools.cache
def pretrained(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of A and its importance."""
    coded, num_characters = texts()
    text = coded["ptb"]
    torch.manual_seed(seed)
    model = SmallGPT(num_characters)
    optimizers = OPTIMIZERS["Adam"](model, 3e-3)
    train(model, optimizers, text["train"], STEPS_A, seed)
    examples = list(batches(text["importance"], 100, seed))
    return model.state_dict(), diagonal_fisher(model, examples, token_loss, per="target")


def train(model: nn.Module, optimizers: Optimizers, text: Tensor, steps: int, seed: int) -> None:
    schedules = [LambdaLR(optimizer, lambda step: 1 - step / steps) for optimizer in optimizers]
    for inputs, targets in batches(text, steps, seed):
        model.zero_grad()
        loss = token_loss(model(inputs), targets).mean()
        if not math.isfinite(float(loss.detach())):
            return
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()


def fine_tune(arm: Arm) -> dict[str, Any]:
    """What A loses, and what B reaches, in nats per character of held-out text."""
    (coded, num_characters), (weights, importance) = texts(), pretrained(arm.seed)
    model = SmallGPT(num_characters)
    model.load_state_dict(weights)
    old, new = coded["ptb"], coded["kjv"]
    before = {"old": loss_on(model, old["test"]), "new": loss_on(model, new["test"])}
    optimizers = OPTIMIZERS[arm.optimizer](model, arm.rate)
    plasticity = WeightPlasticity(model, arm.alpha)
    plasticity.consolidate(model, importance)
    for optimizer in optimizers if arm.protection != "none" else ():
        plasticity.attach(optimizer, metric=(lambda *_: 1.0) if arm.protection == "identity" else None)
    start = time.perf_counter()
    train(model, optimizers, new["train"], arm.steps, 1000 + arm.seed)
    seconds = time.perf_counter() - start
    found = {
        "new_validation": loss_on(model, new["validation"]),
        "old_before": before["old"],
        "old_lost": loss_on(model, old["test"]) - before["old"],
        "new_before": before["new"],
        "new": loss_on(model, new["test"]),
        "form": plasticity.expected_increase(),
    }
    finite = {key: value if math.isfinite(value) else None for key, value in found.items()}
    return {**asdict(arm), **finite, "seconds": seconds}


# ---- what is run -------------------------------------------------------------------------------------------------


def rate_arms() -> Iterator[Arm]:
    for name in available():
        for rate in RATES[name]:
            yield Arm(name, rate, "none", 0.0, PILOT, STEPS_OF_RATES)


def confirming_arms(rows: list[dict[str, Any]]) -> Iterator[Arm]:
    rates = chosen_rates(rows)
    names = [name for name in available() if name in rates]
    for seed, (protection, alpha), name in itertools.product(SEEDS, ARMS, names):
        yield Arm(name, rates[name], protection, alpha, seed)


def available() -> list[str]:
    """The optimizers that are installed."""
    needs = {"Lion": "lion_pytorch", "transformers' Adafactor": "transformers"}
    return [name for name in OPTIMIZERS if name not in needs or importlib.util.find_spec(needs[name])]


def chosen_rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Optimizer → the rate of the lowest loss on the new validation text, without protection, on the pilot's seed."""
    best: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["seed"] == PILOT and row["protection"] == "none" and row["steps"] == STEPS_OF_RATES:
            value = row["new_validation"]
            if value is not None and (row["optimizer"] not in best or value < best[row["optimizer"]]["new_validation"]):
                best[row["optimizer"]] = row
    return {name: row["rate"] for name, row in best.items()}


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"environment": environment()}
    if PATH.exists():
        found = json.loads(PATH.read_text(encoding="utf-8"))
    rows = found.setdefault("rows", [])
    wanted = rate_arms() if sys.argv[1] == "rates" else confirming_arms(rows)
    keys = list(asdict(Arm("", 0, "", 0, 0)))
    known = {tuple(row[key] for key in keys) for row in rows}
    for arm in wanted:
        if tuple(asdict(arm).values()) in known:
            continue
        rows.append(fine_tune(arm))
        print({key: round(v, 4) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
        write_atomically(PATH, json.dumps(found, indent=1) + "\n")
    with contextlib.suppress(KeyError):
        print(chosen_rates(rows))


if __name__ == "__main__":
    main()
