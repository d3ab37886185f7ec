"""Five Fishers × fourteen strengths on Split MNIST, task-incremental, after a published protocol.

$ FORGETLESS_DATA=FOLDER python results/split_mnist.py --seeds 1 31

The protocol is that of van de Ven 2025, *On the computation of the Fisher information in continual learning* (ICLR blog
post, arXiv:2502.11756): the ten digits in an order drawn from the seed, two per task; 784-400-400-10 with ReLU and one
pair of outputs per task; Adam (0.001) that is never reset, 2,000 batches of 128 per task; Fishers of all training
images of a task (BATCHED: the squares of the mean gradients of 128), summed over tasks, anchor at the newest
weights ("online"); the mean test accuracy of the five tasks at the end. 30 seeds.

What differs: the penalty is taken as a proximal step after Adam's (`form` "proximal") instead of as a part of the loss
(`form` "loss", by autograd, for EXACT on some seeds). At its minimum both are the same loss, so the published λ is our
α without any factor: both multiply ½ Σ F v² with F per example and a loss that is a mean over examples, and an example
has one target.

`form` "tolerance": earlier tasks may lose 0.01 nats, as measured on 500 training images of each that no task trains on
(these runs alone leave them out), after the steps 1, 2, 4, 8, every tenth and the last. Nothing is chosen: 0.01 is the
default of `wpl-tolerance`.

Hypotheses, written after trials on seeds from 100 on and before any other seed:

1. The best accuracy of each Fisher's curve is within 0.5 points of the published one; without protection, within 3.
2. BATCHED needs at least 100 times the strength that EXACT needs for its best.
3. With the proximal step every run is finite, and from the best strength on accuracy stays within 3 points.
4. α = 1 is not enough here: it is more than 1 point below the best of each curve, because networks that fit a task all
   but perfectly have next to no Fisher information there.
5. A tolerance of 0.01 nats, for which nothing is chosen, is within 1 point of the best of each curve, for each Fisher.

`--weigh` tells how large the Fishers of the first task are, which explains the strengths that they need:

$ FORGETLESS_DATA=FOLDER python results/split_mnist.py --weigh --seeds 1 4

A row per run goes to results/split-mnist.json; rows that are there are not made again, and a seed is made whole before
the next. `--until` stops before a run that would begin later.
"""

import argparse
import copy
import datetime as dt
import functools
import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam

from forgetless import WeightPlasticity, diagonal_fisher
from forgetless.choices import FisherKind
from forgetless.data.mnist import MNIST_FILES, read_idx
from forgetless.data.sources import fetch
from forgetless.runs import environment, write_atomically

PATH = Path(__file__).with_name("split-mnist.json")
WEIGHED = Path(__file__).with_name("split-mnist-importance.json")
STEPS, BATCH, RATE, TASKS = 2000, 128, 1e-3, 5
STRENGTHS = tuple(10.0**power for power in range(14))
TOLERANCE, HELD_OUT, MOST_TRIES = 0.01, 500, 8
SEEDS_IN_LOSS = (1, 2)
"""Those on which the penalty is also a part of the loss."""


class Fisher(NamedTuple):
    """How importance is computed: of all images of a task, or of some drawn at random."""

    kind: FisherKind
    num_images: int | None = None


FISHERS = {
    "EXACT": Fisher("exact"),
    "BATCHED (b = 128)": Fisher("batch"),
    "EMPIRICAL": Fisher("empirical"),
    "SAMPLE": Fisher("monte_carlo"),
    "EXACT (n = 500)": Fisher("exact", 500),
}


@dataclass(frozen=True)
class Arm:
    """One run.

    Attributes:
        seed: Of the order of digits, weights, batches and draws.
        fisher: Its name in FISHERS; `none` without protection.
        form: `none`, `proximal`, `loss` or `tolerance`; rows of `tolerance before` are from before the budget could
            shrink below 10⁻⁶ of the tolerance, which these runs showed to be too early a stop.
        strength: α, or the tolerance; 0 without protection.
    """

    seed: int
    fisher: str
    form: str
    strength: float


