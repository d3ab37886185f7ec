"""Two processes with sharded models against one process with whole ones: one pair of processes runs every check."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

import sharded_importance
import sharded_page
import sharded_plasticity
from forgetless import WeightPlasticity, diagonal_fisher
from forgetless.runs import environment

NUM_PROCESSES = 2
CHECKS: list[Callable[[int | None], dict[str, Tensor]]] = [
    *sharded_importance.CHECKS,
    *sharded_plasticity.CHECKS,
    *sharded_page.CHECKS,
]

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed with gloo"
)


def work(rank: int, folder: str) -> dict[str, dict[str, Tensor] | str]:
    """What each check finds in this process, or how it fails; after a failure the others are left out."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", NUM_PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=NUM_PROCESSES, timeout=timedelta(seconds=60))
    found: dict[str, dict[str, Tensor] | str] = {}
    try:
        for check in CHECKS:
            found[check.__name__] = check(rank)
    except Exception:
        found[check.__name__] = traceback.format_exc()
    finally:
        torch.save(found, f"{folder}/{rank}.pt")
        dist.destroy_process_group()
    return found


def test_two_processes_with_sharded_models_are_one_with_whole_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    other = mp.get_context("spawn").Process(target=work, args=(1, str(tmp_path)), daemon=True)
    other.start()
    first = work(0, str(tmp_path))
    other.join(timeout=60)
    second = torch.load(tmp_path / "1.pt", weights_only=True)
    differences = []
    for check in CHECKS:
        name = check.__name__
        found = first[name]
        assert not isinstance(found, str), f"{name}: {found}\n{second[name]}"
        expected = check(None)
        assert expected.keys() == found.keys() == second[name].keys(), name
        largest = 0.0
        for key, value in expected.items():
            assert torch.equal(found[key], second[name][key]), f"{name}: processes differ in {key}"
            off = (found[key] - value).abs().max().item()
            assert off <= 1e-6, f"{name}: {key} is off by {off}"
            largest = max(largest, off)
        numbers = sum(value.numel() for value in expected.values())
        differences.append({"check": str(check.__doc__), "numbers": numbers, "largest": largest})
    if file := os.environ.get("FORGETLESS_SHARDED"):
        Path(file).write_text(json.dumps({"environment": environment(), "differences": differences}, indent=1) + "\n")


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def mesh():
    """Of this process alone."""
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


BATCHES = [(torch.zeros(2, 6, dtype=torch.float64), torch.zeros(2).long())]


def fisher(model: nn.Module) -> dict[str, Tensor]:
    return diagonal_fisher(model, BATCHES, F.cross_entropy)


@pytest.mark.usefixtures("mesh")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
def test_fsdp1_is_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(sharded_importance.mlp(), device_id=torch.device("cpu"))
    expected = r"Expected a model sharded by torch\.distributed\.fsdp\.fully_shard"
    with pytest.raises(ValueError, match=expected):
        fisher(model)
    with pytest.raises(ValueError, match=expected):
        WeightPlasticity(model)
    with pytest.raises(ValueError, match=expected):
        WeightPlasticity(model.module[0].parameters()).consolidate(model, {})


def test_tensor_parallelism_is_refused(mesh) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model = parallelize_module(sharded_importance.mlp(), mesh, {"0": ColwiseParallel()})
    with pytest.raises(ValueError, match=r"by fully_shard alone, but got '0\.weight' with placements"):
        fisher(model)
    with pytest.raises(ValueError, match=r"by fully_shard alone, but got '0\.0\.weight' with placements"):
        fisher(nn.Sequential(model, fully_shard(nn.Linear(3, 3).double(), mesh=mesh)))


def test_a_model_that_gathers_its_weights_by_itself_is_refused(mesh) -> None:
    from torch.distributed.fsdp import fully_shard

    class Gathers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = fully_shard(sharded_importance.mlp(), mesh=mesh)

        def forward(self, x: Tensor) -> Tensor:
            self.inner.unshard()
            return self.inner(x)

    model = Gathers()
    before = model(BATCHES[0][0])
    with pytest.raises(ValueError, match=r"gathers them in it, by unshard"):
        fisher(model)
    assert torch.equal(model(BATCHES[0][0]), before)


def test_a_plasticity_built_before_sharding_is_refused(mesh) -> None:
    from torch.distributed.fsdp import fully_shard

    model = sharded_importance.mlp()
    plasticity = WeightPlasticity(list(model.parameters()))
    fully_shard(model, mesh=mesh)
    with pytest.raises(ValueError, match=r"and build both after fully_shard, which replaces them"):
        plasticity.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"and build the plasticity after fully_shard, which replaces them"):
        plasticity.consolidate(model, fisher(model))


def test_what_reads_or_changes_whole_weights_is_refused(mesh) -> None:
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(sharded_importance.mlp(), mesh=mesh)
    plasticity = WeightPlasticity(model)
    with pytest.raises(ValueError, match=r"Expected another optimizer of sharded weights than Adafactor"):
        plasticity.attach(torch.optim.Adafactor(model.parameters()))
    with pytest.raises(ValueError, match=r"Expected whole weights to replace, but got sharded ones"):
        plasticity.replace(model[0].weight, nn.Parameter(torch.zeros(7, 6)))
    with pytest.raises(ValueError, match=r"dense plain tensors for importances in 8 bits, but got DTensor"):
        WeightPlasticity(model, importance_dtype=torch.uint8).consolidate(model, fisher(model))
    with pytest.raises(ValueError, match=r"plain tensors for anchors elsewhere, but got DTensor"):
        WeightPlasticity(model, anchor="cpu").consolidate(model, fisher(model))


def test_importances_in_half_the_bits_are_held(mesh) -> None:
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(sharded_importance.mlp(), mesh=mesh)
    plasticity = WeightPlasticity(model, importance_dtype=torch.bfloat16)
    importance = fisher(model)
    plasticity.consolidate(model, importance)
    weight = model[0].weight
    assert torch.equal(plasticity.importance(weight).full_tensor(), importance["0.weight"].full_tensor().bfloat16())


def test_damaged_importances_are_refused(mesh) -> None:
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(sharded_importance.mlp(), mesh=mesh)
    plasticity, importance = WeightPlasticity(model), fisher(model)
    importance["0.bias"].to_local()[0] = -1.0
    with pytest.raises(ValueError, match=r"Expected importance of '0\.bias' to be at least 0, but got -1"):
        plasticity.consolidate(model, importance)
    importance["0.bias"].to_local()[0] = torch.nan
    with pytest.raises(ValueError, match=r"Expected finite importance of '0\.bias'"):
        plasticity.consolidate(model, importance)
    with pytest.raises(ValueError, match=r"Expected importance of '0\.bias' in the weight's shape \(5,\)"):
        plasticity.consolidate(model, {"0.bias": torch.ones(4)})
