"""Time of `diagonal_fisher`, as a ratio to one ordinary forward and backward pass over the same batches.

    python benchmarks/fisher.py --json fisher.json

The networks are those of the peers' comparison in docs: an MLP 784-512-512-512-10 over 10,000 MNIST images in batches
of 1,000, and a CNN with 32 and 64 channels over the first of them in batches of 64. The yardstick computes the mean
loss of a batch and its gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch.nn.functional as F
from timing import Batch, Timing, compare, in_batches, mnist_or_random, parser, prepare, report
from torch import nn

from forgetless import diagonal_fisher

FisherKind = Literal["empirical", "monte_carlo", "exact", "batch"]


def mlp() -> nn.Module:
    """784-512-512-512-10."""
    layers: list[nn.Module] = []
    for width in (784, 512, 512):
        layers += [nn.Linear(width, 512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10))


def cnn() -> nn.Module:
    """Two convolutions of 3 × 3 with 32 and 64 channels, each followed by pooling, and a linear classifier."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 10)),
    )


def forward_backward(model: nn.Module, batches: list[Batch]) -> None:
    """The yardstick: the gradient of each batch's mean loss."""
    for inputs, labels in batches:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)


def measure(model: nn.Module, batches: list[Batch], rounds: int, kinds: tuple[FisherKind, ...]) -> list[Timing]:
    """Times of the kinds beside the yardstick's."""
    functions: dict[str, Callable[[], object]] = {"forward and backward": partial(forward_backward, model, batches)}
    for kind in kinds:
        functions[kind] = partial(diagonal_fisher, model, batches, F.cross_entropy, kind)
    return compare(functions, rounds)


def main() -> None:
    """Measure, print and write."""
    command = parser(__doc__, rounds=20)
    command.add_argument("--examples", type=int, default=10_000, help="for the MLP (default %(default)s)")
    command.add_argument("--cnn-examples", type=int, default=2_000, help="for the CNN (default %(default)s)")
    options = command.parse_args()
    prepare(options.threads)
    images, labels, data = mnist_or_random(options.examples)
    batches = in_batches(images, labels, 1000)
    few = in_batches(images[: options.cnn_examples], labels[: options.cnn_examples], 64)
    kinds: tuple[FisherKind, ...] = ("empirical", "monte_carlo", "batch")
    tables = {
        f"MLP 784-512-512-512-10, {options.examples:,} examples of {data}, batch 1000": measure(
            mlp(), batches, options.rounds, (*kinds, "exact")
        ),
        f"CNN 32-64, {options.cnn_examples:,} examples of {data}, batch 64": measure(cnn(), few, options.rounds, kinds),
    }
    report("fisher", tables, options.rounds, options.json)


if __name__ == "__main__":
    main()
