"""Architecture search on shared weights, with and without protection, and the forgetting in it as it happens.

One epoch: the strategy proposes architectures one at a time; each trains its weights in the supernet for some batches
under the protection, its error err₁ is recorded, and it is consolidated; then all of the epoch's architectures are
evaluated again (err₂), and the strategy learns from rewards. Every arm of a seed starts from the same weights and sees
the same batches.

Four held-out texts or image sets keep the numbers apart: `importance` for the Fisher, the first half of `validation`
for rewards, its second half for err₁ and err₂, `test` for the derived architecture alone.

Sources: Pham et al. 2018 (ENAS, arXiv:1802.03268); Benyahia et al. 2019 (arXiv:1902.08232), section 4.2.
"""

import copy
import dataclasses
import hashlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from forgetless.architecture import Architecture, CellSpace, Nas201Space, RecurrentSpace, Space
from forgetless.data import load_images, load_text
from forgetless.data.images import IMAGE_DATA
from forgetless.data.text import TEXT_DATA
from forgetless.errors import InputError, expect_one_of
from forgetless.forgetting import ForgettingMeter
from forgetless.importance import FisherKind, diagonal_fisher
from forgetless.interference import Interference, measure_interference
from forgetless.plasticity import AccumulationRule
from forgetless.protection import PROTECTIONS, WPL, NoProtection, Protection, make_protection
from forgetless.strategies import STRATEGIES, Strategy, make_strategy
from forgetless.supernets.cell import CellSupernet
from forgetless.supernets.nas201 import ImageSupernet, Nas201Supernet
from forgetless.supernets.recurrent import RecurrentSupernet
from forgetless.tasks import ImageClassification, LanguageModelling, SplitName, Task
from forgetless.training import MeanStep, cpu_arithmetic, expect_device, train

SpaceName = Literal["recurrent", "cell", "nas201"]
ImportanceSource = Literal["held-out", "training"]
Protected = Literal["all", "cell"]
Start = Literal["forgetting"] | int

MATCHED = "matched-lr"
ARMS = (*PROTECTIONS, MATCHED)
REWARD_SCALE = 80.0
"""c of the reward c / perplexity for text (Pham et al. 2018, section 2.2)."""