def arms(seed: int) -> Iterator[Arm]:
    """All of a seed, in such an order that one that is not whole tells most."""

    def protected(*strengths: float) -> Iterator[Arm]:
        yield from (Arm(seed, fisher, "proximal", s) for s, fisher in itertools.product(strengths, FISHERS))

    def limited(*fishers: str) -> Iterator[Arm]:
        yield from (Arm(seed, fisher, "tolerance", TOLERANCE) for fisher in fishers)

    def in_loss(*strengths: float) -> Iterator[Arm]:
        yield from (Arm(seed, "EXACT", "loss", s) for s in strengths if seed in SEEDS_IN_LOSS)

    first, second, third, *others = FISHERS
    yield Arm(seed, "none", "none", 0.0)
    yield from protected(1e4, 1e6, 1e8)
    yield from limited(first, second)
    yield from protected(1.0, 1e10)
    yield from in_loss(1e12)
    yield from limited(third)
    yield from in_loss(1e8)
    yield from protected(1e12, 1e2)
    yield from limited(*others)
    yield from in_loss(1.0, 1e2, 1e4, 1e6, 1e10)
    yield from protected(*STRENGTHS[1::2])
    yield from in_loss(*STRENGTHS[1::2])


# ---- data ----------------------------------------------------------------------------------------------------------


class Examples(NamedTuple):
    """Images, (N, pixels) in [0, 1], and which of the task's two digits each is, (N,)."""

    images: Tensor
    targets: Tensor


class Task(NamedTuple):
    """A pair of digits."""

    train: Examples
    held_out: Examples
    test: Examples
    outputs: slice
    """The two of the network's ten."""


@functools.cache
def mnist() -> dict[str, tuple[Tensor, Tensor]]:
    """`train` and `t10k`: images (N, 784) as bytes, and digits."""
    folder = os.environ.get("FORGETLESS_DATA")

    def read(name: str) -> Tensor:
        return torch.from_numpy(read_idx(fetch(MNIST_FILES[f"{name}-ubyte"], folder)).copy())

    return {
        split: (read(f"{split}-images-idx3").flatten(1), read(f"{split}-labels-idx1").long())
        for split in ("train", "t10k")
    }


def used_pixels(images: Sequence[Tensor]) -> Tensor:
    """Which pixels are not 0 everywhere: the weights of the others get no gradient and change no output."""
    return torch.stack([(part != 0).any(0) for part in images]).any(0)


