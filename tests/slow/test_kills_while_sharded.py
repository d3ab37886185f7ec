"""Two processes with a sharded model, killed at random moments and started again, against one that nobody disturbs."""

import random
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Adam

from forgetless import WeightPlasticity
from forgetless.plasticity import DistributedState
from sharded_plasticity import STEPS, batches, importance_of, state_of, trunk_and_heads

NUM_STEPS, NUM_KILLS = 24, 4
OPTIONS = {"alpha": {"alpha": 30.0}, "tolerance": {"tolerance": 1e-4}}

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed with gloo"
)


def finished(folder, rank, options):
    """A third of the steps train A, the rest B; all of it is stored after every step, and gone on with where it is."""
    trunk, a, b = trunk_and_heads(rank)
    held = WeightPlasticity(trunk, **options)
    models = nn.ModuleList([a, b])
    optimizers = [Adam(model.parameters(), lr=0.01) for model in models]
    held.attach(optimizers[1])
    done = -1
    stored = sorted(path.parent for path in folder.glob("step-*/.metadata"))
    if rank is not None and stored:
        done = int(stored[-1].name.removeprefix("step-"))
        optimizer = optimizers[done >= NUM_STEPS // 3]
        state = parts(models, optimizer, held)
        dcp.load(state, checkpoint_id=stored[-1])
        set_state_dict(models, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    for step in range(done + 1, NUM_STEPS):
        is_second = step >= NUM_STEPS // 3
        if step == NUM_STEPS // 3:
            held.consolidate(a, importance_of(a, rank))
        x, y = batches(step, rank)[step % STEPS]
        optimizers[is_second].zero_grad()
        F.cross_entropy(models[is_second](x), y).backward()
        optimizers[is_second].step()
        if rank is not None:
            dcp.save(parts(models, optimizers[is_second], held), checkpoint_id=folder / f"step-{step:03}")
    return state_of(held, a, b)


def parts(models, optimizer, held):
    weights, moments = get_state_dict(models, optimizer)
    return {"model": weights, "optimizer": moments, "plasticity": DistributedState(held)}


def work(rank, folder, options, attempt):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store-{attempt}", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found = finished(Path(folder), rank, options)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def started(folder, options, attempt):
    context = mp.get_context("spawn")
    pair = [context.Process(target=work, args=(rank, str(folder), options, attempt), daemon=True) for rank in (0, 1)]
    for process in pair:
        process.start()
    return pair


@pytest.mark.parametrize("name", OPTIONS)
def test_killed_processes_go_on_as_if_they_had_not_been(name, monkeypatch, tmp_path):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    expected = finished(tmp_path, None, OPTIONS[name])
    kept = 0
    for attempt in range(NUM_KILLS):
        pair = started(tmp_path, OPTIONS[name], attempt)
        deadline = time.monotonic() + 120
        while (num := len([*tmp_path.glob("step-*/.metadata")])) < min(kept + 2, NUM_STEPS - 1):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.2))
        for process in random.sample(pair, 2):
            process.kill()
        for process in pair:
            process.join()
        kept = max(num, len([*tmp_path.glob("step-*/.metadata")]))
        for path in tmp_path.glob("step-*"):  # what was not finished
            if not (path / ".metadata").exists():
                shutil.rmtree(path)
    pair = started(tmp_path, OPTIONS[name], NUM_KILLS)
    for process in pair:
        process.join(timeout=300)
        assert process.exitcode == 0
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert (found[key] - value).abs().max() <= 1e-6, (rank, key)