_NEWEST = 0.3  # share of the newest model in the running mean that the control arm follows
_DIVERGED_NATS = 5.0  # above the uniform prediction, log of the vocabulary


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What `forgetless search` is asked to do.

    Attributes:
        space: `recurrent` (text), `cell` or `nas201` (images).
        data: `kjv` for text and `digits` for images if None; or `ptb`, `wikitext2`, `mnist`, `cifar10`, or a path.
        data_dir: Where named data lies; FORGETLESS_DATA or a download if None.
        strategy: What proposes architectures: `enas` or `uniform`.
        protection: Arms to compare, of `none`, `freeze`, `l2`, `wpl` and `matched-lr` (no protection; the learning
            rate follows, from epoch to epoch, that at which the mean step was that under `wpl`).
        alpha: Strength of `wpl`.
        l2_alpha: Strength of `l2`, whose importance is 1 for every weight.
        rule: How importance accumulates over models.
        decay: Of the rules `ema` and `merge`.
        damping: Added to the importance, as a share of its mean.
        reset_every: Epochs between two resets of anchors and importance; never if 0.
        protect_from: First epoch with protection, from 0; or `forgetting`: the one after the first in which models
            got worse on average. Until then all arms of a seed are the same.
        protect: `all` shared weights, or those of the `cell` only, without embedding, decoder, stem and classifier.
        importance: Where the Fisher comes from: per-example gradients on `held-out` examples, or an estimate from the
            mean gradients of the `training` batches themselves, which costs next to nothing.
        importance_batches: Batches of the importance split per model, if held-out.
        fisher: Kind of the Fisher, if held-out.
        single: Train one architecture only, the first proposed: what then is forgotten is no other model's doing.
        independent: Draw chunks of text independently instead of reading on.
        seeds: How many seeds, 0, 1, ….
        epochs: Epochs per arm.
        models_per_epoch: Architectures trained per epoch.
        batches_per_model: Training batches of each.
        evaluation_batches: Batches of held-out data per error; all if 0.
        strategy_steps: Calls of the strategy's `learn` per epoch.
        samples_per_step: Architectures per call.
        final_samples: Architectures from which the best is derived at the end; no derivation if 0.
        final_batches: Batches of which the derived and the random architecture are trained from scratch; as many as
            the whole search took if 0.
        interference_every: Epochs between two measurements of who overwrites whom; never if 0.
        interference_models: Architectures of these measurements, drawn once per seed; each is trained as in an epoch.
        optimizer: `sgd` or `adam`.
        learning_rate: Of the shared weights; by space and optimizer if None.
        momentum: Of SGD.
        max_gradient_norm: Gradients are scaled down to it.
        batch_size: Sequences or images per batch.
        num_steps: Words per sequence.
        nodes: Nodes of a recurrent cell, blocks of an ENAS cell.
        units: Units of the recurrent cell, or channels of the first stage.
        cells_per_stage: Cells per stage of an image network.
        augment: Shift and mirror training images.
        dropout: Of the embedded words and of the output of a recurrent cell, one mask per sequence.
        weight_drop: Probability that a single weight of a recurrent cell is dropped.
        device: Where to train.
        threads: Threads of the CPU; they decide the last bits of every result.
    """

    space: SpaceName = "recurrent"
    data: str | None = None
    data_dir: str | None = None
    strategy: str = "enas"
    protection: tuple[str, ...] = ("wpl",)
    alpha: float = 1e4
    l2_alpha: float = 1.0
    rule: AccumulationRule = "ema"
    decay: float = 0.9
    damping: float = 0.0
    reset_every: int = 0
    protect_from: Start = "forgetting"
    protect: Protected = "all"
    importance: ImportanceSource = "training"
    importance_batches: int = 2
    fisher: FisherKind = "empirical"
    single: bool = False
    independent: bool = False
    seeds: int = 1
    epochs: int = 10
    models_per_epoch: int = 10
    batches_per_model: int = 7
    evaluation_batches: int = 5
    strategy_steps: int = 5
    samples_per_step: int = 10
    final_samples: int = 100
    final_batches: int = 0
    interference_every: int = 0
    interference_models: int = 4
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float | None = None
    momentum: float = 0.0
    max_gradient_norm: float = 0.25
    batch_size: int = 32
    num_steps: int = 20
    nodes: int = 4
    units: int = 32
    cells_per_stage: int = 1
    augment: bool = False
    dropout: float = 0.0
    weight_drop: float = 0.0
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "protection", tuple(dict.fromkeys(self.protection)))
        if not self.protection:
            raise InputError("Expected at least one protection, but got none.")
        for name in self.protection:
            expect_one_of("protection", name, ARMS)
        if MATCHED in self.protection and "wpl" not in self.protection:
            raise InputError(f"Expected wpl among the protections, because {MATCHED} matches its steps. Add wpl.")
        expect_one_of("strategy", self.strategy, STRATEGIES)
        for name, kind in (
            ("space", SpaceName),
            ("rule", AccumulationRule),
            ("protect", Protected),
            ("importance", ImportanceSource),
            ("fisher", FisherKind),
            ("optimizer", Literal["sgd", "adam"]),
        ):
            expect_one_of(name, getattr(self, name), get_args(kind))
        for name in (
            "seeds",
            "epochs",
            "models_per_epoch",
            "batches_per_model",
            "importance_batches",
            "samples_per_step",
            "batch_size",
            "num_steps",
            "nodes",
            "units",
            "cells_per_stage",
            "threads",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"Expected {name} to be at least 1, but got {getattr(self, name)}.")
        for name in (
            "reset_every",
            "evaluation_batches",
            "strategy_steps",
            "final_samples",
            "final_batches",
            "interference_every",
        ):
            if getattr(self, name) < 0:
                raise InputError(f"Expected {name} to be at least 0, but got {getattr(self, name)}.")
        if self.interference_models < 2:
            raise InputError(f"Expected interference_models to be at least 2, but got {self.interference_models}.")
        for name in ("alpha", "l2_alpha", "damping"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"Expected {name} to be finite and at least 0, but got {value}.")
        for name in ("learning_rate", "max_gradient_norm"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"Expected {name} to be finite and above 0, but got {value}.")
        for name in ("momentum", "dropout", "weight_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"Expected {name} in [0, 1), but got {getattr(self, name)}.")
        if isinstance(self.protect_from, str):
            expect_one_of("protect_from", self.protect_from, ["forgetting", "an epoch"])
        elif self.protect_from < 0:
            raise InputError(f"Expected protect_from to be at least 0 or forgetting, but got {self.protect_from}.")
        if not 0 <= self.decay <= 1:
            raise InputError(f"Expected decay in [0, 1], but got {self.decay}.")
        if self.importance == "training" and "wpl" in self.protection and self.batches_per_model < 2:
            raise InputError("Expected batches_per_model to be at least 2 for importance from training, but got 1.")
        if self.importance == "held-out" and self.fisher == "exact" and self.space == "recurrent":
            raise InputError("Expected fisher to be empirical, monte_carlo or batch for text, but got exact.")
        expect_device(self.device)
        named = (self.space == "recurrent") == (self.data in TEXT_DATA)
        if self.data in (*TEXT_DATA, *IMAGE_DATA) and not named:
            raise InputError(f"Expected data that fits the space {self.space}, but got {self.data!r}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SearchConfig":
        """The configuration that `dataclasses.asdict` or a TOML file holds.

        Args:
            values: Option → value; options left out have their defaults.

        Raises:
            InputError: If an option is unknown or a value does not fit.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            expect_one_of("option", name, known)
        return cls(**values)


@dataclass(frozen=True)
class SearchArm:
    """One search to make: a seed under one protection."""

    seed: int
    protection: str


@dataclass(frozen=True)
class SearchProgress:
    """Where a search stands, for a display.

    Attributes:
        done: Finished epochs, over all arms.
        total: All epochs.
        label: Arm, epoch and phase.
        values: What is known so far, by name.
    """

    done: int
    total: int
    label: str
    values: Mapping[str, float]


