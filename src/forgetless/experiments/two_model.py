"""Two models that share hidden layers: how much of A is lost while B trains, and what protects it.

Figures 1 and 3 of Benyahia et al., Overcoming Multi-Model Forgetting, ICML 2019 (arXiv:1902.08232). Model A is
trained to convergence, or stopped on the way; then B trains on the same data, on some of A's layers, and A's accuracy
is followed. Every protection sees the same initial weights and the same batches, so that curves of one seed differ by
the protection alone.
"""

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from forgetless.configuration import Configuration
from forgetless.data.images import load_images
from forgetless.errors import InputError, expect_one_of
from forgetless.forgetting import Interval, mean_interval, reduction
from forgetless.importance import FisherKind, diagonal_fisher
from forgetless.protection import (
    MATCHED,
    PROTECTIONS,
    STRENGTHS,
    WPL,
    Evidence,
    NoProtection,
    Protection,
    make_protection,
)
from forgetless.supernets.mlp import ACTIVATIONS, MLP, MOST_SHARED, Wiring, chain_of_models, shared_parameters
from forgetless.tasks import ImageClassification, SplitName
from forgetless.training import MeanStep, cpu_arithmetic, expect_device, train

OptimizerName = Literal["sgd", "adam", "adamw"]

LEARNING_RATES: dict[str, float] = {"sgd": 0.1, "adam": 0.005, "adamw": 0.005}

# The control arm's mean step may differ by this much from the protected arm's.
_STEP_TOLERANCE = 0.05
_MOST_TRIES = 8

# A stopped early is looked at after every step on this many validation images, because an accuracy of 38 % is passed
# within a few steps.
_IMAGES_TO_STOP = 1000


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
        seeds: How many seeds, 0, 1, …: initial weights and batches.
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

    def __post_init__(self) -> None:
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
        self._expect_positive("coupling_prior")
        if self.learning_rate is not None:
            self._expect_positive("learning_rate")
        self._expect_strength("damping", self.damping)
        self._expect_below_1("momentum")
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


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for a display.

    Attributes:
        done: Finished arms.
        total: All arms.
        label: What is being trained.
        step: Training step within it.
        num_steps: Its steps in all.
        accuracies: Present test accuracies by model, such as {"A": 0.97, "B": 0.93}.
    """

    done: int
    total: int
    label: str
    step: int
    num_steps: int
    accuracies: Mapping[str, float]


@dataclass(frozen=True)
class TwoModelResult:
    """The runs made so far, and their summary over seeds.

    Attributes:
        config: What was asked.
        runs: One dict per arm, with the keys that docs/metrics.md explains.
    """

    config: TwoModelConfig
    runs: list[dict[str, Any]]

    def summary(self) -> list[dict[str, Any]]:
        """One dict per protection, strength, number of shared layers and convergence: means with 95 % intervals.

        `reduction` is None for the unprotected arm, and where that arm does not forget.

        Returns:
            Dicts in the order of the configuration.
        """
        return [
            _summarise(runs, self._unprotected(runs))
            for key in dict.fromkeys(_key(run) for run in self.runs)
            if (runs := [run for run in self.runs if _key(run) == key])
        ]

    def _unprotected(self, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The unprotected runs of the same seeds and the same A, or nothing if one is missing."""
        plain = {
            (run["seed"], run["shared"], run["convergence"]): run for run in self.runs if run["protection"] == "none"
        }
        keys = [(run["seed"], run["shared"], run["convergence"]) for run in runs]
        return [plain[key] for key in keys] if all(key in plain for key in keys) else []


def _key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("shared", "convergence", "protection", "alpha"))


def _summarise(runs: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def over_seeds(name: str) -> dict[str, float | None]:
        return dataclasses.asdict(mean_interval([run[name] for run in runs]))

    first = runs[0]
    prevented: Interval | None = None
    cost: Interval | None = None
    if plain and first["protection"] != "none":
        prevented = reduction([run["forgetting"] for run in runs], [run["forgetting"] for run in plain])
        cost = mean_interval([p["accuracy_b"] - run["accuracy_b"] for run, p in zip(runs, plain, strict=True)])
    return {
        **{name: first[name] for name in ("protection", "wiring", "shared", "convergence", "alpha")},
        "num_seeds": len(runs),
        **{
            name: over_seeds(name)
            for name in ("accuracy_a_before", "accuracy_a_after", "accuracy_a_min", "accuracy_b", "forgetting")
        },
        "reduction": None if prevented is None else dataclasses.asdict(prevented),
        "cost_b": None if cost is None else dataclasses.asdict(cost),
        "models": [
            {"model": first["models"][j]["model"], "forgetting": dataclasses.asdict(mean_interval(forgotten))}
            for j in range(len(first["models"]))
            if (forgotten := [run["models"][j]["forgetting"] for run in runs])
        ],
        "seconds": sum(run["seconds"] for run in runs),
    }


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
        for seed in range(config.seeds)
        for shared in config.shared
        for convergence in config.convergence
        for protection in order
        for alpha in strengths(protection)
    ]


