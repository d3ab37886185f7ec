"""What a search is asked to do, and which searches that makes."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from forgetless.architecture import ACTIVATIONS, CELL_OPERATIONS, NAS201_OPERATIONS
from forgetless.checkpoints import DEFAULT, seconds_of
from forgetless.configuration import FITTING, MOST_FIRST_SEED, MOST_SEEDS, MOST_THREADS, Configuration
from forgetless.data.images import IMAGE_DATA
from forgetless.data.text import TEXT_DATA
from forgetless.errors import InputError, expect_one_of
from forgetless.importance import FisherKind
from forgetless.plasticity import AccumulationRule
from forgetless.protection import MATCHED, PROTECTIONS, STRENGTHS
from forgetless.protection.coupling import CouplingRule
from forgetless.strategies import STRATEGIES
from forgetless.training import expect_device

SpaceName = Literal["recurrent", "cell", "nas201"]
ImportanceSource = Literal["held-out", "training"]
Protected = Literal["all", "cell"]
Start = Literal["forgetting"] | int

# What options are that are not given: they depend on the space.
_BY_SPACE: dict[str, dict[str, Any]] = {
    "recurrent": {
        "data": "kjv",
        "alpha": 3e3,
        "coupling_alpha": 1e2,
        "ewc_alpha": 1e2,
        "momentum": 0.0,
        "max_gradient_norm": 0.25,
        "units": 32,
    },
    "cell": {
        "data": "digits",
        "alpha": 30.0,
        "coupling_alpha": 1e3,
        "ewc_alpha": 0.1,
        "momentum": 0.9,
        "max_gradient_norm": 5.0,
        "units": 8,
    },
    "nas201": {
        "data": "digits",
        "alpha": 30.0,
        "coupling_alpha": 1e3,
        "ewc_alpha": 0.1,
        "momentum": 0.9,
        "max_gradient_norm": 5.0,
        "units": 4,
    },
}
OPERATIONS = {"recurrent": ACTIVATIONS, "cell": CELL_OPERATIONS, "nas201": NAS201_OPERATIONS}
"""What each space has to choose from."""

_LEARNING_RATES = {("recurrent", "sgd"): 10.0, ("cell", "sgd"): 0.1, ("nas201", "sgd"): 0.1}
_LEARNING_RATE_OF_ADAM = 0.001


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Configuration):
    """What `forgetless search` is asked to do.

    None stands for what fits the space, and is replaced by it.

    Attributes:
        space: `recurrent` (text), `cell` or `nas201` (images).
        data: `kjv` for text and `digits` for images by default; or `ptb`, `wikitext2`, `mnist`, `cifar10`, or a path.
        data_dir: Where named data lies; FORGETLESS_DATA or a download if None.
        strategy: What proposes architectures: `enas`, `uniform`, `evolution`, `nao`, on `nas201` `gdas`; or `random`,
            no search at all: nothing is trained in a supernet, so that the only protection is `none`, and
            `final_samples` architectures are handed over as they are drawn.
        protection: Arms to compare, of `none`, `freeze`, `l2`, `wpl`, `wpl-tolerance`, `coupling`, `ewc`, `mas`, `si`,
            `nsas`, `ogl` and `matched-lr` (no protection; before each model the learning rate is set such that the
            mean step becomes that under `wpl` in the same epoch).
        alpha: Strength of `wpl`; 3e3 for text, 30 for images by default.
        tolerance: What each of the two newest models may lose under `wpl-tolerance`, in nats per word or image, above
            0; its α is found.
        alpha_decay: Factor of the strengths, but not of the tolerance, from one epoch with protection to the next.
        coupling_alpha: Strength of `coupling`; 1e2 for text, 1e3 for images by default.
        coupling_prior: λ of `coupling`, above 0: the prior's precision per example, as a weight decay.
        coupling_examples: Held-out examples per model that `coupling` takes its curvature from, of those in
            `importance_batches`; a chunk of text is one.
        coupling_rows: How many rows `coupling` keeps of it, each as large as the shared weights.
        ewc_alpha: Strength of `ewc`, which sums over the earlier models; 1e2 for text, 0.1 for images by default.
        l2_alpha: Strength of `l2`, whose importance is 1 for every weight.
        mas_alpha: Strength of `mas`, whose importance grows with the square of the logits.
        si_alpha: Strength of `si`.
        nsas_alpha: Weight of the archive's mean loss under `nsas`; 1 is the paper's.
        nsas_models: How many earlier architectures the archive of `nsas` holds.
        ogl_directions: How many directions `ogl` keeps, each as large as the shared weights.
        rule: How importance accumulates over models.
        decay: Of the rules `ema` and `merge`.
        damping: Added to the importance, as a share of its mean.
        reset_every: Epochs between two resets of anchors and importance; never if 0.
        protect_from: First epoch with protection, from 0; or `forgetting`: the one after the first in which models
            got worse on average. Until then all arms of a seed are the same.
        protect: `all` shared weights, or those of the `cell` only, without embedding, decoder, stem and classifier.
        importance: Where the Fisher comes from: per-example gradients on `held-out` examples, or an estimate from the
            mean gradients of the `training` batches themselves, which costs next to nothing.
        importance_batches: Batches of the importance split per model that a held-out Fisher, `mas`, `ogl`, `coupling`
            and `wpl-tolerance` are measured on; of images a batch is 1,000 there.
        fisher: Kind of the Fisher, if held-out.
        single: Train one architecture only, the first proposed: what then is forgotten is no other model's doing.
        independent: Draw chunks of text independently instead of reading on.
        seeds: How many seeds.
        first_seed: The first of them.
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
        learning_rate: Of the shared weights; 0.001 for Adam, 10 for SGD on text, 0.1 for SGD on images by default.
        momentum: Of SGD; 0 for text, 0.9 for images by default.
        max_gradient_norm: Gradients are scaled down to it; 0.25 for text, 5 for images by default.
        batch_size: Sequences or images per batch.
        num_steps: Words per sequence.
        vocabulary: How many words of a text are known, its most frequent ones; all that the data has if None. Most of
            a small network's time goes into them.
        nodes: Nodes of a recurrent cell, blocks of an ENAS cell.
        operations: Those that an architecture may have, of the space's own; all if None.
        units: Units of the recurrent cell (32 by default), or channels of the first stage (4; 8 in `cell`).
        cells_per_stage: Cells per stage of an image network.
        augment: Shift and mirror training images.
        dropout: Of the embedded words and of the output of a recurrent cell, one mask per sequence.
        weight_drop: Probability that a single weight of a recurrent cell is dropped.
        device: Where to train.
        threads: Threads of the CPU; they decide the last bits of every result.
        checkpoint_every: How much work a kill may cost, such as 10min, 90s or 2h.
    """

    space: SpaceName = "recurrent"
    data: Annotated[str, FITTING] = None  # type: ignore[assignment]
    data_dir: str | None = None
    strategy: str = "enas"
    protection: Annotated[tuple[str, ...], FITTING] = None  # type: ignore[assignment]
    alpha: Annotated[float, FITTING] = None  # type: ignore[assignment]
    tolerance: float = 0.01
    alpha_decay: float = 1.0
    coupling_alpha: Annotated[float, FITTING] = None  # type: ignore[assignment]
    coupling_prior: float = 1e-3
    coupling_examples: int = 20
    coupling_rows: int = 50
    ewc_alpha: Annotated[float, FITTING] = None  # type: ignore[assignment]
    l2_alpha: float = 1.0
    mas_alpha: float = 1.0
    si_alpha: float = 1.0
    nsas_alpha: float = 1.0
    nsas_models: int = 8
    ogl_directions: int = 20
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
    first_seed: int = 0
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
    learning_rate: Annotated[float, FITTING] = None  # type: ignore[assignment]
    momentum: Annotated[float, FITTING] = None  # type: ignore[assignment]
    max_gradient_norm: Annotated[float, FITTING] = None  # type: ignore[assignment]
    batch_size: int = 32
    num_steps: int = 20
    vocabulary: int | None = None
    nodes: int = 4
    operations: tuple[str, ...] | None = None
    units: Annotated[int, FITTING] = None  # type: ignore[assignment]
    cells_per_stage: int = 1
    augment: bool = False
    dropout: float = 0.0
    weight_drop: float = 0.0
    device: str = "cpu"
    threads: int = 1
    checkpoint_every: str = DEFAULT

    def __post_init__(self) -> None:
        self._expect_storable()
        expect_one_of("space", self.space, get_args(SpaceName))
        rate = _LEARNING_RATES.get((self.space, self.optimizer), _LEARNING_RATE_OF_ADAM)
        for name, value in {**_BY_SPACE[self.space], "learning_rate": rate}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        expect_one_of("strategy", self.strategy, STRATEGIES)
        if self.strategy == "gdas" and self.space != "nas201":
            raise InputError(f"Expected the space nas201 for the strategy gdas, but got {self.space}.")
        free = ("none",)
        if self.protection is None:
            object.__setattr__(self, "protection", ("wpl",) if self.trains_shared_weights else free)
        object.__setattr__(self, "protection", tuple(dict.fromkeys(self.protection)))
        if not self.protection:
            raise InputError("Expected at least one protection, but got none.")
        self._expect_arms(self.protection)
        if not self.trains_shared_weights and self.protection != free:
            raise InputError(
                f"Expected no protection but none for the strategy {self.strategy}, which trains no shared weights, "
                f"but got {', '.join(self.protection)}."
            )
        for name, kind in (
            ("rule", AccumulationRule),
            ("protect", Protected),
            ("importance", ImportanceSource),
            ("fisher", FisherKind),
            ("optimizer", Literal["sgd", "adam"]),
        ):
            expect_one_of(name, getattr(self, name), get_args(kind))
        self._expect_at_least(
            1,
            *("seeds", "epochs", "models_per_epoch", "batches_per_model", "importance_batches", "samples_per_step"),
            *("batch_size", "num_steps", "nodes", "units", "cells_per_stage", "threads"),
        )
        self._expect_at_least(
            0,
            *("reset_every", "evaluation_batches", "strategy_steps", "final_samples", "final_batches"),
            *("interference_every", "first_seed"),
        )
        if not self.trains_shared_weights and self.final_samples == 0:
            raise InputError(f"Expected final_samples of at least 1 for the strategy {self.strategy}, but got 0.")
        self._expect_at_most(MOST_SEEDS, "seeds")
        self._expect_at_most(MOST_FIRST_SEED, "first_seed")
        self._expect_at_most(MOST_THREADS, "threads")
        self._expect_at_least(1, "nsas_models", "coupling_examples", "coupling_rows")
        self._expect_at_least(2, "interference_models")
        for name in (*STRENGTHS, "damping"):
            self._expect_strength(name, getattr(self, name))
        self._expect_positive("learning_rate", "max_gradient_norm", "coupling_prior")
        self._expect_below_1("momentum", "dropout", "weight_drop")
        if isinstance(self.protect_from, str):
            expect_one_of("protect_from", self.protect_from, ["forgetting", "an epoch"])
        elif self.protect_from < 0:
            raise InputError(f"Expected protect_from to be at least 0 or forgetting, but got {self.protect_from}.")
        for name in ("decay", "alpha_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"Expected {name} in [0, 1], but got {getattr(self, name)}.")
        uses_fisher = any(PROTECTIONS[name].uses_fisher for name in self.protection if name in PROTECTIONS)
        if self.importance == "training" and uses_fisher and self.batches_per_model < 2:
            raise InputError("Expected batches_per_model to be at least 2 for importance from training, but got 1.")
        if "coupling" in self.protection:
            expect_one_of("rule of coupling", self.rule, get_args(CouplingRule))
        if self.importance == "training" and self.fisher != "empirical":
            raise InputError(
                f"Expected importance to be held-out for fisher={self.fisher}, but got training. "
                "The estimate from training batches is that of the empirical Fisher."
            )
        if self.importance == "held-out" and self.fisher == "exact" and self.space == "recurrent":
            raise InputError("Expected fisher to be empirical, monte_carlo or batch for text, but got exact.")
        expect_device(self.device)
        seconds_of(self.checkpoint_every)
        if self.vocabulary is not None:
            if self.space != "recurrent":
                raise InputError(f"Expected no vocabulary for the space {self.space}, whose data are images.")
            self._expect_at_least(3, "vocabulary")
        if self.operations is not None:
            object.__setattr__(self, "operations", tuple(self.operations))
            for name in self.operations:
                expect_one_of("operation", name, OPERATIONS[self.space])
            if not self.operations or len(set(self.operations)) < len(self.operations):
                raise InputError(f"Expected one or more different operations, but got {self.operations}.")
        named = (self.space == "recurrent") == (self.data in TEXT_DATA)
        if self.data in (*TEXT_DATA, *IMAGE_DATA) and not named:
            fitting = TEXT_DATA if self.space == "recurrent" else IMAGE_DATA
            raise InputError(
                f"Expected data that fits the space {self.space}, but got {self.data!r}. Take one of "
                f"{', '.join(sorted(fitting))}, or a path."
            )

    @property
    def trains_shared_weights(self) -> bool:
        """Whether there are shared weights at all, and so epochs, rewards and forgetting."""
        return STRATEGIES[self.strategy].trains_shared_weights

    @property
    def num_epochs(self) -> int:
        """Epochs that an arm makes: `epochs`, but none without shared weights."""
        return self.epochs if self.trains_shared_weights else 0

    @property
    def all_seeds(self) -> range:
        """The seeds of its arms."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def defaults(self) -> dict[str, Any]:
        """Every option's value in a command that names none of them but `space` and `optimizer`."""
        fitting = dataclasses.asdict(SearchConfig(space=self.space, optimizer=self.optimizer))
        return {**fitting, "space": SearchConfig.space, "optimizer": SearchConfig.optimizer}


@dataclass(frozen=True)
class SearchArm:
    """One search to make: a seed under one protection."""

    seed: int
    protection: str


def search_arms(config: SearchConfig) -> list[SearchArm]:
    """Every search that a configuration asks for, in the order they are made: the control arm after `wpl`.

    Args:
        config: The configuration.
    """
    order = sorted(config.protection, key=lambda name: name == MATCHED)
    return [SearchArm(seed, name) for seed in config.all_seeds for name in order]
