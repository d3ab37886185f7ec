"""Time of a training step with the proximal step attached, as a ratio to the same step without.

    python benchmarks/proximal_step.py --json proximal_step.json

An MLP 784-512-512-512-10 on MNIST, batch 128; all weights but the classifier's are shared with 1 or 100 earlier
models, whose importances are random numbers of a Fisher's size; then with `every` and `compiled`. A round is `--steps`
training steps: forward, backward and the optimizer's step. The last tables are of 10,000 weights of 8 × 8, all shared:
there a round is the optimizer's step alone, as a bare loop over the weights and with the protection at a strength and
within a tolerance.
"""

import copy
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from fisher import mlp
from timing import Batch, Timing, compare, in_batches, mnist_or_random, parser, prepare, report
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from forgetless import WeightPlasticity

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "SGD": lambda model: SGD(model.parameters(), lr=0.01),
    "SGD, momentum 0.9": lambda model: SGD(model.parameters(), lr=0.01, momentum=0.9),
    "Adam": lambda model: Adam(model.parameters(), lr=1e-4),
}
IN_TRAINING = OPTIMIZERS | {
    "AdamW, fused": lambda model: AdamW(model.parameters(), lr=1e-4, fused=True),
    "AdamW, foreach": lambda model: AdamW(model.parameters(), lr=1e-4, foreach=True),
}
# Name → earlier models, and options of the plasticity.
ROWS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (0, {}),
    "1 earlier model": (1, {}),
    "100 earlier models": (100, {}),
    "every=4": (1, {"every": 4}),
    "compiled=True": (1, {"compiled": True}),
}


def protected(model: nn.Module, optimizer: Optimizer, num_earlier: int, **options: Any) -> WeightPlasticity:
    """Attach the protection of the hidden layers' weights, on behalf of so many earlier models."""
    assert isinstance(model, nn.Sequential)
    hidden = dict(model[:-1].named_parameters())
    plasticity = WeightPlasticity(hidden.values(), alpha=1e4, **options).attach(optimizer)
    for _ in range(num_earlier):
        plasticity.consolidate(model, {name: 1e-4 * torch.rand_like(weight) for name, weight in hidden.items()})
    return plasticity


def train(model: nn.Module, optimizer: Optimizer, batches: list[Batch]) -> None:
    """One step per batch."""
    for inputs, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def measure(make_optimizer: Callable[[nn.Module], Optimizer], batches: list[Batch], rounds: int) -> list[Timing]:
    """Times of training without protection, with that of 1 and 100 earlier models, and with what makes it cheaper."""
    start = mlp()
    functions: dict[str, Callable[[], object]] = {}
    keep_alive = []
    for name, (num_earlier, kwargs) in ROWS.items():
        model = copy.deepcopy(start)
        optimizer = make_optimizer(model)
        if num_earlier:
            keep_alive.append(protected(model, optimizer, num_earlier, **kwargs))
        functions[name] = partial(train, model, optimizer, batches)
    return compare(functions, rounds)


def small_weights(make_optimizer: Callable[[nn.Module], Optimizer], rounds: int) -> list[Timing]:
    """Times of an optimizer's step on 10,000 small weights, all shared with an earlier model."""
    draw = torch.Generator().manual_seed(0)
    start = nn.ParameterList(nn.Parameter(torch.randn(8, 8, generator=draw)) for _ in range(10_000))
    functions: dict[str, Callable[[], object]] = {}
    keep_alive = []
    protections: dict[str, dict[str, Any] | None] = {"plain": None}
    protections |= {"alpha 10⁴": {"alpha": 1e4}, "tolerance 0.01": {"tolerance": 0.01}}
    for name, strength in protections.items():
        model = copy.deepcopy(start)
        for weight in model:
            weight.grad = torch.randn(8, 8, generator=draw)
        optimizer = make_optimizer(model)
        if strength is not None:
            plasticity = WeightPlasticity(model.parameters(), **strength).attach(optimizer)
            plasticity.consolidate(model, {key: 1e-4 * torch.rand_like(w) for key, w in model.named_parameters()})
            keep_alive.append(plasticity)
        functions[name] = optimizer.step
    return compare(functions, rounds)


def main() -> None:
    """Measure, print and write."""
    command = parser(__doc__, rounds=40)
    command.add_argument("--steps", type=int, default=20, help="training steps in a round (default %(default)s)")
    options = command.parse_args()
    prepare(options.threads)
    images, labels, data = mnist_or_random(10_000)
    batches = list(islice(cycle(in_batches(images, labels, 128)[:-1]), options.steps))
    tables = {
        f"{name}, batch 128 of {data}, {options.steps} steps": measure(make, batches, options.rounds)
        for name, make in IN_TRAINING.items()
    }
    tables |= {
        f"{name}, 10,000 weights of 8 × 8, the optimizer's step": small_weights(make, options.rounds)
        for name, make in OPTIMIZERS.items()
    }
    report("proximal_step", tables, options.rounds, options.json)


if __name__ == "__main__":
    main()