def split(seed: int, data: dict[str, tuple[Tensor, Tensor]], num_held_out: int = 0) -> list[Task]:
    """The digits in an order drawn from the seed, two per task, without pixels that are 0 in all images."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(2 * TASKS, generator=generator)
    used = used_pixels([images for images, _ in data.values()])

    def of(part: tuple[Tensor, Tensor], pair: Tensor) -> Examples:
        images, digits = part
        rows = torch.isin(digits, pair)
        return Examples(images[rows][:, used].float() / 255, (digits[rows] == pair[1]).long())

    tasks = []
    for t in range(TASKS):
        pair = order[2 * t : 2 * t + 2]
        whole = of(data["train"], pair)
        out = torch.zeros(len(whole.targets), dtype=torch.bool)
        out[torch.randperm(len(out), generator=generator)[:num_held_out]] = True
        train, held_out = (Examples(whole.images[rows], whole.targets[rows]) for rows in (~out, out))
        tasks.append(Task(train, held_out, of(data["t10k"], pair), slice(2 * t, 2 * t + 2)))
    return tasks


def batches(examples: Examples, steps: int, seed: int) -> Iterator[Examples]:
    """Epoch after epoch, each in an order of its own; what is left over of an epoch is dropped."""
    generator = torch.Generator().manual_seed(seed)
    size = min(BATCH, len(examples.targets))
    made = 0
    while True:
        order = torch.randperm(len(examples.targets), generator=generator)
        for rows in torch.split(order, size)[: len(order) // size]:
            if made == steps:
                return
            made += 1
            yield Examples(examples.images[rows], examples.targets[rows])


# ---- the network ---------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """784-400-400-10 with ReLU, initialised as such, without the columns of pixels that are always 0."""

    def __init__(self, seed: int, used: Tensor | None = None, units: int = 400) -> None:
        super().__init__()
        pixels = 784 if used is None else len(used)
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(pixels, units), nn.Linear(units, units)
        self.last = nn.Linear(units, 2 * TASKS)
        if used is not None:
            self.first.weight = nn.Parameter(self.first.weight.detach()[:, used].clone())

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.second(self.first(images).relu()).relu()
        logits: Tensor = self.last(hidden)
        return logits


class Head(nn.Module):
    """A network as one task sees it."""

    def __init__(self, network: Network, outputs: slice) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits[:, self.outputs]


@torch.no_grad()
def leave_gradients(network: Network, batch: Examples, outputs: slice) -> None:
    """Leave the gradients of a batch's cross entropy in `.grad`: what autograd leaves, in memory that stays.

    It takes three quarters of autograd's time.
    """
    layers = (network.first, network.second, network.last)
    for layer in layers:
        for weight in (layer.weight, layer.bias):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
    images, targets = batch
    one = torch.addmm(network.first.bias, images, network.first.weight.T).relu_()
    two = torch.addmm(network.second.bias, one, network.second.weight.T).relu_()
    weights = network.last.weight[outputs]
    force = torch.addmm(network.last.bias[outputs], two, weights.T).softmax(1)
    force[torch.arange(len(targets)), targets] -= 1
    force /= len(targets)
    gradients = [(layer.weight.grad, layer.bias.grad) for layer in layers]
    for whole, part in zip(gradients[2], (force.T @ two, force.sum(0)), strict=True):
        assert whole is not None
        whole.zero_()[outputs] = part
    force = torch.ops.aten.threshold_backward(force @ weights, two, 0)
    _into(gradients[1], force, one)
    force = torch.ops.aten.threshold_backward(force @ network.second.weight, one, 0)
    _into(gradients[0], force, images)


def _into(gradients: tuple[Any, Any], force: Tensor, inputs: Tensor) -> None:
    torch.mm(force.T, inputs, out=gradients[0])
    torch.sum(force, 0, out=gradients[1])


# ---- one run -------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """A network after its first task, which all arms that train on the same images share."""

    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    learned: tuple[float, float]


def importance(network: Network, task: Task, fisher: Fisher, seed: int) -> dict[str, Tensor]:
    """Of the network's weights for a task, by their names in a `Head`."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = task.train
    if fisher.num_images is not None:
        rows = torch.randperm(len(targets), generator=generator)[: fisher.num_images]
        images, targets = images[rows], targets[rows]
    size = BATCH if fisher.kind == "batch" else 1000
    pairs = list(zip(*(torch.split(part, size) for part in (images, targets)), strict=True))
    return diagonal_fisher(Head(network, task.outputs), pairs, cross_entropy, fisher.kind, generator=generator)


@torch.no_grad()
def scores(network: Network, examples: Examples, outputs: slice) -> tuple[float, float]:
    """Accuracy and mean cross entropy."""
    logits = Head(network, outputs)(examples.images)
    hits = (logits.argmax(1) == examples.targets).float().mean()
    return float(hits), float(cross_entropy(logits, examples.targets))


def first_task(seed: int, tasks: Sequence[Task], network: Network, steps: int = STEPS) -> State:
    optimizer = Adam(network.parameters(), lr=RATE, fused=True)
    for batch in batches(tasks[0].train, steps, 10 * seed):
        leave_gradients(network, batch, tasks[0].outputs)
        optimizer.step()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    return State(weights, optimizer.state_dict(), scores(network, tasks[0].test, tasks[0].outputs))


