"""Time, memory and bandwidth of the proximal step at 1, 10 and 30 million weights, and what each saving protects less.

    python benchmarks/step_cost.py --json results/speed/step_cost.json

Four matrices with 512 columns, all shared. A round is four steps: the optimizer's alone, which is the yardstick, and
the proximal steps alone after them, plain and with each option. Then, of an MLP on MNIST whose hidden layers a second
model trains on other inputs, the accuracy and loss of the first with each option. Takes some 7 minutes.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timing import Batch, Timing, compare, growth, in_batches, mnist_or_random, parser, prepare, report
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer

from forgetless import WeightPlasticity, diagonal_fisher

NUM_STEPS = 4
OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "SGD": (SGD, {"lr": 1e-4}),
    "AdamW, fused": (AdamW, {"lr": 1e-4, "fused": True}),
    "AdamW, foreach": (AdamW, {"lr": 1e-4, "foreach": True}),
    "Muon": (Muon, {"lr": 1e-4}),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "proximal step": {},
    "importance_dtype=torch.bfloat16": {"importance_dtype": torch.bfloat16},
    "importance_dtype=torch.uint8": {"importance_dtype": torch.uint8},
    "every=4": {"every": 4},
    "compiled=True": {"compiled": True},
}
Row = dict[str, str | float]


def repeated(step: Callable[[], object]) -> None:
    """So many steps, that every row has as many of the optimizer's."""
    for _ in range(NUM_STEPS):
        step()


def following(optimizer: Optimizer, weights: nn.ParameterList, options: dict[str, Any]) -> tuple[Any, Optimizer]:
    """A plasticity, and an optimizer with the state of another that does nothing: its time is that of what follows."""
    kind = type(optimizer)
    idle_kind = type(kind.__name__, (kind,), {"step": lambda _self: None, "__module__": kind.__module__})
    idle = idle_kind(weights.parameters(), lr=optimizer.param_groups[0]["lr"])
    idle.state = optimizer.state
    plasticity = WeightPlasticity(weights.parameters(), alpha=1e4, **options)
    plasticity.consolidate(weights, {name: 1e-4 * torch.rand_like(w) for name, w in weights.named_parameters()})
    return plasticity.attach(idle), idle


def held_bytes(plasticity: WeightPlasticity) -> int:
    """What anchors and importances take."""
    stored = plasticity._weights
    tensors = [t for f in stored.importances for t in ((f,) if isinstance(f, Tensor) else f or ())]
    return sum(t.numel() * t.element_size() for t in (*tensors, *(a for a in stored.anchors if a is not None)))


def copy_bandwidth(num_weights: int) -> float:
    """Bytes per second that a copy reads and writes."""
    source, target = torch.randn(num_weights), torch.empty(num_weights)
    (timing,) = compare({"copy": lambda: target.copy_(source)}, rounds=20)
    return 8 * num_weights / timing.seconds


def at_size(name: str, num_weights: int, rounds: int) -> tuple[list[Timing], list[Row]]:
    """Times of the steps, and what they take: bytes per weight, and the share of a copy's bandwidth."""
    kind, options = OPTIMIZERS[name]
    weights = nn.ParameterList(nn.Parameter(torch.randn(num_weights // 4 // 512, 512)) for _ in range(4))
    count = sum(weight.numel() for weight in weights)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = kind(weights.parameters(), **options)
    optimizer.step()
    functions: dict[str, Callable[[], object]] = {"optimizer's step": partial(repeated, optimizer.step)}
    rows: list[Row] = []
    for row, own in OPTIONS.items():
        plasticity, idle = following(optimizer, weights, own)
        functions[row] = partial(repeated, idle.step)
        if own.get("compiled"):
            idle.step()  # the compiler's own memory is not the step's
        grown = growth(functions[row])
        rows.append({"": row, "held": held_bytes(plasticity) / count, "temporary, MB": grown / 1e6})
    timings = compare(functions, rounds, warmup=1)
    bandwidth = copy_bandwidth(count)
    # Read: weight, anchor, importance, and Adam's moment; written: the weight.
    moment = 4 if issubclass(kind, AdamW) else 0
    for fact, timing in zip(rows, timings[1:], strict=True):
        moved = 8 + float(fact["held"]) + moment
        steps = 1 if fact[""] == "every=4" else NUM_STEPS
        fact["share of bandwidth"] = steps * moved * count / timing.seconds / bandwidth
    return timings, rows


def digits(hidden: nn.Module) -> nn.Sequential:
    """A model with ends of its own around hidden layers."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), hidden, nn.ReLU(), nn.Linear(256, 10))


def train(model: nn.Module, optimizer: Optimizer, batches: list[Batch]) -> None:
    """One step per batch."""
    for inputs, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def quality(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy in % and mean cross entropy."""
    outputs = model(inputs)
    return 100 * float((outputs.argmax(1) == labels).float().mean()), float(F.cross_entropy(outputs, labels))


def protection(seeds: int) -> list[Row]:
    """Means over seeds of what A has left, and B gains, with each option."""
    images, labels, _ = mnist_or_random(8_000)
    train_a, test = in_batches(images[:6000], labels[:6000], 100) * 3, (images[6000:], labels[6000:])
    sums: dict[str, Tensor] = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        a = digits(nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)))
        train(a, Adam(a.parameters(), lr=1e-3), train_a)
        importance = diagonal_fisher(a, in_batches(*test, 500), F.cross_entropy)
        mixed = torch.randperm(784)
        other = [(inputs[:, mixed], 9 - labels) for inputs, labels in train_a[:120]]
        b = digits(a[2])
        rows = {"before B": None, "unprotected": None} | OPTIONS
        for name, options in rows.items():
            first, second = copy.deepcopy((a, b))
            second[2] = first[2]
            if name != "before B":
                optimizer = Adam(second.parameters(), lr=1e-3)
                if options is not None:
                    plasticity = WeightPlasticity(first[2], alpha=1e4, **options).attach(optimizer)
                    plasticity.consolidate(first, importance)
                train(second, optimizer, other)
            measured = (*quality(first, *test), quality(second, test[0][:, mixed], 9 - test[1])[0])
            sums[name] = sums.get(name, torch.zeros(3)) + torch.tensor(measured) / seeds
    names = ("A's accuracy, %", "A's loss", "B's accuracy, %")
    return [{"": name} | dict(zip(names, values.tolist(), strict=True)) for name, values in sums.items()]


def main() -> None:
    """Measure, print and write."""
    command = parser(__doc__, rounds=20)
    command.add_argument("--millions", type=int, nargs="+", default=[1, 10, 30], help="of weights (default 1 10 30)")
    command.add_argument("--seeds", type=int, default=3, help="of the two models (default %(default)s)")
    options = command.parse_args()
    prepare(options.threads)
    tables, facts = {}, {}
    for millions in options.millions:
        for name in OPTIMIZERS:
            rounds = options.rounds
            if name == "Muon":  # a step of its own takes seconds
                if millions > 10:
                    continue
                rounds = 6 if millions == 1 else 2
            title = f"{name}, {millions} million weights, 4 steps"
            tables[title], facts[f"{title}: bytes per weight held, and bandwidth"] = at_size(
                name, millions * 10**6, rounds
            )
    facts[f"A's hidden layers trained by B, Adam, {options.seeds} seeds"] = protection(options.seeds)
    report("step_cost", tables, options.rounds, options.json, facts)


if __name__ == "__main__":
    main()
