"""What `forgetless two-model` is asked to do, and the runs that this makes."""

from dataclasses import dataclass
from typing import Literal, get_args

from forgetless.checkpoints import DEFAULT, seconds_of
from forgetless.configuration import MOST_FIRST_SEED, MOST_SEEDS, MOST_THREADS, Configuration
from forgetless.errors import InputError, expect_one_of
from forgetless.importance import FisherKind
from forgetless.protection import MATCHED, PROTECTIONS, STRENGTHS, WPL
from forgetless.supernets.mlp import ACTIVATIONS, MOST_SHARED, Wiring
from forgetless.training import expect_device

OptimizerName = Literal["sgd", "adam", "adamw"]

LEARNING_RATES: dict[str, float] = {"sgd": 0.1, "adam": 0.005, "adamw": 0.005}


@dataclass(frozen=True, kw_only=True)
class TwoModelConfig(Configuration):
    """What `forgetless two-model` is asked to do.

    Attributes:
        data: `digits`, `mnist`, `cifar10`, or a folder of images by class.
        data_dir: Where named data lies; FORGETLESS_DATA or a download if None.
        wiring: How B reuses A's hidden layers: `prefix` or `crossed`.
        shared: How many of A's hidden layers are shared; several give several panels.
        convergence: A is stopped when its validation accuracy passes this share of what it reaches, in (0, 1].
        protection: Arms to compare, of `none`, `freeze`, `l2`, `wpl`, `wpl-tolerance`, `coupling`, `ewc`, `mas`, `si`,
            `nsas`, `ogl` and `matched-lr` (the control arm: no protection, the shared weights' learning rate lowered
            until their mean step is that under `wpl`).
        alpha: Strengths α of `wpl`.
        tolerance: What A, and each later model, may lose under `wpl-tolerance`, in nats per image, above 0; each value
            is an arm, whose α is found.
        coupling_alpha: Strengths of `coupling`; 1 is the posterior's, which lets A forget what its own layers could be
            refitted for.
        coupling_prior: λ of `coupling`, above 0: the prior's precision per example, as a weight decay.
        coupling_examples: Held-out examples per model that `coupling` takes its curvature from.
        coupling_rows: How many rows `coupling` keeps of it for all earlier models together, each as long as the shared
            weights.
        ewc_alpha: Strengths of `ewc`.
        l2_alpha: Strengths of `l2`, whose importance is 1 and whose α therefore has another scale.
        mas_alpha: Strengths of `mas`, whose importance grows with the square of the logits.
        si_alpha: Strengths of `si`.
        nsas_alpha: Weights of the archive's mean loss under `nsas`; 1 is the paper's.
        nsas_models: How many earlier models the archive of `nsas` holds, the newest; 8 is the paper's number.
        ogl_directions: How many directions `ogl` keeps for all earlier models together.
        damping: Added to the importance under `wpl` and `wpl-tolerance`, as a share of its mean; 0 is the paper's
            penalty.
        seeds: How many seeds: initial weights and batches.
        first_seed: The first of them.
        models: How many models in all, at least 2; the third and later ones share with A and with B.
        iterations: Training steps of B, and of each later model.
        iterations_a: Training steps of A to convergence.
        optimizer: `sgd`, `adam` or `adamw`, for every model.
        learning_rate: 0.1 for SGD and 0.005 for Adam and AdamW if None.
        momentum: Of SGD.
        batch_size: Examples per step.
        width: Units per hidden layer.
        activation: `relu`, `sigmoid`, `tanh` or `gelu`.
        fisher: Kind of A's Fisher information; see `diagonal_fisher`.
        evaluate_every: Steps between two points of the curves. The first interval, in which most is lost, has points
            at its eighth, quarter and half too.
        device: Where to train: `cpu`, `cuda`, `cuda:1`, `mps`.
        threads: Threads of the CPU. Sums are ordered by it, so that it decides the last bits of every result; small
            models are fastest with one.
        checkpoint_every: How much work a kill may cost, such as 10min, 90s or 2h; at least the training of one model.
    """

    data: str = "digits"
    data_dir: str | None = None
    wiring: Wiring = Wiring.CROSSED
    shared: tuple[int, ...] = (3,)
    convergence: tuple[float, ...] = (1.0,)
    protection: tuple[str, ...] = ("none", "matched-lr", "freeze", "l2", "wpl")
    alpha: tuple[float, ...] = (1e5,)
    coupling_alpha: tuple[float, ...] = (1e4,)
    coupling_prior: float = 1e-3
    coupling_examples: int = 50
    coupling_rows: int = 50
    tolerance: tuple[float, ...] = (0.01,)
    ewc_alpha: tuple[float, ...] = (1e5,)
    l2_alpha: tuple[float, ...] = (1.0,)
    mas_alpha: tuple[float, ...] = (1.0,)
    si_alpha: tuple[float, ...] = (1.0,)
    nsas_alpha: tuple[float, ...] = (1.0,)
    nsas_models: int = 8
    ogl_directions: tuple[int, ...] = (100,)
    damping: float = 1e-3
    seeds: int = 5
    first_seed: int = 0
    models: int = 2
    iterations: int = 1500
    iterations_a: int = 3000
    optimizer: OptimizerName = "adam"
    learning_rate: float | None = None
    momentum: float = 0.9
    batch_size: int = 128
    width: int = 100
    activation: str = "relu"
    fisher: FisherKind = "empirical"
    evaluate_every: int = 75
    device: str = "cpu"
    threads: int = 1
    checkpoint_every: str = DEFAULT

    def __post_init__(self) -> None:
        self._expect_storable()
        expect_one_of("wiring", self.wiring, list(Wiring))
        object.__setattr__(self, "wiring", Wiring(self.wiring))
        for name in ("shared", "convergence", "protection", *STRENGTHS):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))
            if not values:
                raise InputError(f"Expected at least one value of {name}, but got none.")
        for k in self.shared:
            if not 1 <= k <= MOST_SHARED[self.wiring]:
                raise InputError(
                    f"Expected shared between 1 and {MOST_SHARED[self.wiring]} for {self.wiring} wiring, but got {k}. "
                    "A has 4 hidden layers; crosswise, its first cannot be shared because it reads the pixels."
                )
        for share in self.convergence:
            if not 0 < share <= 1:
                raise InputError(f"Expected convergence in (0, 1], but got {share}. 1 trains A to the end.")
        for name in STRENGTHS:
            for strength in getattr(self, name):
                self._expect_strength(name, strength)
        self._expect_arms(self.protection)
        expect_one_of("optimizer", self.optimizer, get_args(OptimizerName))
        expect_one_of("activation", self.activation, ACTIVATIONS)
        expect_one_of("fisher", self.fisher, get_args(FisherKind))
        self._expect_at_least(2, "models")
        self._expect_at_least(
            1,
            *("seeds", "iterations", "iterations_a", "batch_size", "width", "evaluate_every", "threads"),
            *("nsas_models", "coupling_examples", "coupling_rows"),
        )
        self._expect_at_least(0, "first_seed")
        self._expect_at_most(MOST_SEEDS, "seeds")
        self._expect_at_most(MOST_FIRST_SEED, "first_seed")
        self._expect_at_most(MOST_THREADS, "threads")
        self._expect_positive("coupling_prior")
        if self.learning_rate is not None:
            self._expect_positive("learning_rate")
        self._expect_strength("damping", self.damping)
        self._expect_below_1("momentum")
        seconds_of(self.checkpoint_every)
        expect_device(self.device)