def run(
    config: TwoModelConfig,
    *,
    finished: Sequence[dict[str, Any]] = (),
    on_run: Callable[[dict[str, Any]], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> TwoModelResult:
    """Make every run that the configuration asks for and that is not finished yet.

    Args:
        config: What to do.
        finished: Runs of an earlier, interrupted call with the same configuration.
        on_run: Called with each new run as soon as it is finished.
        on_progress: Called now and then while training.

    Returns:
        All runs, finished and new. Numbers do not depend on where an earlier call was interrupted.

    Raises:
        InputError: If the data is missing or damaged.
    """
    task = load_task(config)
    runs = list(finished)
    todo = arms(config)
    order = {arm: i for i, arm in enumerate(todo)}
    with cpu_arithmetic(config.threads):
        _make(config, task, runs, todo, on_run, on_progress)
    return TwoModelResult(config, sorted(runs, key=lambda run: order[_arm_of(run)]))


def _make(
    config: TwoModelConfig,
    task: ImageClassification,
    runs: list[dict[str, Any]],
    todo: Sequence[Arm],
    on_run: Callable[[dict[str, Any]], None] | None,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Append to `runs` those of the arms that are missing there."""
    done = {_arm_of(run) for run in runs}
    trainer: _Trainer | None = None

    def report(label: str, step: int, num_steps: int, accuracies: Mapping[str, float]) -> None:
        if on_progress is not None:
            on_progress(Progress(len(runs), len(todo), label, step, num_steps, accuracies))

    for arm in todo:
        if arm in done:
            continue
        if trainer is None or trainer.state_of_a != (arm.seed, arm.shared, arm.convergence):
            trainer = _Trainer(config, task, arm, report)
        protected = next((run for run in runs if _arm_of(run) == dataclasses.replace(arm, protection="wpl")), None)
        record = trainer.run(arm, protected)
        runs.append(record)
        if on_run is not None:
            on_run(record)


def load_task(config: TwoModelConfig) -> ImageClassification:
    """The data that a configuration names, as a task.

    Args:
        config: The configuration.

    Returns:
        Image classification on the configured device.
    """
    return ImageClassification(load_images(config.data, config.data_dir), config.batch_size, config.device)


def _arm_of(run: Mapping[str, Any]) -> Arm:
    return Arm(run["seed"], run["shared"], run["convergence"], run["protection"], run["alpha"])


class _Trainer:
    """Trains A once, then B (and later models) from that A, once per arm."""

    def __init__(
        self,
        config: TwoModelConfig,
        task: ImageClassification,
        arm: Arm,
        report: Callable[[str, int, int, Mapping[str, float]], None],
    ) -> None:
        self.config, self.task, self.report = config, task, report
        self.state_of_a = (arm.seed, arm.shared, arm.convergence)
        self.models = chain_of_models(
            config.wiring,
            arm.shared,
            num_models=config.models,
            num_inputs=math.prod(task.data.image_shape),
            num_classes=task.data.num_classes,
            width=config.width,
            activation=config.activation,
            seed=arm.seed,
        )
        for model in self.models:
            model.to(config.device)
        self.shared = shared_parameters(self.models)
        # A is trained before the arms part: a protection that has to see it trained watches already then.
        self.watchers = {
            name: self._protection(name, 0.0)
            for name in config.protection
            if name in PROTECTIONS and PROTECTIONS[name].watches
        }
        self.steps_of_a = self._train_a(arm)
        self.start = copy.deepcopy([model.state_dict() for model in self.models])
        self.before = self._accuracies(self.models[0])
        self.losses_before = self._losses(self.models[0])

    def _train_a(self, arm: Arm) -> int:
        """Train A as far as asked; returns the steps taken."""
        config, model = self.config, self.models[0]
        initial = copy.deepcopy(model.state_dict())
        label = f"seed {arm.seed}: A"
        images, labels = next(self.task.batches("validation", _IMAGES_TO_STOP))
        passed: list[float] = []  # validation accuracy after each step

        def watch(step: int) -> None:
            if arm.convergence < 1:
                with torch.no_grad():
                    passed.append(float((model(images).argmax(-1) == labels).float().mean()))
            self._show(label, step, config.iterations_a, {"A": model})

        self._train(model, config.iterations_a, arm.seed, NoProtection(self.shared), after_step=watch, is_watched=True)
        if arm.convergence == 1:
            return config.iterations_a
        # What A would reach is known only now: start again and stop where it first passed the asked share of it.
        reached = 1 - self.task.error(model, "validation")
        steps = next(i for i, accuracy in enumerate([*passed, 1.0], 1) if accuracy >= arm.convergence * reached)
        steps = min(steps, config.iterations_a)
        model.load_state_dict(initial)
        self._train(model, steps, arm.seed, NoProtection(self.shared), is_watched=True)
        return steps

    def run(self, arm: Arm, protected: Mapping[str, Any] | None) -> dict[str, Any]:
        """One arm, from the stored A."""
        started = time.perf_counter()
        if arm.protection == MATCHED:
            if protected is None:
                raise InputError(f"Expected the wpl run that {MATCHED} is matched to among the finished runs.")
            record = self._matched(arm, protected["mean_step"])
        else:
            record = self._train_rest(arm, self.config_rate)
        return {**record, "seconds": time.perf_counter() - started}

    @property
    def config_rate(self) -> float:
        rate = self.config.learning_rate
        return LEARNING_RATES[self.config.optimizer] if rate is None else rate

    def _matched(self, arm: Arm, wanted: float) -> dict[str, Any]:
        """Unprotected, with the shared weights' learning rate such that their mean step is the wanted one.

        The step grows with the rate, nearly in proportion: the rate is multiplied by wanted/found, within the bracket
        that the tries so far leave. Where the tolerance is not met, the closest try counts.
        """
        low, high = 0.0, math.inf
        rate = self.config_rate if wanted > 0 else 0.0
        tries: list[dict[str, Any]] = []
        for _ in range(_MOST_TRIES):
            tries.append(self._train_rest(arm, rate))
            found = tries[-1]["mean_step"]
            if abs(found - wanted) <= _STEP_TOLERANCE * wanted or found == 0:
                break
            low, high = (rate, high) if found < wanted else (low, rate)  # a diverged try was at too high a rate
            proposed = rate * wanted / found
            if not low < proposed < high:
                proposed = math.sqrt(low * high) if low > 0 else high / 4
            rate = proposed
        # A diverged try has a step that is not a number, to which everything compares false.
        return min(tries, key=lambda record: (math.isnan(record["mean_step"]), abs(record["mean_step"] - wanted)))

    def _train_rest(self, arm: Arm, shared_rate: float) -> dict[str, Any]:
        """Train B and the later models under an arm's protection, following A."""
        config, models = self.config, self.models
        for model, state in zip(models, self.start, strict=True):
            model.load_state_dict(state)
        name = "none" if arm.protection == MATCHED else arm.protection
        protection = self._protection(name, arm.alpha or 0.0)
        if name in self.watchers:
            protection.load_state_dict(self.watchers[name].state_dict())
            protection.alpha = arm.alpha or 0.0
        protection.consolidate(models[0], self._evidence(0))
        first = [self.before]  # accuracies of each model right after its own training
        curve: dict[str, list[float]] = {
            "iteration": [0],
            "accuracy_a": [self.before["test"]],
            "accuracy_b": [1 - self.task.error(models[1], "test")],
        }
        points = {config.evaluate_every // part for part in (8, 4, 2)}
        steps = MeanStep(self.shared)
        for j, model in enumerate(models[1:], start=1):
            offset, letter = (j - 1) * config.iterations, _letter(j)

            def follow(step: int, model: MLP = model, offset: int = offset, letter: str = letter) -> None:
                steps.update()
                if step in points or step % config.evaluate_every == 0 or step == config.iterations:
                    curve["iteration"].append(offset + step)
                    curve["accuracy_a"].append(1 - self.task.error(models[0], "test"))
                    curve["accuracy_b"].append(1 - self.task.error(model, "test"))
                    present = {"A": curve["accuracy_a"][-1], letter: curve["accuracy_b"][-1]}
                    total = (len(models) - 1) * config.iterations
                    self.report(f"seed {arm.seed}: {arm.label}", offset + step, total, present)

            steps.start()
            self._train(model, config.iterations, arm.seed + 1000 * j, protection, shared_rate, follow)
            first.append(self._accuracies(model))
            if j + 1 < len(models):
                protection.consolidate(model, self._evidence(j))
        last = [self._accuracies(model) for model in models]
        losses = self._losses(models[0])
        return {
            **dataclasses.asdict(arm),
            "wiring": str(config.wiring),
            "accuracy_a_before": self.before["test"],
            "accuracy_a_after": last[0]["test"],
            "accuracy_a_min": min(curve["accuracy_a"]),
            "accuracy_b": first[1]["test"],
            "forgetting": self.before["test"] - last[0]["test"],
            "validation_forgetting": self.before["validation"] - last[0]["validation"],
            "validation_b": first[1]["validation"],
            "loss_a_before": _or_none(self.losses_before["test"]),
            "loss_a_after": _or_none(losses["test"]),
            "validation_loss_a_before": _or_none(self.losses_before["validation"]),
            "validation_loss_a_after": _or_none(losses["validation"]),
            "steps_of_a": self.steps_of_a,
            "mean_step": steps.mean,
            "shared_learning_rate": shared_rate,
            "models": [
                {
                    "model": _letter(j),
                    "accuracy_before": before["test"],
                    "accuracy_after": after["test"],
                    "forgetting": before["test"] - after["test"],
                }
                for j, (before, after) in enumerate(zip(first, last, strict=True))
            ],
            "curve": curve,
        }

    def _train(
        self,
        model: MLP,
        num_steps: int,
        seed: int,
        protection: Protection,
        shared_rate: float | None = None,
        after_step: Callable[[int], None] | None = None,
        *,
        is_watched: bool = False,
    ) -> None:
        model.train()
        batches = self.task.training_batches(num_steps, torch.Generator().manual_seed(seed))
        optimizer = self._optimizer(model, self.config_rate if shared_rate is None else shared_rate)
        with contextlib.ExitStack() as watching:
            for watcher in self.watchers.values() if is_watched else ():
                watching.enter_context(watcher.during(optimizer))
            train(batches, self.task.loss_of(model), optimizer, protection, after_step=after_step)

    def _protection(self, name: str, strength: float) -> Protection:
        config = self.config
        return make_protection(
            name,
            self.shared,
            strength,
            damping=config.damping,
            archive_size=config.nsas_models,
            prior=config.coupling_prior,
            num_examples=config.coupling_examples,
            num_rows=config.coupling_rows,
            num_measured=config.models - 1,
        )

    def _optimizer(self, model: MLP, shared_rate: float) -> Optimizer:
        shared_ids = {id(parameter) for parameter in self.shared}
        shared = [p for p in model.parameters() if id(p) in shared_ids]
        private = [p for p in model.parameters() if id(p) not in shared_ids]
        groups: list[dict[str, Any]] = [{"params": shared, "lr": shared_rate}, {"params": private}]
        if self.config.optimizer == "sgd":
            return SGD(groups, lr=self.config_rate, momentum=self.config.momentum)
        return (Adam if self.config.optimizer == "adam" else AdamW)(groups, lr=self.config_rate)

    def _fisher(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return diagonal_fisher(
            model, self.task.batches("importance"), self.task.loss, self.config.fisher, parameters=self.shared
        )

    def _evidence(self, j: int) -> Evidence:
        """What a protection may ask about the model number j of the chain."""
        model = self.models[j]
        return Evidence(
            fisher=lambda: self._fisher(model),
            batches=lambda: self.task.batches("importance"),
            loss=self.task.loss,
            loss_of=lambda: self.task.loss_of(model),
            decisions=(j,),
        )

    def _accuracies(self, model: nn.Module) -> dict[str, float]:
        return {"validation": 1 - self.task.error(model, "validation"), "test": 1 - self.task.error(model, "test")}

    def _losses(self, model: nn.Module) -> dict[str, float]:
        """Mean cross entropy of all images, in nats."""
        found: dict[str, float] = {}
        splits: tuple[SplitName, ...] = ("validation", "test")
        with torch.no_grad():
            for split in splits:
                parts = [(float(self.task.loss(model(x), y)), len(y)) for x, y in self.task.batches(split)]
                found[split] = sum(loss * size for loss, size in parts) / sum(size for _, size in parts)
        return found

    def _show(self, label: str, step: int, num_steps: int, models: Mapping[str, nn.Module]) -> None:
        if step % (10 * self.config.evaluate_every) == 0 or step == num_steps:
            accuracies = {name: 1 - self.task.error(model, "validation") for name, model in models.items()}
            self.report(label, step, num_steps, accuracies)


def _or_none(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def _letter(j: int) -> str:
    """A, B, …, Z, then model 27, …."""
    return chr(ord("A") + j) if j < 26 else f"model {j + 1}"