def search_arms(config: SearchConfig) -> list[SearchArm]:
    """Every search that a configuration asks for, in the order they are made: the control arm after `wpl`.

    Args:
        config: The configuration.
    """
    order = sorted(config.protection, key=lambda name: name == MATCHED)
    return [SearchArm(seed, name) for seed in range(config.seeds) for name in order]


def run(
    config: SearchConfig,
    *,
    records: Sequence[dict[str, Any]] = (),
    checkpoint: Mapping[str, Any] | None = None,
    on_epoch: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
    on_progress: Callable[[SearchProgress], None] | None = None,
) -> list[dict[str, Any]]:
    """Make every search that the configuration asks for, going on where an earlier call was interrupted.

    Args:
        config: What to do.
        records: What earlier calls recorded, as `reconcile` leaves it.
        checkpoint: The newest state of these calls.
        on_epoch: Called after each record with the record and the state to go on from; store the state first.
        on_progress: Called within epochs.

    Returns:
        All records, one per epoch and one (`event` = `derived`) per arm; docs/metrics.md explains the keys. Numbers
        but seconds do not depend on interruptions.

    Raises:
        InputError: If the data is missing or damaged, the sizes do not fit the memory, or the checkpoint is of another
            configuration (the message names the options).
    """
    if checkpoint is not None:
        _check_configuration(config, checkpoint["config"])
    with cpu_arithmetic(config.threads, flush_denormals=True), torch.random.fork_rng(devices=[]):
        task = load_task(config)
        check_memory(config, task)
        made = list(records)
        for arm in search_arms(config):
            _run_arm(config, task, arm, made, checkpoint, on_epoch, on_progress)
    return made


def _check_configuration(config: SearchConfig, stored: Mapping[str, Any]) -> None:
    present = dataclasses.asdict(config)
    stored = {**dataclasses.asdict(SearchConfig()), **stored}  # options that came later have their defaults
    # Where the data lies may change between two machines; what it is may not.
    differing = [name for name in present if name != "data_dir" and present[name] != stored.get(name)]
    if differing:
        told = ", ".join(f"{name} ({stored.get(name)!r}, now {present[name]!r})" for name in differing)
        raise InputError(f"Expected the configuration of the checkpoint, but got another {told}. Restore it.")


def load_task(config: SearchConfig) -> Task[Any]:
    """The data that a configuration names, as a task.

    Args:
        config: The configuration.
    """
    if config.space == "recurrent":
        text = load_text(config.data or "kjv", config.data_dir)
        return LanguageModelling(
            text, config.batch_size, config.num_steps, independent=config.independent, device=config.device
        )
    images = load_images(config.data or "digits", config.data_dir)
    return ImageClassification(images, config.batch_size, config.device, augment=config.augment)


def make_space(config: SearchConfig) -> Space[Any]:
    """The space that a configuration names.

    Args:
        config: The configuration.
    """
    if config.space == "recurrent":
        return RecurrentSpace(config.nodes)
    return CellSpace(config.nodes) if config.space == "cell" else Nas201Space()


def memory_bytes(config: SearchConfig, task: Task[Any]) -> int:
    """About how much memory a search takes: weights, gradients, anchors, importances, and a batch's activations.

    Args:
        config: Sizes.
        task: Decides vocabulary, or image shape and classes.

    Returns:
        Bytes.
    """
    copies = 5 if config.optimizer == "sgd" else 7  # the mean step keeps one more
    if config.interference_every:  # a second copy of the weights and the optimizer's state
        copies += 1 if config.optimizer == "sgd" else 3
    space = make_space(config)
    if isinstance(task, LanguageModelling):
        assert isinstance(space, RecurrentSpace)
        sizes = (task.data.num_words, config.units, space, config.batch_size, config.num_steps)
        return RecurrentSupernet.memory_bytes(*sizes, copies=copies)
    assert isinstance(task, ImageClassification)
    shape, classes = task.data.image_shape, task.data.num_classes
    if isinstance(space, CellSpace):
        return CellSupernet.memory_bytes(
            shape, classes, config.units, config.cells_per_stage, space, batch_size=config.batch_size, copies=copies
        )
    return Nas201Supernet.memory_bytes(
        shape, classes, config.units, config.cells_per_stage, batch_size=config.batch_size, copies=copies
    )


def check_memory(config: SearchConfig, task: Task[Any]) -> None:
    """Refuse sizes that do not fit the machine's memory.

    Args:
        config: Sizes.
        task: The data.

    Raises:
        InputError: If the search needs more than there is; it says how much it needs.
    """
    if config.device.startswith("cuda"):
        available = torch.cuda.get_device_properties(config.device).total_memory
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = memory_bytes(config, task)
    if needed > available:
        raise InputError(
            f"Expected a search that fits {available / 2**30:.1f} GiB of memory, but nodes={config.nodes} and "
            f"units={config.units} need about {needed / 2**30:.1f} GiB. Choose fewer."
        )