class Calibration:
    """Measures what earlier tasks lost on images held out, and adapts the budget to it."""

    def __init__(self, network: Network, plasticity: WeightPlasticity, optimizer: Adam) -> None:
        self.network, self.plasticity, self.optimizer = network, plasticity, optimizer
        self.earlier: list[tuple[Task, float]] = []

    def add(self, task: Task) -> None:
        self.earlier.append((task, scores(self.network, task.held_out, task.outputs)[1]))

    def increase(self) -> float:
        return max(scores(self.network, task.held_out, task.outputs)[1] - before for task, before in self.earlier)

    def after(self, step: int, steps: int) -> None:
        if not (step in {1, 2, 4, 8, steps} or step % 10 == 0):
            return
        for _ in range(MOST_TRIES):
            increase = self.increase()
            self.plasticity.calibrate(increase, self.optimizer)
            if increase <= TOLERANCE:
                return


Trained = dict[tuple[str, ...], tuple[dict[str, Tensor], dict[str, Any]]]
"""Digests of the importances so far, under one strength → network and optimizer as they were after training so."""


def digest(values: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in values.values())).hexdigest()


def run(
    arm: Arm, tasks: Sequence[Task], network: Network, start: State, steps: int = STEPS, trained: Trained | None = None
) -> dict[str, Any]:
    """Train on the tasks after the first, and tell how well each is known at the end and after its own training.

    What was trained before with importances that are the same bit for bit is taken from `trained`: labels drawn from
    networks that are as sure as these are the true ones, so that SAMPLE often is EMPIRICAL.
    """
    began = time.perf_counter()
    network.load_state_dict(start.network)
    optimizer = Adam(network.parameters(), lr=RATE, fused=True)
    optimizer.load_state_dict(copy.deepcopy(start.optimizer))  # its tensors would be shared
    is_limited = arm.form == "tolerance"
    plasticity = (
        WeightPlasticity(network, tolerance=arm.strength) if is_limited else WeightPlasticity(network, arm.strength)
    )
    calibration = Calibration(network, plasticity, optimizer)
    if arm.form in {"proximal", "tolerance"}:
        plasticity.attach(optimizer)
    learned = [start.learned]
    key: tuple[str, ...] = (arm.form, str(arm.strength))
    for t, (earlier, task) in enumerate(itertools.pairwise(tasks), start=1):
        if arm.fisher != "none":
            values = importance(network, earlier, FISHERS[arm.fisher], 10 * arm.seed + t)
            plasticity.consolidate(Head(network, earlier.outputs), values)
            key = (*key, digest(values))
        if is_limited:
            calibration.add(earlier)
        if trained is not None and key in trained:
            network.load_state_dict(trained[key][0])
            optimizer.load_state_dict(copy.deepcopy(trained[key][1]))
        else:
            train(arm, t, task, network, optimizer, calibration, steps)
        if trained is not None:
            trained[key] = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
        learned.append(scores(network, task.test, task.outputs))
        if not math.isfinite(sum(learned[-1])) or not all(bool(p.isfinite().all()) for p in network.parameters()):
            break
    return asdict(arm) | row(learned, [scores(network, task.test, task.outputs) for task in tasks], began)


def train(
    arm: Arm, t: int, task: Task, network: Network, optimizer: Adam, calibration: Calibration, steps: int
) -> None:
    for step, batch in enumerate(batches(task.train, steps, 10 * arm.seed + t), start=1):
        if arm.form == "loss":
            optimizer.zero_grad()
            loss = cross_entropy(network(batch.images)[:, task.outputs], batch.targets)
            (loss + calibration.plasticity.penalty()).backward()  # type: ignore[no-untyped-call]
        else:
            leave_gradients(network, batch, task.outputs)
        optimizer.step()
        if arm.form == "tolerance":
            calibration.after(step, steps)


