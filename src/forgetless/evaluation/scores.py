"""Scores of untrained architectures by every baseline, computed once per space, task and seed.

They are kept in a folder, one file per `ScoreSpec`, so that all strategies and protections of a seed share them.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from forgetless.baselines import BASELINES, Subject
from forgetless.configuration import Part
from forgetless.errors import InputError
from forgetless.parts import DataConfig
from forgetless.runs import read_sealed, write_sealed, writing_to
from forgetless.search import SearchConfig, load_task
from forgetless.search.setup import make_search_space, make_supernet
from forgetless.spaces import SearchSpace, SpaceOptions
from forgetless.tasks import Task, TaskOptions
from forgetless.training import cpu_arithmetic

VERSION = 1
"""Of the baselines; a change that changes scores raises it."""

Scores = dict[str, list[float]]
"""Baseline → its score of each architecture; NaN where it is not finite."""


@dataclass(frozen=True, kw_only=True)
class ScoreSpec(Part):
    """Everything that decides the scores of some architectures; its key is the hash of all of it.

    Attributes:
        space: The space with its supernet.
        task: Options of the task.
        data: What would be learnt.
        batch_size: Of the batch that baselines look at.
        device: Where.
        data_sha256: Of the data itself.
        seed: Of weights and batch.
        baselines: Which, by name.
        architectures_sha256: Of their texts, in their order.
    """

    space: SpaceOptions
    task: TaskOptions
    data: DataConfig
    batch_size: int
    device: str
    data_sha256: str
    seed: int
    baselines: tuple[str, ...]
    architectures_sha256: str

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of all of it, and of the version."""
        text = json.dumps({**self.to_dict(), "version": VERSION}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def defined_baselines(space: SearchSpace) -> tuple[list[str], dict[str, str]]:
    """The baselines that a space has, and why it lacks the others.

    Args:
        space: With its supernet.

    Returns:
        Names, and name → a sentence.
    """
    reasons = {name: BASELINES[name].why_undefined(space) for name in BASELINES}
    return [name for name, why in reasons.items() if not why], {name: why for name, why in reasons.items() if why}


def baseline_scores(
    config: SearchConfig,
    seed: int,
    architectures: Sequence[Any],
    folder: Path | None = None,
    *,
    task: Task[Any] | None = None,
    on_score: Callable[[int, int], None] | None = None,
) -> Scores:
    """What every baseline of a search's space says of some architectures, before any training.

    Args:
        config: Of the search: space, task and batch are those of its trainings.
        seed: Of the initial weights and of the batch.
        architectures: Members of the space.
        folder: Where scores are kept; nowhere if None.
        task: The configuration's, if it is loaded already.
        on_score: Called with how many architectures are done, and of how many.

    Returns:
        The scores.

    Raises:
        InputError: If the data is missing.
    """
    space, task = make_search_space(config), load_task(config) if task is None else task
    names, _ = defined_baselines(space)
    texts = "\n".join(map(str, architectures))
    spec = ScoreSpec(
        space=config.space,
        task=config.task,
        data=config.data,
        batch_size=config.schedule.batch_size,
        device=config.run.device,
        data_sha256=task.digest(),
        seed=seed,
        baselines=tuple(names),
        architectures_sha256=hashlib.sha256(texts.encode()).hexdigest(),
    )
    kept = None if folder is None else folder / f"{spec.key}.json"
    if kept is not None and (known := _read(kept, spec)) is not None:
        return known
    found = _computed(spec, space, task, architectures, on_score)
    if kept is not None:
        with writing_to(kept.parent):
            kept.parent.mkdir(parents=True, exist_ok=True)
            plain = {n: [s if math.isfinite(s) else None for s in scores] for n, scores in found.items()}
            write_sealed(kept, {"spec": spec.to_dict(), "scores": plain}, spec.key)
    return found


def _computed(
    spec: ScoreSpec,
    space: SearchSpace,
    task: Task[Any],
    architectures: Sequence[Any],
    on_score: Callable[[int, int], None] | None,
) -> Scores:
    """As a training from scratch begins: weights and first batch of `train_from_scratch` with this seed."""
    found: Scores = {name: [] for name in spec.baselines}
    with cpu_arithmetic(1, flush_denormals=True), torch.random.fork_rng(devices=[]):
        supernet = make_supernet(spec.device, task, space, spec.seed)
        supernet.train()
        batch = next(iter(task.training_batches(1, torch.Generator().manual_seed(spec.seed))))
        for number, architecture in enumerate(architectures, start=1):
            subject = Subject(supernet, architecture, task, batch, spec.seed)
            for name, scores in found.items():
                torch.manual_seed(spec.seed)  # of dropout, whichever architectures came before
                score = BASELINES[name].score(subject)
                scores.append(score if math.isfinite(score) else math.nan)
            if on_score is not None:
                on_score(number, len(architectures))
    return found


def _read(path: Path, spec: ScoreSpec) -> Scores | None:
    """Scores that were kept; None where there are none, or the file is damaged, which a warning tells."""
    try:
        stored = read_sealed(path, spec.key)
    except FileNotFoundError:
        return None
    except InputError as error:
        warnings.warn(f"{error} Computing the scores again.", stacklevel=3)
        return None
    return {name: [math.nan if s is None else s for s in scores] for name, scores in stored["scores"].items()}