def make_supernet(config: SearchConfig, task: Task[Any], space: Space[Any], seed: int) -> nn.Module:
    """The supernet of a space for a task, with weights drawn from a seed; the global random state is left alone.

    Args:
        config: Sizes.
        task: Decides vocabulary, or image shape and classes.
        space: The space.
        seed: Of the initial weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet: nn.Module
        if isinstance(task, LanguageModelling):
            assert isinstance(space, RecurrentSpace)
            supernet = RecurrentSupernet(
                task.data.num_words,
                config.units,
                space,
                dropout_input=config.dropout,
                dropout_output=config.dropout,
                weight_drop=config.weight_drop,
            )
        elif isinstance(task, ImageClassification):
            sizes = (task.data.image_shape, task.data.num_classes, config.units, config.cells_per_stage)
            supernet = CellSupernet(*sizes, space) if isinstance(space, CellSpace) else Nas201Supernet(*sizes)
    return supernet.to(config.device)


def reconcile(
    config: SearchConfig, records: Sequence[dict[str, Any]], checkpoint: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """The records that a run goes on from: those of finished arms, and of one more as far as its checkpoint knows.

    The two are stored one after the other, so that a crash can leave a checkpoint one record ahead (the record is
    taken from it) or, where the newest checkpoint was damaged, some records behind (these will be made again).

    Args:
        config: The configuration.
        records: What was recorded.
        checkpoint: The newest state that can be read.

    Returns:
        The records to keep.

    Raises:
        InputError: If the checkpoint is of another configuration.
    """
    if checkpoint is not None:
        _check_configuration(config, checkpoint["config"])
    kept = []
    for arm in search_arms(config):
        mine = [record for record in records if _arm_of(record) == arm]
        if checkpoint is not None and checkpoint["arm"] == dataclasses.asdict(arm):
            known = checkpoint["num_records"]
            mine = [*mine[: known - 1], checkpoint["record"]] if len(mine) >= known - 1 else []
        elif len(mine) < _num_records(config):
            mine = []
        kept += mine
    return kept


def _num_records(config: SearchConfig) -> int:
    """Records of a finished arm: its epochs, and the derivation if there is one."""
    return config.epochs + (config.final_samples > 0)


def _arm_of(record: Mapping[str, Any]) -> SearchArm:
    return SearchArm(record["seed"], record["protection"])


def _run_arm(
    config: SearchConfig,
    task: Task[Any],
    arm: SearchArm,
    made: list[dict[str, Any]],
    checkpoint: Mapping[str, Any] | None,
    on_epoch: Callable[[dict[str, Any], dict[str, Any]], None] | None,
    on_progress: Callable[[SearchProgress], None] | None,
) -> None:
    """Append to `made` the records of one arm that are missing there."""
    mine = [record for record in made if _arm_of(record) == arm]
    expected = _num_records(config)
    if len(mine) == expected:
        return
    torch.manual_seed(arm.seed)  # what is drawn in training, such as dropout
    search = Search(config, task, arm)
    if mine and checkpoint is not None:
        search.load_state_dict(checkpoint)
    measure = "mean_net_step" if config.rule == "merge" else "mean_step"
    wanted = {
        record["epoch"]: record[measure]
        for record in made
        if record["event"] == "epoch" and record["is_protected"] and _arm_of(record) == SearchArm(arm.seed, "wpl")
    }
    total = len(search_arms(config)) * config.epochs

    def show(phase: str, values: Mapping[str, float]) -> None:
        if on_progress is not None:
            done = sum(record["event"] == "epoch" for record in made)
            label = f"seed {arm.seed} {arm.protection}: epoch {search.epoch + 1}, {phase}"
            on_progress(SearchProgress(done, total, label, values))

    while len(mine) < expected:
        record = search.one_epoch(wanted, show) if search.epoch < config.epochs else search.derive(show)
        mine.append(record)
        made.append(record)
        if on_epoch is not None:
            on_epoch(
                record,
                {
                    **search.state_dict(),
                    "config": dataclasses.asdict(config),
                    "num_records": len(mine),
                    "record": record,
                },
            )


def measure_arms(
    config: SearchConfig,
    states: Sequence[Mapping[str, Any]],
    *,
    num_models: int = 8,
    num_batches: int | None = None,
    on_progress: Callable[[SearchProgress], None] | None = None,
) -> list[dict[str, Any]]:
    """Who overwrites whom, on stored states of a search: the same sample and batches for all states of a seed.

    Args:
        config: Of the search.
        states: As `on_epoch` of `run` was given them, one per arm.
        num_models: Architectures to draw, at least 2.
        num_batches: Batches that each is trained for; `batches_per_model` if None.
        on_progress: Called before and after each training.

    Returns:
        One JSON-serialisable dict per state; docs/metrics.md explains the keys.

    Raises:
        InputError: If the data is missing or damaged, a state is of another configuration, or there are fewer than 2
            models.
    """

    def show(arm: SearchArm, before: int, trained: int) -> None:
        if on_progress is not None:
            label = f"seed {arm.seed} {arm.protection}: {trained}/{num_models} models trained"
            on_progress(SearchProgress(before + trained, len(states) * num_models, label, {}))

    measured = []
    with cpu_arithmetic(config.threads, flush_denormals=True), torch.random.fork_rng(devices=[]):
        task = load_task(config)
        for done, state in enumerate(states):
            _check_configuration(config, state["config"])
            arm = SearchArm(**state["arm"])
            torch.manual_seed(arm.seed)  # the state has the CPU's random numbers only
            search = Search(config, task, arm)
            search.load_state_dict(state)
            on_trained = partial(show, arm, done * num_models)
            on_trained(0)
            sample = fixed_sample(search.strategy.space, num_models, arm.seed)
            found = search.interference(sample, search.epoch, num_batches, on_trained)
            epochs = {"epochs": search.epoch, "num_batches": num_batches or config.batches_per_model}
            measured.append({**dataclasses.asdict(arm), **epochs, **found.as_dict()})
    return measured


def fixed_sample(space: Space[Any], number: int, seed: int) -> list[Any]:
    """Architectures drawn uniformly, the first of them the same for every number; distinct as long as there are more.

    Args:
        space: What to draw from.
        number: How many.
        seed: Of a generator of its own.
    """
    generator = _generator(seed, "interference")
    drawn: dict[Any, None] = {}
    while len(drawn) < min(number, space.size):
        drawn[space.sample(generator)] = None
    return [*drawn, *(space.sample(generator) for _ in range(number - len(drawn)))]


class Search:
    """The state of one search, an epoch at a time.

    Args:
        config: What to do.
        task: The data.
        arm: Seed and protection.

    Attributes:
        epoch: Finished epochs.
        supernet: The shared weights.
        strategy: What proposes architectures.
    """

    def __init__(self, config: SearchConfig, task: Task[Any], arm: SearchArm) -> None:
        self.config, self.task, self.arm = config, task, arm
        self.epoch = 0
        space = make_space(config)
        self.supernet = make_supernet(config, task, space, arm.seed)
        self.strategy: Strategy[Any] = make_strategy(config.strategy, space, seed=arm.seed)
        self.scale = 1.0  # of the shared weights' learning rate, in the control arm
        self._step_at_rate_1 = 0.0  # what a scale of 1 gives: a running mean over models
        self._protects = config.protect_from == 0
        self._shared = self._protected(dict(self.supernet.named_parameters()))
        name = "none" if arm.protection == MATCHED else arm.protection
        alpha = config.l2_alpha if name == "l2" else config.alpha
        self.protection: Protection = make_protection(name, self._shared, alpha, damping=config.damping)
        if isinstance(self.protection, WPL):
            self.protection.plasticity.rule = config.rule
            self.protection.plasticity.decay = config.decay
        self.optimizer = _optimizer(config, self.supernet, self._shared)
        self._only: Architecture | None = None

    def _protected(self, named: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
        outside = ("embedding", "decoder_bias", "stem", "classifier", "head_norm")
        return [p for name, p in named.items() if self.config.protect == "all" or not name.startswith(outside)]

    # ---- one epoch -------------------------------------------------------------------------------------------

    def one_epoch(
        self, wanted_steps: Mapping[int, float], show: Callable[[str, Mapping[str, float]], None]
    ) -> dict[str, Any]:
        """Train the epoch's architectures, measure their forgetting, and let the strategy learn.

        Args:
            wanted_steps: Mean step under `wpl` by epoch, for the control arm.
            show: Called with the phase and what is known so far.

        Returns:
            The epoch's record.
        """
        config = self.config
        clock = _Clock()
        if config.reset_every and self.epoch % config.reset_every == 0 and isinstance(self.protection, WPL):
            self.protection.plasticity.reset()
        self._protects |= self.epoch == config.protect_from
        wanted = wanted_steps.get(self.epoch)
        meter = ForgettingMeter(self._diverged_above())
        trained: list[Any] = []
        first: list[float] = []
        consolidated: list[float] = []
        moved: list[_Moved] = []
        num_passed_over = 0
        for j in range(config.models_per_epoch):
            architecture = self._next_architecture()
            self._follow(wanted)
            before = [weight.detach().clone() for weight in self._shared]
            with clock("train"):
                gradients, step, skipped = self._train(architecture, self.epoch * config.models_per_epoch + j)
            num_passed_over += skipped
            with clock("evaluate"):
                error = self._error(architecture, "forgetting")
            with clock("consolidate"):
                if error <= self._diverged_above() and self._protects:
                    self._consolidate(architecture, gradients)
            with clock("evaluate"):
                moves = self._protects and isinstance(self.protection, WPL) and config.rule == "merge"
                consolidated.append(self._error(architecture, "forgetting") if moves else error)
            moved.append(_Moved(step, _distance(before, self._shared) / config.batches_per_model))
            self._learn_step(moved[-1])
            meter.record(j, error)
            trained.append(architecture)
            first.append(error)
            show(f"model {j + 1}/{config.models_per_epoch}", {self.task.error_name: error})
        penalty = 0.0
        if isinstance(self.protection, WPL):
            penalty = float(self.protection.plasticity.penalty().detach())
        with clock("evaluate"):
            second = [self._error(architecture, "forgetting") for architecture in trained]
        for j, error in enumerate(second):
            meter.revisit(j, error)
        forgetting = meter.summary()
        part = math.nan
        if config.interference_every and (self.epoch + 1) % config.interference_every == 0:
            show("interference", {"forgetting": forgetting.mean})
            sample = fixed_sample(self.strategy.space, config.interference_models, self.arm.seed)
            with clock("interference"):
                part = self.interference(sample, self.epoch + 1).multi_model_part.mean
        show("learning", {"forgetting": forgetting.mean})
        with clock("learn"):
            learned = self._learn()
        record = {
            "event": "epoch",
            **dataclasses.asdict(self.arm),
            "epoch": self.epoch,
            "forgetting_mean": _or_none(forgetting.mean),
            "forgetting_best": _or_none(forgetting.best),
            "forgetting_max": _or_none(forgetting.maximum),
            "num_models": forgetting.num_models,
            "num_diverged": forgetting.num_diverged,
            "multi_model_part": _or_none(part),
            "error_first": _or_none(_finite_mean(first)),
            "error_consolidated": _or_none(_finite_mean(consolidated)),
            "error_second": _or_none(_finite_mean(second)),
            "is_protected": self._protects and self.arm.protection not in {"none", MATCHED},
            "penalty": _or_none(penalty),
            "mean_step": _or_none(_finite_mean([each.step for each in moved])),
            "mean_net_step": _or_none(_finite_mean([each.net for each in moved])),
            "num_passed_over": num_passed_over,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **{name: _or_none(value) for name, value in learned.items()},
            "seconds": clock.seconds,
        }
        self.epoch += 1
        if config.protect_from == "forgetting" and forgetting.mean > 0:
            self._protects = True
        return record

    def _follow(self, wanted: float | None) -> None:
        """Set the shared weights' learning rate; in the control arm such that they move as far as is wanted."""
        if self.arm.protection == MATCHED and wanted is not None and self._step_at_rate_1 > 0:
            self.scale = wanted / self._step_at_rate_1
        for i, group in enumerate(self.optimizer.param_groups):
            group["lr"] = _learning_rate(self.config) * (self.scale if i == 0 else 1.0)

    def _learn_step(self, moved: "_Moved") -> None:
        """Take one model's step into what is known of steps at a scale of 1."""
        found = moved.net if self.config.rule == "merge" else moved.step
        if not math.isfinite(found) or self.scale <= 0:
            return
        share = 1.0 if self._step_at_rate_1 == 0 else _NEWEST
        self._step_at_rate_1 += share * (found / self.scale - self._step_at_rate_1)

    def _next_architecture(self) -> Any:
        if not self.config.single:
            return self.strategy.propose(1)[0]
        if self._only is None:
            self._only = self.strategy.propose(1)[0]
        return self._only

    def _train(self, architecture: Any, number: int) -> tuple["_Gradients", float, int]:
        """Train one architecture for its batches; what is to be known of their gradients, mean step, passed over."""
        config = self.config
        steps = MeanStep(self._shared)
        gradients = _Gradients(dict(_Bound(self.supernet, architecture).named_parameters()))
        is_wanted = config.importance == "training" and isinstance(self.protection, WPL) and self._protects
        start = number * config.batches_per_model
        steps.start()
        skipped = self._train_on(
            architecture,
            start,
            config.batches_per_model,
            gradients.add if is_wanted else None,
            lambda _: steps.update(),
        )
        return gradients, steps.mean, skipped

    def _train_on(
        self,
        architecture: Any,
        start: int,
        num_batches: int,
        on_gradients: Callable[[], None] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> int:
        """Train one architecture on the seed's batches number `start`, `start` + 1, … under the protection."""
        self.supernet.train()
        return train(
            self.task.training_batches(num_batches, torch.Generator().manual_seed(self.arm.seed), start=start),
            self.task.loss_of(self.supernet, architecture),
            self.optimizer,
            self.protection if self._protects else NoProtection([]),
            max_gradient_norm=self.config.max_gradient_norm,
            on_gradients=on_gradients,
            after_step=after_step,
        )

    def _consolidate(self, architecture: Any, gradients: "_Gradients") -> None:
        bound = _Bound(self.supernet, architecture)
        self.protection.consolidate(bound, lambda _: self._fisher(architecture, gradients))

    def _fisher(self, architecture: Any, gradients: "_Gradients") -> Mapping[str, Tensor]:
        config = self.config
        if config.importance == "training":
            return gradients.fisher(self.task.batch_size)
        bound = _Bound(self.supernet, architecture)
        batches = list(itertools.islice(self.task.batches("importance"), config.importance_batches))
        if isinstance(self.supernet, ImageSupernet):
            self.supernet.recalibrate(architecture, [images for images, _ in batches])
        return diagonal_fisher(bound, batches, _cross_entropy, config.fisher, parameters=bound.parameters())

    # ---- who overwrites whom ---------------------------------------------------------------------------------

    def interference(
        self,
        architectures: Sequence[Any],
        finished_epochs: int,
        num_batches: int | None = None,
        on_trained: Callable[[int], None] | None = None,
    ) -> Interference:
        """How training each of some architectures from the present state changes the errors of all; it is undone.

        Each trains under the protection on the first batches of the next epoch; none is consolidated, so that anchors
        and importance stay what they are.

        Args:
            architectures: Members of the space, at least 2.
            finished_epochs: Epochs whose batches are passed over.
            num_batches: How many batches each is trained for; `batches_per_model` if None.
            on_trained: Called with the number of architectures trained so far.
        """
        config = self.config
        start = finished_epochs * config.models_per_epoch * config.batches_per_model
        return measure_interference(
            architectures,
            lambda architecture: self._train_on(architecture, start, num_batches or config.batches_per_model),
            lambda architecture: self._error(architecture, "forgetting"),
            self._undone,
            diverged_above=self._diverged_above(),
            on_trained=on_trained,
        )

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """At its end weights, buffers, optimizer, random state and mode are as they were; gradients are gone."""
        weights, state = copy.deepcopy((self.supernet.state_dict(), self.optimizer.state_dict()))
        was_training = self.supernet.training
        devices = {weight.device for weight in self.supernet.parameters() if weight.is_cuda}
        with torch.random.fork_rng(devices=devices):
            try:
                yield
            finally:
                self.optimizer.zero_grad(set_to_none=True)
                self.supernet.load_state_dict(weights)
                self.optimizer.load_state_dict(state)
                # By way of training mode, in which an image supernet drops whose batch statistics it has.
                self.supernet.train().train(was_training)

    # ---- errors, rewards, the strategy -----------------------------------------------------------------------

    def _error(self, architecture: Any, split: SplitName) -> float:
        return self.task.error(self.supernet, split, architecture, self.config.evaluation_batches or None)

    def reward(self, architecture: Any) -> float:
        """What the strategy is told: 80 / perplexity for text, accuracy for images, on the reward split.

        Args:
            architecture: A member of the space.
        """
        return self._reward_of(self._error(architecture, "reward"))

    def _reward_of(self, error: float) -> float:
        if isinstance(self.task, LanguageModelling):
            return REWARD_SCALE / math.exp(min(error, 700.0)) if math.isfinite(error) else math.nan
        return 1 - error

    def _rewards(self, architectures: Sequence[Any]) -> list[float]:
        """Rewards in order; an architecture that occurs twice is evaluated once."""
        known = {architecture: self.reward(architecture) for architecture in dict.fromkeys(architectures)}
        return [known[architecture] for architecture in architectures]

    def _learn(self) -> dict[str, float]:
        """The epoch's steps of the strategy; their metrics, averaged."""
        gathered: list[dict[str, float]] = []
        for _ in range(self.config.strategy_steps):
            architectures = self.strategy.propose(self.config.samples_per_step)
            gathered.append(self.strategy.learn(architectures, self._rewards(architectures)))
        names = dict.fromkeys(name for metrics in gathered for name in metrics)
        return {
            f"strategy_{name}": _finite_mean([metrics[name] for metrics in gathered if name in metrics])
            for name in names
        }

    def derive(self, show: Callable[[str, Mapping[str, float]], None]) -> dict[str, Any]:
        """The best of some proposed architectures by reward; it and a random one, trained from scratch.

        Args:
            show: Called with the phase.

        Returns:
            The record: the architecture, its reward on the shared weights, and both trainings' errors.
        """
        started = time.perf_counter()
        proposed = self.strategy.propose(self.config.final_samples)
        rewards = self._rewards(proposed)
        best = max(range(len(proposed)), key=lambda i: -math.inf if math.isnan(rewards[i]) else rewards[i])
        show("training the derived architecture from scratch", {"reward": rewards[best]})
        random = self.strategy.space.sample(_generator(self.arm.seed, "random architecture"))
        return {
            "event": "derived",
            **dataclasses.asdict(self.arm),
            "architecture": str(proposed[best]),
            "reward": _or_none(rewards[best]),
            "random_architecture": str(random),
            **{f"derived_{k}": v for k, v in self._from_scratch(proposed[best]).items()},
            **{f"random_{k}": v for k, v in self._from_scratch(random).items()},
            "seconds": {"derive": time.perf_counter() - started},
        }

    def _from_scratch(self, architecture: Any) -> dict[str, float | None]:
        """Validation and test error of an architecture trained alone."""
        config = self.config
        model = make_supernet(config, self.task, self.strategy.space, self.arm.seed)
        optimizer = _optimizer(config, model)
        num_batches = config.final_batches or config.epochs * config.models_per_epoch * config.batches_per_model
        model.train()
        train(
            self.task.training_batches(num_batches, torch.Generator().manual_seed(self.arm.seed)),
            self.task.loss_of(model, architecture),
            optimizer,
            NoProtection([]),
            max_gradient_norm=config.max_gradient_norm,
        )
        return {
            "validation_error": _or_none(self.task.error(model, "validation", architecture)),
            "test_error": _or_none(self._test_error(model, architecture)),
        }

    def _test_error(self, model: Any, architecture: Any) -> float:
        if isinstance(self.task, LanguageModelling):
            return self.task.cross_entropy_of_text(model, "test", architecture)
        return self.task.error(model, "test", architecture)

    def _diverged_above(self) -> float:
        """Errors that count as diverged: 5 nats above the uniform prediction, for text; none for images."""
        if isinstance(self.task, LanguageModelling):
            return math.log(self.task.data.num_words) + _DIVERGED_NATS
        return math.inf

    # ---- going on after an interruption ----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on; torch.load reads it with weights_only=True."""
        return {
            "arm": dataclasses.asdict(self.arm),
            "epoch": self.epoch,
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "strategy": self.strategy.state_dict(),
            "protection": self.protection.state_dict(),
            "scale": self.scale,
            "step_at_rate_1": self._step_at_rate_1,
            "protects": self._protects,
            "only": None if self._only is None else str(self._only),
            "random_state": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, in a search of the same configuration and arm.

        Args:
            state: From `state_dict`.
        """
        self.epoch, self.scale = state["epoch"], state["scale"]
        self._step_at_rate_1, self._protects = state["step_at_rate_1"], state["protects"]
        self.supernet.load_state_dict(state["supernet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.strategy.load_state_dict(state["strategy"])
        self.protection.load_state_dict(state["protection"])
        self._only = None if state["only"] is None else self.strategy.space.parse(state["only"])
        torch.set_rng_state(state["random_state"])


class _Bound(nn.Module):
    """One architecture of a supernet as a module of its own, which has only the weights that it uses."""

    def __init__(self, supernet: nn.Module, architecture: Any) -> None:
        super().__init__()
        self.supernet = supernet
        self.architecture = architecture

    def named_parameters(
        self,
        prefix: str = "",
        recurse: bool = True,
        remove_duplicate: bool = True,  # noqa: ARG002
    ) -> Iterator[tuple[str, nn.Parameter]]:
        if not recurse:  # it has none of its own
            return
        used = self.supernet.used_parameters(self.architecture)  # type: ignore[operator]
        yield from ((f"{prefix}supernet.{name}", parameter) for name, parameter in used.items())

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.supernet(inputs, self.architecture)
        logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        return logits


@dataclass(frozen=True)
class _Moved:
    """How far one model's training moved the shared weights, per batch.

    Attributes:
        step: Mean length of its steps.
        net: Distance from before its training to after its consolidation, divided by its batches.
    """

    step: float
    net: float


class _Gradients:
    """The empirical Fisher of one model, estimated from the mean gradients of its k training batches.

    With ḡ_b the mean gradient of batch b of B examples, ḡ their mean and s² = Σ_b (ḡ_b − ḡ)²/(k − 1),

        F ≈ (B − 1/k) s² + ḡ²

    is unbiased where examples are independent and the weights stand still: B·s² estimates the variance of one example's
    gradient, ḡ² − s²/k the square of its mean. Since weights move while they train, it is somewhat larger.

    Args:
        weights: By name.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self._weights = weights
        self._mean: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}  # Σ (ḡ_b − ḡ)², by Welford's update
        self._count = 0

    @torch.no_grad()
    def add(self) -> None:
        """Take in the gradients that the weights have now."""
        self._count += 1
        found = {name: weight.grad for name, weight in self._weights.items() if weight.grad is not None}
        if not self._mean:
            self._mean = {name: torch.zeros_like(gradient) for name, gradient in found.items()}
            self._squares = {name: torch.zeros_like(gradient) for name, gradient in found.items()}
        gradients = list(found.values())
        means, squares = list(self._mean.values()), list(self._squares.values())
        before = torch._foreach_sub(gradients, means)
        torch._foreach_add_(means, before, alpha=1 / self._count)
        after = torch._foreach_sub(gradients, means)
        torch._foreach_addcmul_(squares, before, after)

    def fisher(self, batch_size: int) -> dict[str, Tensor]:
        """F by name; empty if fewer than two batches were trained on.

        Args:
            batch_size: B.
        """
        if self._count < 2:
            return {}
        share = (batch_size - 1 / self._count) / (self._count - 1)
        return {name: self._squares[name] * share + mean.square() for name, mean in self._mean.items()}


class _Clock:
    """Wall seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def _distance(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """‖after − before‖₂ over all weights in one vector."""
    with torch.no_grad():
        norms = torch._foreach_norm(torch._foreach_sub(list(before), list(after)))
    return float(torch.linalg.vector_norm(torch.stack(list(norms))))


def _generator(seed: int, purpose: str) -> torch.Generator:
    """Independent of those of other purposes."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def _optimizer(config: SearchConfig, supernet: nn.Module, shared: Sequence[nn.Parameter] = ()) -> Optimizer:
    """The shared weights are its first group, if there are any."""
    held = {id(weight) for weight in shared}
    others = [weight for weight in supernet.parameters() if id(weight) not in held]
    groups = [{"params": weights} for weights in (list(shared), others) if weights]
    rate = _learning_rate(config)
    if config.optimizer == "sgd":
        return SGD(groups, lr=rate, momentum=config.momentum)
    return Adam(groups, lr=rate)


def _learning_rate(config: SearchConfig) -> float:
    if config.learning_rate is not None:
        return config.learning_rate
    if config.optimizer == "adam":
        return 0.001
    return 10.0 if config.space == "recurrent" else 0.1


def _finite_mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
