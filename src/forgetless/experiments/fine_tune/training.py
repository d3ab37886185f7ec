"""The trainings of one seed: a model that knows the old text once, then an arm at a time from that model."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from forgetless.errors import InputError
from forgetless.experiments.fine_tune.config import Arm, FineTuneConfig
from forgetless.experiments.fine_tune.past import Halves, examples_of_the_past
from forgetless.experiments.fine_tune.pretraining import falling, pretrain
from forgetless.experiments.fine_tune.records import FineTuneCurve, FineTuneRecord
from forgetless.experiments.fine_tune.text import Windows, mean_loss, next_token_loss, next_token_losses
from forgetless.importance import diagonal_fisher
from forgetless.parts import OptimizerConfig
from forgetless.protection import Evidence, Protection, ProtectionOptions, make_protection
from forgetless.training import consolidate, make_optimizer, train

if TYPE_CHECKING:
    from forgetless.experiments.fine_tune.language import StartModel
    from forgetless.tasks.base import Batch

MEASURED_WINDOWS = 1000
"""Reported losses are over so many windows, evenly spread over the text, or over all that it has."""
CURVE_WINDOWS = 200
"""The same of the points of a curve."""

Report = Callable[[str, int, int, Mapping[str, float]], None]
Point = Callable[[Callable[[], Mapping[str, Any]]], object]


class Texts(NamedTuple):
    """What a configuration trains on.

    Attributes:
        start: The model to start from.
        old: The text that it knows.
        new: The new texts, by name.
    """

    start: StartModel
    old: Windows
    new: Mapping[str, Windows]


class Trained(NamedTuple):
    """A model that was fine-tuned, of which several records may be made.

    Attributes:
        of: New text, protection and what it saw: the arm but for its strength.
        model: It.
        protection: What protected it.
        curve: Its losses on the way.
        seconds: How long its training took, without what was measured on the way.
    """

    of: tuple[str, str, str | None]
    model: nn.Module
    protection: Protection
    curve: Mapping[str, list[Any]]
    seconds: float


class _Stream:
    """Seeds of what is drawn: no two of any two seeds are equal."""

    PRETRAINING, FINE_TUNING, PAST, FISHER, PROTECTION = (k * 2**33 for k in range(5))


class Trainer:
    """Makes the arms of one seed.

    Between two trainings its state is whole: `point` is called there with what makes the state.

    Args:
        config: What to do.
        texts: The data.
        seed: Of the pretraining, the batches and what is drawn.
        report: Shows label, step, steps and losses.
        point: Called with a function that makes the state, wherever that is all that the rest depends on.
        checkpoint: A state of an interrupted call; one of another seed is left out.

    Attributes:
        model: As it knows the old text.
        before: Loss of that on the test split of each text, old and new.

    Raises:
        InputError: If a budget is above the loss on the old text.
    """

    def __init__(
        self,
        config: FineTuneConfig,
        texts: Texts,
        seed: int,
        report: Report = lambda *_: None,
        point: Point = lambda _: None,
        checkpoint: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.texts, self.seed, self.report, self._point = config, texts, seed, report, point
        self.model = texts.start.make(seed).to(config.run.device)
        self._trained: Trained | None = None
        self._past: dict[tuple[str, str], tuple[Halves, float]] = {}
        if not texts.start.is_trained:
            if checkpoint is not None and checkpoint["seed"] == seed:
                self.model.load_state_dict(checkpoint["model"])
            else:
                self._pretrain()
                point(self.state)
        self.model.eval()
        check_budgets(config, texts.old.error(self.model, "validation", MEASURED_WINDOWS))
        every = {config.texts.old: texts.old, **texts.new}
        self.before = {name: text.error(self.model, "test", MEASURED_WINDOWS) for name, text in every.items()}

    def state(self) -> dict[str, Any]:
        """What to go on from, as `checkpoint`: an arm begins with the pretrained model and nothing else."""
        return {"seed": self.seed, "model": self.model.state_dict()}

    def _pretrain(self) -> None:
        """Train the model on the old text."""
        schedule, old = self.config.schedule, self.texts.old

        def show(step: int) -> None:
            if step % (10 * schedule.evaluate_every) == 0 or step == schedule.pretraining:
                losses = {"old": old.error(self.model, "validation", CURVE_WINDOWS)}
                self.report(f"seed {self.seed}: pretraining", step, schedule.pretraining, losses)

        optimizer = OptimizerConfig(
            name="adamw", learning_rate=schedule.pretraining_rate, momentum=0.0, max_gradient_norm=1.0
        )
        pretrain(self.model, old, schedule.pretraining, optimizer, _Stream.PRETRAINING + self.seed, show)

    # ---- arms ----------------------------------------------------------------------------------------------------

    def run(self, arm: Arm) -> FineTuneRecord:
        """One arm.

        Args:
            arm: Which; of this seed.
        """
        options = self.config.options_of(arm.protection, arm.strength)
        devices = [self.config.run.device] if self.config.run.device.startswith("cuda") else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(_Stream.PROTECTION + self.seed)
            record = self._record(arm, options, self._fine_tuned(arm, options))
        self._point(self.state)
        return record

    def _fine_tuned(self, arm: Arm, options: ProtectionOptions) -> Trained:
        """The arm's training; one of a protection that acts afterwards is that of all its strengths."""
        of = (arm.to, arm.protection, arm.on)
        if self._trained is not None and self._trained.of == of:
            return self._trained
        made = self._fine_tune(arm, options)
        self._trained = made if options.kind.acts_after else None
        return made

    def _fine_tune(self, arm: Arm, options: ProtectionOptions) -> Trained:
        if arm.on is not None:
            self._past_of(arm)  # made now, because the time that it takes is added in `_record`
        started, config = time.perf_counter(), self.config
        model = copy.deepcopy(self.model)
        protection = make_protection(options, model.parameters())
        consolidate(protection, model, self._evidence(arm, model))
        model = protection.adapted(model)
        optimizer = make_optimizer(config.optimizer, model)
        num_steps = steps_of(config, options)
        fall = (lambda _: None) if config.schedule.constant_rate else falling(optimizer, num_steps)
        curve: dict[str, list[Any]] = {"step": [], "old": [], "new": []}
        following = 0.0

        def follow(step: int) -> None:
            nonlocal following
            fall(step)
            if step in self._points or step % config.schedule.evaluate_every == 0 or step == num_steps:
                begun = time.perf_counter()
                self._measure(arm, model, step, num_steps, curve)
                following += time.perf_counter() - begun

        begun = time.perf_counter()
        self._measure(arm, model, 0, num_steps, curve)
        following += time.perf_counter() - begun
        model.train()
        train(
            self.texts.new[arm.to].training_batches(num_steps, self._generator(_Stream.FINE_TUNING)),
            lambda batch: next_token_loss(model(batch[0]), batch[1]),
            optimizer,
            protection,
            max_gradient_norm=config.optimizer.max_gradient_norm,
            after_step=follow,
        )
        seconds = time.perf_counter() - started - following
        return Trained((arm.to, arm.protection, arm.on), model, protection, curve, seconds)

    @property
    def _points(self) -> set[int]:
        return {self.config.schedule.evaluate_every // part for part in (8, 4, 2)}

    def _measure(self, arm: Arm, model: nn.Module, step: int, num_steps: int, curve: dict[str, list[Any]]) -> None:
        """A point of the curve."""
        curve["step"].append(step)
        curve["old"].append(self.texts.old.error(model, "test", CURVE_WINDOWS))
        curve["new"].append(self.texts.new[arm.to].error(model, "test", CURVE_WINDOWS))
        losses = {name: curve[name][-1] for name in ("old", "new")}
        self.report(f"seed {self.seed}: {arm.label}", step, num_steps, losses)

    def _record(self, arm: Arm, options: ProtectionOptions, made: Trained) -> FineTuneRecord:
        """What is recorded of a training; a protection that acts afterwards does so here, from where that ended."""
        seconds, num_steps = made.seconds, steps_of(self.config, options)
        curve, model = copy.deepcopy(dict(made.curve)), made.model
        if options.kind.acts_after:
            begun = time.perf_counter()
            made.protection.finish(arm.strength or 0.0)
            seconds += time.perf_counter() - begun
            self._measure(arm, model, num_steps, num_steps, curve)
        expected = math.nan
        if arm.on is not None:
            halves, took = self._past_of(arm)
            seconds += took
            unseen = halves.unseen
            expected = mean_loss(model, unseen.inputs, unseen.targets)
            expected -= mean_loss(self.model, unseen.inputs, unseen.targets)
        new = self.texts.new[arm.to]
        return FineTuneRecord(
            seed=arm.seed,
            to=arm.to,
            protection=arm.protection,
            on=arm.on,
            strength=arm.strength,
            old_before=self.before[self.config.texts.old],
            old_after=self.texts.old.error(model, "test", MEASURED_WINDOWS),
            new_before=self.before[arm.to],
            new_after=new.error(model, "test", MEASURED_WINDOWS),
            new_validation=new.error(model, "validation", MEASURED_WINDOWS),
            expected_loss_increase=expected,
            steps=num_steps,
            passes=float(options.kind.passes(options)),
            held=float(options.kind.held_copies(options, self._num_outputs)),
            seconds=seconds,
            curve=FineTuneCurve(**curve),
        )

    # ---- what a protection may ask -------------------------------------------------------------------------------

    @property
    def _num_outputs(self) -> int:
        return self.texts.old.context * self.texts.start.language.num_tokens

    def _generator(self, stream: int, device: str = "cpu") -> torch.Generator:
        return torch.Generator(device).manual_seed(stream + self.seed)

    def _past_of(self, arm: Arm) -> tuple[Halves, float]:
        """What an arm's protection may see of the past, and the seconds that it took to make."""
        # Only new inputs depend on the new text.
        key = (arm.on or "", arm.to if arm.on == "new-inputs" else "")
        if key not in self._past:
            begun = time.perf_counter()
            halves = examples_of_the_past(
                arm.on,  # type: ignore[arg-type]
                self.model,
                self.texts.old,
                self.texts.new[arm.to],
                self.texts.start.language.first,
                self.config.importance.samples,
                self._generator(_Stream.PAST, self.config.run.device),
            )
            self._past[key] = halves, time.perf_counter() - begun
        return self._past[key]

    def _evidence(self, arm: Arm, model: nn.Module) -> Evidence:
        """What a protection may ask about the model before it is fine-tuned."""
        config = self.config

        def batches() -> Iterator[Batch]:
            return iter(()) if arm.on is None else self._past_of(arm)[0].seen.batches(config.schedule.batch_size)

        parameters = list(model.parameters())
        return Evidence(
            fisher=lambda: diagonal_fisher(
                model,
                batches(),
                next_token_losses,
                config.importance.fisher,
                parameters=parameters,
                generator=self._generator(_Stream.FISHER, config.run.device),
                per="target",
            ),
            batches=batches,
            loss=next_token_loss,
            loss_of=lambda: lambda batch: next_token_loss(model(batch[0]), batch[1]),
        )


def steps_of(config: FineTuneConfig, options: ProtectionOptions) -> int:
    """How many steps a protection's arm takes.

    Args:
        config: Whether all take equal time.
        options: Of the protection.
    """
    if not config.schedule.equal_time:
        return config.schedule.steps
    return max(1, round(config.schedule.steps / float(options.kind.passes(options))))


def check_budgets(config: FineTuneConfig, loss: float, of: str = "the model on the old text") -> None:
    """Refuse budgets that no training could use up.

    Args:
        config: With its protections.
        loss: That no budget may reach, in nats per token.
        of: Whose loss that is, for the message.

    Raises:
        InputError: If one is not below the loss.
    """
    for each in config.protections:
        if each.kind.unit == "nats" and each.strength_or_none is not None and each.strength_or_none >= loss:
            raise InputError(
                f"Expected --{each.kind.name}.strength below the loss of {of}, {loss:.3g} nats per token, but got "
                f"{each.strength_or_none:g}. Choose a smaller one."
            )
