"""The page of docs that two processes run."""

import os
import re
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "sharded.md"


def page(rank):
    """The script of docs/how-to/sharded.md: what was learnt first is still known, after a checkpoint."""
    if rank is None:
        return {}
    folder = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(folder)
    before = Path.cwd()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    try:
        os.chdir(folder[0])
        (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        names = {"__name__": "page"}
        exec(compile(code, str(PAGE), "exec"), names)
    finally:
        os.chdir(before)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            del os.environ[name]
    known = accuracies(names)
    names["plasticity"].detach()
    names["train"](names["model"], names["optimizer"], names["new"], epochs=3)
    assert known["old"] > 0.85
    assert accuracies(names)["old"] < known["old"] - 0.3
    return {}


@torch.no_grad()
def accuracies(names):
    predictions = names["model"](names["inputs"]).argmax(1)
    return {task: (predictions == names[task]).float().mean().item() for task in ("old", "new")}


CHECKS = [page]
