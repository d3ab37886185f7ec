"""Two processes that train under DistributedDataParallel against one process on the joined batch."""

import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, Optimizer

from forgetless import WeightPlasticity, diagonal_fisher

NUM_PROCESSES, NUM_STEPS, PER_PROCESS = 2, 12, 6

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed with gloo"
)


def two_models() -> tuple[nn.Module, nn.Module]:
    """A's second layer is B's first."""
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    a = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), shared, nn.Tanh(), nn.Linear(6, 3))
    b = nn.Sequential(shared, nn.Tanh(), nn.Linear(6, 4))
    return a.double(), b.double()


def batches(seed: int, rank: int | None) -> list[tuple[Tensor, Tensor]]:
    """This process's part of each batch; all of it for None."""
    generator = torch.Generator().manual_seed(seed)
    part = slice(None) if rank is None else slice(rank * PER_PROCESS, (rank + 1) * PER_PROCESS)
    result = []
    for _ in range(NUM_STEPS):
        x = torch.randn(NUM_PROCESSES * PER_PROCESS, 6, generator=generator, dtype=torch.float64)
        result.append((x[part], x[part, :3].argmax(1)))
    return result


def train(model: nn.Module, optimizer: Optimizer, seed: int, rank: int | None) -> None:
    for x, y in batches(seed, rank):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def train_a_then_b(rank: int | None) -> dict[str, Tensor]:
    def wrapped(model: nn.Module) -> nn.Module:
        return model if rank is None else DistributedDataParallel(model)

    a, b = two_models()
    shared = b[0]
    held = WeightPlasticity(shared.parameters(), alpha=1e3)
    ddp_a, ddp_b = wrapped(a), wrapped(b)
    train(ddp_a, SGD(a.parameters(), lr=0.1, momentum=0.9), 1, rank)
    fishers = {kind: diagonal_fisher(ddp_a, batches(2, rank), F.cross_entropy, kind) for kind in ("empirical", "exact")}
    held.consolidate(ddp_a, fishers["exact"])
    before = shared.weight.detach().clone()
    optimizer = Adam(b.parameters(), lr=0.01)
    held.attach(optimizer)
    train(ddp_b, optimizer, 3, rank)
    return (
        {f"{kind} {name}": value for kind, fisher in fishers.items() for name, value in fisher.items()}
        | {f"a {name}": value.detach() for name, value in a.named_parameters()}
        | {f"b {name}": value.detach() for name, value in b.named_parameters()}
        | {"moved": shared.weight.detach() - before, "importance": held.importance(shared.weight)}
    )


def work(rank: int, folder: str) -> dict[str, Tensor]:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", NUM_PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=NUM_PROCESSES, timeout=timedelta(seconds=60))
    try:
        result = train_a_then_b(rank)
        torch.save(result, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
    return result


def test_processes_agree_with_each_other_and_with_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    expected = train_a_then_b(None)
    assert expected["moved"].abs().max() > 1e-6
    other = mp.get_context("spawn").Process(target=work, args=(1, str(tmp_path)), daemon=True)
    other.start()
    first = work(0, str(tmp_path))
    other.join(timeout=60)
    assert other.exitcode == 0
    second = torch.load(tmp_path / "1.pt", weights_only=True)
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-6)
