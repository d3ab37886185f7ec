"""The parts that the configurations of all experiments have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from forgetless.checkpoints import DEFAULT, seconds_of
from forgetless.choices import FisherKind, OptimizerName
from forgetless.configuration import MOST_FIRST_SEED, MOST_SEEDS, MOST_THREADS, Part, fitting, option
from forgetless.errors import InputError
from forgetless.protection import PROTECTIONS, ProtectionOptions


@dataclass(frozen=True, kw_only=True)
class DataConfig(Part):
    """What is learnt.

    Attributes:
        name: A data set by its name, or the path of a folder.
    """

    title: ClassVar[str] = "Data"

    name: str = fitting(flag="data", basic=True)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Part):
    """How weights are trained.

    Attributes:
        name: The optimizer.
        learning_rate: Of all weights, but where an experiment says otherwise.
        momentum: Of SGD.
        max_gradient_norm: Gradients are scaled down to it; not at all if None.
        weight_decay: λ, at least 0, of the weights that a batch trains. SGD and Adam add λ w to the gradient (L₂),
            after it was scaled down; AdamW takes rate · λ w off the weight (decoupled). By default 0, of AdamW 0.01.
    """

    title: ClassVar[str] = "Optimizer"

    name: OptimizerName = fitting(flag="optimizer", basic=True)
    learning_rate: float = fitting(basic=True)
    momentum: float = fitting()
    max_gradient_norm: float | None = fitting()
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_positive("learning_rate", "max_gradient_norm")
        self.expect_below_1("momentum")
        self.expect_not_negative("weight_decay")

    def fitted(self, defaults: Mapping[str, Any], rates: Mapping[str, float]) -> OptimizerConfig:
        """The same with a value for every option that has none.

        Args:
            defaults: `name`, and `momentum` and `max_gradient_norm` where they are not 0 and none.
            rates: The learning rate by the name of the optimizer; 0.001 for one that is not there.
        """
        name = self.name or defaults["name"]
        rate = rates.get(name, 0.001) if self.learning_rate is None else self.learning_rate
        momentum = defaults.get("momentum", 0.0) if self.momentum is None else self.momentum
        norm = defaults.get("max_gradient_norm") if self.max_gradient_norm is None else self.max_gradient_norm
        return replace(self, name=name, learning_rate=rate, momentum=momentum, max_gradient_norm=norm)


@dataclass(frozen=True, kw_only=True)
class FisherConfig(Part):
    """What protections learn of a trained model.

    Attributes:
        fisher: Kind of the Fisher information; see `forgetless.diagonal_fisher`.
    """

    title: ClassVar[str] = "Importance"

    fisher: FisherKind = "empirical"


@dataclass(frozen=True, kw_only=True)
class RunConfig(Part):
    """Which runs are made, and the arithmetic that they are made with.

    Attributes:
        seeds: How many seeds: initial weights, batches and what is drawn.
        first_seed: The first of them.
        device: Where to train: `cpu`, `cuda`, `cuda:1`, `mps`.
        threads: Threads of the CPU. Sums are ordered by it, so that it decides the last bits of every result; small
            models are fastest with one.
    """

    title: ClassVar[str] = "Run"

    seeds: int = fitting(basic=True)
    first_seed: int = 0
    device: str = option("cpu", basic=True)
    threads: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "seeds", "threads")
        self.expect_at_least(0, "first_seed")
        self.expect_at_most(MOST_SEEDS, "seeds")
        self.expect_at_most(MOST_FIRST_SEED, "first_seed")
        self.expect_at_most(MOST_THREADS, "threads")

    def fitted(self, seeds: int) -> RunConfig:
        """The same, with a number of seeds if none was given.

        Args:
            seeds: How many.
        """
        return self if self.seeds is not None else replace(self, seeds=seeds)

    @property
    def all_seeds(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)


@dataclass(frozen=True, kw_only=True)
class Resources(Part):
    """Where and how a run is made; nothing here decides a number, and a run goes on with others than it began with.

    Attributes:
        data_dir: Where named data lies; FORGETLESS_DATA or a download if None.
        workers: Processes that seeds and arms are spread over, one by default; or tasks at a time on a cluster, one per
            core of this machine by default.
        cluster: The address of a Ray cluster that seeds and arms are spread over, or `local` to start one here;
            processes by default.
        checkpoint_every: How much work a kill may cost, such as 10min, 90s or 2h.
        plugin: Files with methods, spaces or data sets of your own; see CONTRIBUTING.md. Going on with a run, and
            reports of it, take them again.
    """

    title: ClassVar[str] = "Resources"

    data_dir: str | None = None
    workers: int | None = option(None, basic=True)
    cluster: str | None = None
    checkpoint_every: str = DEFAULT
    plugin: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "workers")
        self.expect_at_most(MOST_THREADS, "workers")
        seconds_of(self.checkpoint_every)
        self._set(plugin=tuple(str(Path(path).expanduser().resolve()) for path in self.plugin))


@dataclass(frozen=True, kw_only=True)
class TrainingResources(Resources):
    """Where and how runs and trainings from scratch are made; nothing here decides a number.

    Attributes:
        workers: Processes, or tasks at a time on a cluster; one per core by default.
        cluster: The address of a Ray cluster, or `local` to start one here; processes by default.
        trainings: Folder of trainings from scratch, which are made once; FORGETLESS_TRAININGS or runs/trainings by
            default.
    """

    trainings: str | None = None


def fitted_protections(
    options: Sequence[ProtectionOptions],
    *contexts: str,
    several_strengths: bool = False,
    may_replace_layers: bool = False,
) -> tuple[ProtectionOptions, ...]:
    """The protections that an experiment is asked for, complete, each once.

    Args:
        options: As they are asked for.
        *contexts: Of the experiment; see `Options.fits`.
        several_strengths: Whether one protection may come with several strengths.
        may_replace_layers: Whether layers may be replaced, as in the fine-tuning of one model; not where models share
            them.

    Returns:
        The same, with what fits in the place of what was left out.

    Raises:
        InputError: If there is none, or one comes twice, or a control arm comes without what it is matched to, or one
            replaces layers that models share.
    """
    found = tuple(dict.fromkeys(each.fitted(*contexts) for each in options))
    if not found:
        raise InputError("Expected at least one protection, but got none.")
    names = [each.kind.name for each in found]
    keys = [(each.kind.name, each.strength_or_none if several_strengths else None) for each in found]
    for i, key in enumerate(keys):
        if key in keys[:i]:
            raise InputError(f"Expected each protection once, but got {key[0]} with different options. Leave one out.")
    for each in found:
        if each.kind.replaces_layers and not may_replace_layers:
            raise InputError(
                f"Expected protections that keep shared weights in place, but got {each.kind.name}, which trains other "
                "layers instead. Use it in fine-tune."
            )
        matched = each.kind.matches
        if matched is not None and matched not in names:
            raise InputError(
                f"Expected {matched} among the protections, because {each.kind.name} matches its steps. Add {matched}."
            )
    return found


def default_protections(*names: str) -> tuple[ProtectionOptions, ...]:
    """Some protections with their defaults.

    Args:
        *names: Of them.
    """
    return tuple(PROTECTIONS[name].Options() for name in names)
