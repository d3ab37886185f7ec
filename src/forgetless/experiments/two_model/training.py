"""The training of a chain of models that share layers: A once, then B (and later models) once per arm, from that A."""

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from forgetless.errors import InputError
from forgetless.experiments.two_model.config import Arm, TwoModelConfig
from forgetless.experiments.two_model.mlp import MLP, chain_of_models, shared_parameters
from forgetless.experiments.two_model.records import CurveRecord, ModelRecord, RunRecord
from forgetless.importance import diagonal_fisher
from forgetless.matching import closest, next_rate
from forgetless.protection import (
    PROTECTIONS,
    Decisions,
    Evidence,
    Protection,
    ProtectionOptions,
    make_protection,
)
from forgetless.protection.none import NoProtection
from forgetless.records import made_of
from forgetless.tasks.base import SplitName
from forgetless.tasks.images import ImageClassification
from forgetless.training import MeanStep, consolidate, make_optimizer, train

# A stopped early is looked at after every step on this many validation images, because an accuracy of 38 % is passed
# within a few steps.
_IMAGES_TO_STOP = 1000

Report = Callable[[str, int, int, Mapping[str, float]], None]
Point = Callable[[Callable[[], Mapping[str, Any]]], object]
Observe = Callable[[int], object]


def origin(arm: Arm) -> tuple[int, int, float]:
    """What arms that start from the same A have in common: seed, shared layers, convergence.

    Args:
        arm: One of them.
    """
    return arm.seed, arm.shared, arm.convergence


