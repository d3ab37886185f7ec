"""What processes that train together compute, to be compared with one process: imported by both."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs import search_config, without_time
from forgetless import InputError, cli, ranks
from forgetless.data.splits import ImageSplit
from forgetless.parts import OptimizerConfig
from forgetless.search import run
from forgetless.search.epoch import Search
from forgetless.search.scratch import train_from_scratch
from forgetless.search.setup import load_task, make_search_space
from forgetless.search.state import EpochState
from forgetless.tasks.images import ImageClassification
from forgetless.whole_batch import WholeBatchStatistics

_SIZES = {"strategy_steps": 1, "samples_per_step": 3, "final_samples": 3, "final_batches": 3, "protect_from": 0}
IMAGES = _SIZES | {
    "space": "nas201",
    "units": 2,
    "epochs": 2,
    "models_per_epoch": 2,
    "batches_per_model": 2,
    "batch_size": 16,
    "importance_batches": 1,
    "evaluation_batches": 1,
}
TEXT = _SIZES | {
    "space": "recurrent",
    "units": 4,
    "nodes": 2,
    "epochs": 1,
    "models_per_epoch": 2,
    "batches_per_model": 3,
    "batch_size": 4,
    "num_steps": 5,
    "evaluation_batches": 2,
    "dropout": 0.3,
    "weight_drop": 0.2,
}
CONFIGS = {
    "images, importance of training": search_config(**IMAGES, protection=("none", "wpl", "matched-lr")),
    "images, importance of examples": search_config(**IMAGES, protection=("wpl",), importance="held-out"),
    "images, importance of drawn labels": search_config(
        **IMAGES, protection=("wpl",), importance="held-out", fisher="monte_carlo"
    ),
    "text, with dropout": search_config(**TEXT, protection=("si",)),
    "text, average weights": search_config(**TEXT, protection=("none",), average="moving"),
}
"""Searches, each small and different."""


def config_of(name: str):
    """One of these, or one of a protection on a task, as in `nsas on text`."""
    if name in CONFIGS:
        return CONFIGS[name]
    protection, _, task = name.partition(" on ")
    sizes = {"epochs": 1, "models_per_epoch": 3, "batches_per_model": 2, "final_samples": 0}
    return search_config(**({"images": IMAGES, "text": TEXT}[task] | sizes), protection=(protection,))


def launched_as(rank: int, size: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets."""
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}


def another(variables: dict[str, str]) -> None:
    """A process that does what the first one calls."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    with ranks.joined():
        ranks.follow()


@contextmanager
def exactly() -> Iterator[None]:
    """In float64, so that what is not due to rounding shows."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def _task(config):
    task = load_task(config)
    if isinstance(task, ImageClassification):
        task._splits = {name: ImageSplit(s.images.double(), s.labels) for name, s in task._splits.items()}
    return task


def searched(name: str):
    """Records of a search, and the weights at the end of its arms, of each process."""
    config, states = config_of(name), []

    def keep(_, state):
        # Batch statistics are those of the architecture that was evaluated last, and made anew for the next.
        states.append({k: v.clone() for k, v in state["supernet"].items() if "running" not in k and "num_" not in k})

    with exactly():
        records = run(config, task=_task(config), on_epoch=keep)
    weights = ranks.here().each(range(ranks.here().size), lambda _: states)
    return without_time(records), weights


def trained(name: str, stop_after: int | None = None, state=None):
    """A training from scratch, or its state after so many steps."""
    config, states = config_of(name), []
    space = make_search_space(config)
    architecture = space.space.sample(torch.Generator().manual_seed(1))
    with exactly():
        result = train_from_scratch(
            _task(config),
            space,
            architecture,
            OptimizerConfig(name="sgd", learning_rate=0.5, momentum=0.9, max_gradient_norm=0.3),
            device="cpu",
            seed=3,
            num_batches=stop_after or 4,
            state=state,
            on_step=lambda present: states.append(present()),
        )
    return {"validation": result.validation_error, "test": result.test_error}, states[-1]


def normalised(_: str) -> dict[str, Tensor]:
    """Batch normalisation of a batch of 6: outputs, gradients, running statistics."""
    here, generator = ranks.here(), torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 2, 2, generator=generator, dtype=torch.float64) * 3 + 1
    slope = torch.randn(6, 3, 2, 2, generator=generator, dtype=torch.float64)
    layer = nn.BatchNorm2d(3, momentum=0.3).double()
    own = here.own(x).requires_grad_()
    with WholeBatchStatistics(here.size) if here.size > 1 else exactly():
        outputs = layer(own)
    (outputs * here.own(slope)).sum().backward()
    here.average([*layer.parameters()])
    whole = {"outputs": outputs.detach(), "inputs' gradient": own.grad}
    found = {name: here.gathered(value) for name, value in whole.items()}
    found |= {f"{name}'s gradient": weight.grad * here.size for name, weight in layer.named_parameters()}
    return found | dict(layer.named_buffers())


def drawn(_: str) -> Tensor:
    """Dropout masks of a batch of 4, before and after others that are not of a batch."""
    here = ranks.here()
    torch.manual_seed(0)
    with here.sharing():
        first = ranks.rows_of_all(lambda number: F.dropout(torch.ones(number, 5), 0.5), 4 // here.size)
        F.dropout(torch.ones(3), 0.5)
        second = ranks.rows_of_all(lambda number: F.dropout(torch.ones(number, 5), 0.5), 4 // here.size)
    return torch.cat([here.gathered(first), here.gathered(second)])


COMMAND = (
    *("search", "--space", "nas201", "--nas201.units", "2", "--protection", "wpl", "--epochs", "1"),
    *("--batch-size", "16", "--output", "run", "--final-samples", "2", "--final-batches", "2"),
    *("--models-per-epoch", "3", "--batches-per-model", "2", "--strategy-steps", "1", "--samples-per-step", "2"),
    *("--evaluation-batches", "1"),
)
"""A search that takes moments."""


def command(variables: dict[str, str], folder: Path, arguments: Sequence[str], fault: tuple[int, str] | None) -> None:
    """The command line as torchrun starts it; in a process of a rank, its second model meets a fault."""
    os.environ.update(variables | {"GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "200"})
    os.chdir(folder)
    rank = int(variables["RANK"])
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stderr = os.fdopen(2, "w")
    torch.set_num_threads(1)
    if fault is not None and fault[0] == rank:
        meet_fault(fault[1])
    try:
        code = cli.main(arguments) if int(variables["WORLD_SIZE"]) > 1 else alone(arguments)
    except SystemExit as error:
        code = error.code
    sys.stderr.flush()
    os._exit(code)


def alone(arguments: Sequence[str]) -> int:
    """The command line without torchrun."""
    for name in launched_as(0, 1, 1):
        del os.environ[name]
    return cli.main(arguments)


def meet_fault(kind: str) -> None:
    """A signal or an error when the second model has been trained."""
    once = Search._train_next

    def train_next(search: Search, now: EpochState, j: int, *others: object) -> None:
        once(search, now, j, *others)
        if j == 1 and kind == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if j == 1 and kind == "error":
            raise InputError("Expected this process to be whole.")

    Search._train_next = train_next