def row(learned: Sequence[tuple[float, float]], final: Sequence[tuple[float, float]], began: float) -> dict[str, Any]:
    """Of the five tasks, accuracies and test losses after their own training and at the end; what is NaN is None."""

    def told(pairs: Sequence[tuple[float, float]], which: int) -> list[float | None]:
        return [round(pair[which], 5) if math.isfinite(pair[which]) else None for pair in pairs]

    finite = len(learned) == len(final) and all(math.isfinite(loss) for _, loss in (*learned, *final))
    return {
        "finite": finite,
        "accuracy": told(final, 0),
        "accuracy_learned": told(learned, 0),
        "loss": told(final, 1),
        "loss_learned": told(learned, 1),
        "seconds": round(time.perf_counter() - began, 1),
    }


# ---- all runs ------------------------------------------------------------------------------------------------------


def run_seed(
    seed: int, wanted: Sequence[Arm], keep: Callable[[dict[str, Any]], None], is_late: Callable[[], bool]
) -> None:
    data = mnist()
    used = used_pixels([images for images, _ in data.values()])
    network = Network(seed, used)
    initial = {name: value.clone() for name, value in network.state_dict().items()}

    @functools.cache
    def begun(num_held_out: int) -> tuple[list[Task], State]:
        tasks = split(seed, data, num_held_out)
        network.load_state_dict(initial)
        return tasks, first_task(seed, tasks, network)

    for _, group in itertools.groupby(wanted, lambda arm: (arm.form, arm.strength)):
        trained: Trained = {}
        for arm in group:
            if is_late():
                return
            tasks, start = begun(HELD_OUT if arm.form == "tolerance" else 0)
            keep(run(arm, tasks, network, start, trained=trained if arm.form == "proximal" else None))


def weigh(seed: int) -> dict[str, Any]:
    """What each Fisher of the first task sums up to, and how many labels drawn of it are expected to be wrong."""
    data = mnist()
    tasks, network = split(seed, data), Network(seed, used_pixels([images for images, _ in data.values()]))
    first_task(seed, tasks, network)
    task = tasks[0]
    with torch.no_grad():
        chances = Head(network, task.outputs)(task.train.images).double().softmax(1)
    right = chances[torch.arange(len(chances)), task.train.targets]
    found = {fisher: importance(network, task, how, 10 * seed + 1) for fisher, how in FISHERS.items()}
    sums = {fisher: float(sum(value.double().sum() for value in values.values())) for fisher, values in found.items()}
    return {"seed": seed, "images": len(right), "wrong_labels": float((1 - right).sum()), "sums": sums}


def written(found: dict[str, Any]) -> str:
    """As JSON, with a line for each row."""
    rows = ",\n".join(f"  {json.dumps(row)}" for row in found["rows"])
    head = json.dumps({key: value for key, value in found.items() if key != "rows"}, indent=1)
    return f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("FIRST", "END"), default=(1, 31))
    parser.add_argument("--until", type=dt.datetime.fromisoformat, help="no run begins after this time, in UTC")
    parser.add_argument("--path", type=Path, default=PATH)
    parser.add_argument("--weigh", action="store_true", help="only the Fishers of the first task, to another file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.weigh:
        rows = [weigh(seed) for seed in range(*options.seeds)]
        write_atomically(WEIGHED, written({"environment": environment(), "rows": rows}))
        return
    found: dict[str, Any] = {"environment": environment(), "rows": []}
    if options.path.exists():
        found = json.loads(options.path.read_text(encoding="utf-8"))
    known = {(row["seed"], row["fisher"], row["form"], row["strength"]) for row in found["rows"]}

    def keep(row: dict[str, Any]) -> None:
        found["rows"].append(row)
        shown = sum(a or 0 for a in row["accuracy"]) / TASKS
        print(row["seed"], row["fisher"], row["form"], row["strength"], f"{shown:.4f}", row["seconds"], flush=True)
        write_atomically(options.path, written(found))

    def is_late() -> bool:
        now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
        return options.until is not None and now > options.until

    for seed in range(*options.seeds):
        wanted = [arm for arm in arms(seed) if tuple(asdict(arm).values()) not in known]
        if not is_late():
            run_seed(seed, wanted, keep, is_late)


if __name__ == "__main__":
    main()