class Trainer:
    """Trains A once, then B (and later models) from that A, once per arm.

    Between two trainings its state is whole: `point` is called there with what makes the state.

    Args:
        config: What to do.
        task: The data.
        arm: The first that starts from this A.
        report: Shows label, step, steps and accuracies.
        point: Called with a function that makes the state, wherever that is all that the rest depends on.
        checkpoint: A state of an interrupted call; one of another A is left out.
        observe: Called at each point of an arm's curve with its iteration, 0 before B's first step.
    """

    def __init__(
        self,
        config: TwoModelConfig,
        task: ImageClassification,
        arm: Arm,
        report: Report = lambda *_: None,
        point: Point = lambda _: None,
        checkpoint: Mapping[str, Any] | None = None,
        observe: Observe = lambda _: None,
    ) -> None:
        self.config, self.task, self.report, self._point, self._observe = config, task, report, point, observe
        self.origin = origin(arm)
        self.models = chain_of_models(
            config.chain.wiring,
            arm.shared,
            num_models=config.chain.models,
            num_inputs=math.prod(task.data.image_shape),
            num_classes=task.data.num_classes,
            width=config.chain.width,
            activation=config.chain.activation,
            seed=arm.seed,
        )
        for model in self.models:
            model.to(config.run.device)
        self.shared = shared_parameters(self.models)
        # A is trained before the arms part: a protection that has to see it trained watches already then.
        self.watchers = {
            each.kind.name: self._protection(each.changed({"strength": 0.0}) if each.kind.has_strength() else each)
            for each in config.protections
            if each.kind.watches
        }
        self.steps_of_a: int | None = None
        self.start: list[dict[str, Any]] | None = None  # states of all models when A is trained
        self._arm: Arm | None = None
        self._tries: list[RunRecord] = []  # of the control arm
        self._rest: dict[str, Any] | None = None  # of the training of B and later models
        if checkpoint is not None and tuple(checkpoint["origin"]) == self.origin:
            self._load_state(checkpoint)
        self._train_a(arm)
        self.before = self._accuracies(self.models[0])
        self.losses_before = self._losses(self.models[0])

    # ---- state ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What to go on from, as `checkpoint`; whole where `point` is called, and between two arms."""
        return {
            "origin": list(self.origin),
            "steps_of_a": self.steps_of_a,
            "start": self.start,
            "watchers": {name: watcher.state_dict() for name, watcher in self.watchers.items()},
            "arm": None if self._arm is None else dataclasses.asdict(self._arm),
            "tries": list(map(dataclasses.asdict, self._tries)),
            "rest": self._rest,
        }

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.steps_of_a, self.start = state["steps_of_a"], state["start"]
        for name, watcher in self.watchers.items():
            watcher.load_state_dict(state["watchers"][name])
        self._arm = None if state["arm"] is None else Arm(**state["arm"])
        self._tries = [made_of({"seconds": 0.0, **tried}, RunRecord) for tried in state["tries"]]
        self._rest = state["rest"]

    def _set_models(self, states: Sequence[Mapping[str, Any]]) -> None:
        for model, state in zip(self.models, states, strict=True):
            model.load_state_dict(state)

    # ---- A -------------------------------------------------------------------------------------------------------

    def _train_a(self, arm: Arm) -> None:
        """Train A as far as asked, unless that is done."""
        if self.start is None:
            if self.steps_of_a is None:
                initial = copy.deepcopy(self.models[0].state_dict())
                self.steps_of_a = self._find_steps_of_a(arm)
                if arm.convergence < 1:
                    self._point(self.state)
                    self.models[0].load_state_dict(initial)
            if arm.convergence < 1:
                plain = NoProtection(self.shared)
                self._train(self.models[0], self.steps_of_a, arm.seed, plain, is_watched=True)
            self.start = copy.deepcopy([model.state_dict() for model in self.models])
            self._point(self.state)
        self._set_models(self.start)

    def _find_steps_of_a(self, arm: Arm) -> int:
        """Train A to the end; returns after how many steps it first passed the asked share of what it reaches."""
        config, model = self.config, self.models[0]
        label = f"seed {arm.seed}: A"
        images, labels = next(self.task.batches("validation", _IMAGES_TO_STOP))
        passed: list[float] = []  # validation accuracy after each step

        def watch(step: int) -> None:
            if arm.convergence < 1:
                with torch.no_grad():
                    passed.append(float((model(images).argmax(-1) == labels).float().mean()))
            self._show(label, step, config.schedule.iterations_a, {"A": model})

        plain, steps = NoProtection(self.shared), config.schedule.iterations_a
        self._train(model, steps, arm.seed, plain, after_step=watch, is_watched=True)
        if arm.convergence == 1:
            return steps
        # What A would reach is known only now: it will start again and stop there.
        reached = 1 - self.task.error(model, "validation")
        steps = next(i for i, accuracy in enumerate([*passed, 1.0], 1) if accuracy >= arm.convergence * reached)
        return min(steps, config.schedule.iterations_a)

    # ---- B and later models --------------------------------------------------------------------------------------

    def run(self, arm: Arm, protected: RunRecord | None) -> RunRecord:
        """One arm, from the stored A; where it was begun, it goes on.

        Args:
            arm: Which; its A is this trainer's.
            protected: The run that a control arm is matched to.

        Returns:
            The record.

        Raises:
            InputError: If there is no such run.
        """
        started = time.perf_counter()
        if self._arm != arm:
            self._arm, self._tries, self._rest = arm, [], None
        matched = PROTECTIONS[arm.protection].matches
        if matched is not None:
            if protected is None:
                raise InputError(f"Expected the {matched} run that {arm.protection} is matched to among the finished.")
            record = self._matched(arm, protected.mean_step)
        else:
            record = self._train_rest(arm, self.config_rate)
        self._arm, self._tries, self._rest = None, [], None
        return dataclasses.replace(record, seconds=time.perf_counter() - started)

    @property
    def config_rate(self) -> float:
        """The learning rate that the configuration asks for."""
        return self.config.optimizer.learning_rate

    def _matched(self, arm: Arm, wanted: float) -> RunRecord:
        """Unprotected, with the shared weights' learning rate such that their mean step is the wanted one.

        Where the tolerance is not met, the closest try counts. The step of a run that diverged is not finite:
        there is nothing to match, and the rate stays what it is.
        """
        if not math.isfinite(wanted):
            return self._train_rest(arm, self.config_rate)
        while (rate := next_rate(self.config_rate, wanted, self._steps_found)) is not None:
            record, self._rest = self._train_rest(arm, rate), None
            self._tries.append(record)
            self._point(self.state)
        return self._tries[closest(wanted, self._steps_found)]

    @property
    def _steps_found(self) -> list[float]:
        return [tried.mean_step for tried in self._tries]

    def _train_rest(self, arm: Arm, shared_rate: float) -> RunRecord:
        """Train B and the later models under an arm's protection, following A; what is recorded lacks its seconds."""
        config, models = self.config, self.models
        protection, steps = self._protection(config.options_of(arm.protection, arm.strength)), MeanStep(self.shared)
        if self._rest is None:
            self._begin_rest(protection, arm)
        else:
            self._set_models(self._rest["models"])
            protection.load_state_dict(self._rest["protection"])
            steps.load_state_dict(self._rest["steps"])
            self._rest = copy.deepcopy(self._rest)  # what goes on is not what was stored
        assert self._rest is not None
        first, curve = self._rest["first"], self._rest["curve"]
        points = {config.schedule.evaluate_every // part for part in (8, 4, 2)}
        for j in range(len(first), len(models)):
            model, letter, offset = models[j], _letter(j), (j - 1) * config.schedule.iterations

            def follow(step: int, model: MLP = model, offset: int = offset, letter: str = letter) -> None:
                steps.update()
                if step in points or step % config.schedule.evaluate_every == 0 or step == config.schedule.iterations:
                    curve["iteration"].append(offset + step)
                    curve["accuracy_a"].append(1 - self.task.error(models[0], "test"))
                    curve["accuracy_b"].append(1 - self.task.error(model, "test"))
                    self._observe(offset + step)
                    present = {"A": curve["accuracy_a"][-1], letter: curve["accuracy_b"][-1]}
                    total = (len(models) - 1) * config.schedule.iterations
                    self.report(f"seed {arm.seed}: {arm.label}", offset + step, total, present)

            steps.start()
            self._train(model, config.schedule.iterations, arm.seed + 1000 * j, protection, shared_rate, follow)
            if protection.acts_after:  # the curve ends with what is kept
                curve["accuracy_a"][-1] = 1 - self.task.error(models[0], "test")
                curve["accuracy_b"][-1] = 1 - self.task.error(model, "test")
                self._observe(offset + config.schedule.iterations)
            first.append(self._accuracies(model))
            if j + 1 < len(models):
                consolidate(protection, model, self._evidence(j))
            self._rest["protection"], self._rest["steps"] = protection.state_dict(), steps.state_dict()
            self._rest["models"] = copy.deepcopy([model.state_dict() for model in models])
            self._point(self.state)
        last = [self._accuracies(model) for model in models]
        losses = self._losses(models[0])
        assert self.steps_of_a is not None
        return RunRecord(
            **dataclasses.asdict(arm),
            wiring=str(config.chain.wiring),
            accuracy_a_before=self.before["test"],
            accuracy_a_after=last[0]["test"],
            accuracy_a_min=min(curve["accuracy_a"]),
            accuracy_b=first[1]["test"],
            forgetting=self.before["test"] - last[0]["test"],
            validation_forgetting=self.before["validation"] - last[0]["validation"],
            validation_b=first[1]["validation"],
            loss_a_before=self.losses_before["test"],
            loss_a_after=losses["test"],
            validation_loss_a_before=self.losses_before["validation"],
            validation_loss_a_after=losses["validation"],
            steps_of_a=self.steps_of_a,
            mean_step=steps.mean,
            shared_learning_rate=shared_rate,
            models=[
                ModelRecord(
                    model=_letter(j),
                    accuracy_before=before["test"],
                    accuracy_after=after["test"],
                    forgetting=before["test"] - after["test"],
                )
                for j, (before, after) in enumerate(zip(first, last, strict=True))
            ],
            curve=CurveRecord(**curve),
            seconds=0.0,
        )

    def _begin_rest(self, protection: Protection, arm: Arm) -> None:
        """A is as it was trained, and under the protection."""
        assert self.start is not None
        self._set_models(self.start)
        if arm.protection in self.watchers:
            protection.load_state_dict(self.watchers[arm.protection].state_dict())
            protection.strength = arm.strength or 0.0
        consolidate(protection, self.models[0], self._evidence(0))
        error_b = self.task.error(self.models[1], "test")
        self._observe(0)
        curve = {"iteration": [0], "accuracy_a": [self.before["test"]], "accuracy_b": [1 - error_b]}
        self._rest = {"first": [self.before], "curve": curve}  # accuracies of each model right after its own training

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
        held = {id(parameter) for parameter in self.shared}
        shared = [parameter for parameter in model.parameters() if id(parameter) in held]
        optimizer = make_optimizer(self.config.optimizer, model, shared, shared_rate=shared_rate)
        with contextlib.ExitStack() as watching:
            for watcher in self.watchers.values() if is_watched else ():
                watching.enter_context(watcher.during(optimizer))
            train(
                batches,
                self.task.loss_of(model),
                optimizer,
                protection,
                max_gradient_norm=self.config.optimizer.max_gradient_norm,
                after_step=after_step,
            )

    def _protection(self, options: ProtectionOptions) -> Protection:
        return make_protection(options, self.shared, recall=self._recalled)

    def _recalled(self, decisions: Decisions) -> tuple[nn.Module, Evidence]:
        return self.models[decisions[0]], self._evidence(decisions[0])

    def fisher(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """A model's diagonal Fisher information of the shared weights, as protections get it.

        Args:
            model: One of the models.
        """
        return diagonal_fisher(
            model,
            self.task.batches("importance"),
            self.task.loss,
            self.config.importance.fisher,
            parameters=self.shared,
        )

    def _evidence(self, j: int) -> Evidence:
        """What a protection may ask about the model number j of the chain."""
        model = self.models[j]
        return Evidence(
            fisher=lambda: self.fisher(model),
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
        if step % (10 * self.config.schedule.evaluate_every) == 0 or step == num_steps:
            accuracies = {name: 1 - self.task.error(model, "validation") for name, model in models.items()}
            self.report(label, step, num_steps, accuracies)


def _letter(j: int) -> str:
    """A, B, …, Z, then model 27, …."""
    return chr(ord("A") + j) if j < 26 else f"model {j + 1}"
