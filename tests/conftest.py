"""What every test gets: a fixed seed, one thread, and the shared data where it lies on this machine."""

import gc
import multiprocessing.context
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

settings.register_profile("quick", max_examples=25)
settings.register_profile("thorough", max_examples=300)  # for `make test-slow`
settings.load_profile("quick")  # unless --hypothesis-profile says otherwise

# Read once, because tests of the search order take the variable out of the environment.
NAMED_DATA = os.environ.get("FORGETLESS_DATA")


# What imports and collection make lives to the end: looking through it again and again was a tenth of the time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


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
def restored_registries() -> Iterator[Callable[[], None]]:
    """What a test registers goes afterwards, or when it calls this."""
    from forgetless.data import IMAGE_DATA
    from forgetless.protection import PROTECTIONS
    from forgetless.sampling import SAMPLERS
    from forgetless.spaces import SPACES
    from forgetless.strategies import STRATEGIES

    registries = (PROTECTIONS, STRATEGIES, SAMPLERS, SPACES, IMAGE_DATA)
    before = [dict(registry._load()) for registry in registries]

    def restore() -> None:
        for registry, kinds in zip(registries, before, strict=True):
            registry._kinds = dict(kinds)

    yield restore
    restore()


@pytest.fixture(scope="module")
def without_pictures() -> Iterator[None]:
    """Reports are made but for their pictures, which take most of the time of a small run; nobody looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forgetless.report.canvas.data_uri", lambda _: "data:,")
        yield


class _Forked(multiprocessing.context.ForkServerContext):
    """As the spawned processes of `forgetless.workers`, from one that has imported everything: in milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Any] = []
        self.set_forkserver_preload(["sklearn.datasets", "torch._dynamo", "forgetless.search.arms"])

    def Process(self, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]  # noqa: N802
        process = super().Process(*arguments, **options)  # type: ignore[misc]
        self.processes.append(process)
        return process


@pytest.fixture(scope="module")
def forked_workers() -> Iterator[None]:
    """Workers start at once; test_plugins.py and test_signals.py start real ones, which import for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forgetless.workers._Recording", _Forked)
        yield


@pytest.fixture(scope="session")
def two_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small texts, `old` and `new`: some verses of either Testament."""
    from forgetless.data.text import kjv_verses

    folder = tmp_path_factory.mktemp("texts")
    for name, books in (("old", range(1, 2)), ("new", range(40, 41))):
        splits = kjv_verses(books)
        (folder / name).mkdir()
        for split, file, number in (("train", "train", 300), ("validation", "valid", 12), ("test", "test", 12)):
            text = "".join(f"{verse.strip()}\n" for verse in splits[split][:number])
            (folder / name / f"{file}.txt").write_text(text, encoding="utf-8")
    return folder
