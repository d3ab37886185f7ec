"""What every test gets: a fixed seed, one thread, and the shared data where it lies on this machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Read once, because tests of the search order take the variable out of the environment.
NAMED_DATA = os.environ.get("FORGETLESS_DATA")


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def shared_data() -> Path:
    """The folder with MNIST, the Penn Treebank and CIFAR-10; the test is skipped where there is none."""
    folder = Path(NAMED_DATA) if NAMED_DATA else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real data: {folder} is not a folder; name one in FORGETLESS_DATA")
    return folder


@pytest.fixture
def restored_registries() -> Iterator[None]:
    """What a test registers goes afterwards."""
    from forgetless.data import IMAGE_DATA
    from forgetless.protection import PROTECTIONS
    from forgetless.spaces import SPACES
    from forgetless.strategies import STRATEGIES

    registries = (PROTECTIONS, STRATEGIES, SPACES, IMAGE_DATA)
    before = [dict(registry._load()) for registry in registries]
    yield
    for registry, kinds in zip(registries, before, strict=True):
        registry._kinds = kinds