@dataclass(frozen=True)
class Arm:
    """One run to make: B (and later models) trained from one state of A under one protection."""

    seed: int
    shared: int
    convergence: float
    protection: str
    alpha: float | None

    @property
    def label(self) -> str:
        """For a progress line, such as `wpl α=1e+05`."""
        if self.alpha is None:
            return self.protection
        symbol = WPL.symbol if self.protection == MATCHED else PROTECTIONS[self.protection].symbol
        return f"{self.protection} {symbol}={self.alpha:g}"


def arms(config: TwoModelConfig) -> list[Arm]:
    """Every run that a configuration asks for, in the order they are made.

    Args:
        config: The configuration.

    Returns:
        The arms: by seed, shared layers and convergence; within these, the control arm after the arm it is matched to.
    """

    def strengths(protection: str) -> tuple[float | None, ...]:
        option = WPL.strength if protection == MATCHED else PROTECTIONS[protection].strength
        return (None,) if option is None else tuple(map(float, getattr(config, option)))

    order = sorted(config.protection, key=lambda protection: protection == MATCHED)
    return [
        Arm(seed, shared, convergence, protection, alpha)
        for seed in range(config.first_seed, config.first_seed + config.seeds)
        for shared in config.shared
        for convergence in config.convergence
        for protection in order
        for alpha in strengths(protection)
    ]
