"""One search, an epoch at a time."""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from forgetless import ranks
from forgetless.forgetting import ForgettingSummary
from forgetless.importance import TrainingFisher
from forgetless.interference import Interference, measure_interference
from forgetless.matching import RunningMatch
from forgetless.protection import Protection, make_protection
from forgetless.protection.none import NoProtection
from forgetless.sampling import Sampler, make_sampler
from forgetless.search.averaging import AverageWeights
from forgetless.search.config import SearchArm, SearchConfig
from forgetless.search.evidence import EvidenceOf
from forgetless.search.rates import rate_factor
from forgetless.search.records import DerivedRecord, EpochRecord
from forgetless.search.rewards import Rewards
from forgetless.search.scratch import train_from_scratch
from forgetless.search.setup import fixed_sample, generator_for, make_search_space, make_supernet
from forgetless.search.state import DerivationState, EpochState, Moved
from forgetless.spaces import Architecture, SearchSpace
from forgetless.strategies import Strategy, make_strategy
from forgetless.tasks import Task
from forgetless.training import MeanStep, consolidate, make_optimizer, train

Show = Callable[[str, Mapping[str, float]], None]


class Search:
    """The state of one search, an epoch at a time.

    Args:
        config: What to do.
        task: The data.
        arm: Seed and protection.
        space: The space with its supernet; the configuration's if None.

    Attributes:
        epoch: Finished epochs.
        supernet: The shared weights.
        rewards: What they say of architectures.
        strategy: What proposes architectures.
        sampler: What chooses those that train.
    """

    def __init__(self, config: SearchConfig, task: Task[Any], arm: SearchArm, space: SearchSpace | None = None) -> None:
        self.config, self.task, self.arm = config, task, arm
        self.epoch = 0
        self.space = space or make_search_space(config)
        self.supernet = make_supernet(config.run.device, task, self.space, arm.seed)
        self.average = self._make_average()
        self.rewards = Rewards(
            task,
            self.supernet,
            config.schedule.evaluation_batches or None,
            self.average,
            by_loss=config.reward.score == "loss",
        )
        steps = config.schedule.epochs * config.schedule.strategy_steps
        self.strategy: Strategy[Any] = make_strategy(config.strategy, self.space.space, seed=arm.seed, num_steps=steps)
        self.sampler: Sampler[Any] = make_sampler(
            config.sampling,
            self.space.space,
            lambda: self.strategy.propose(1)[0],
            generator_for(arm.seed, "sampling"),
        )
        if self.strategy.uses_gradients:
            self.strategy.loss = self.rewards.loss
        self._now: EpochState | None = None  # within an epoch
        self._end: DerivationState | None = None  # within the derivation
        self.matched = RunningMatch()
        self._protects = config.protect.start == 0
        self._protected_epochs = 0  # finished ones
        self._shared = self._protected(dict(self.supernet.named_parameters()))
        self._evidence = EvidenceOf(config.importance, task, self.supernet, self.space.space)
        self.protection = self._protection()
        self._strength = self.protection.strength  # in the first epoch with protection
        self.optimizer = make_optimizer(config.optimizer, self.supernet, self._shared)
        self._only: Architecture | None = None

    def _make_average(self) -> AverageWeights | None:
        chosen = self.config.reward
        window = chosen.average_batches if chosen.average == "moving" else None
        return AverageWeights(self.supernet, window) if chosen.averages else None

    def _protection(self) -> Protection:
        options = self.config.options_of(self.arm.protection)
        held = list(self.supernet.parameters()) if options.kind.holds_all else self._shared
        return make_protection(options, held, recall=self._evidence.recalled)

    def _protected(self, named: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
        outside = self.supernet.outside_cell
        return [p for name, p in named.items() if self.config.protect.scope == "all" or not name.startswith(outside)]

    @property
    def is_matched(self) -> bool:
        """Whether this is a control arm, whose steps are those of another."""
        return self.protection.matches is not None

    # ---- one epoch -------------------------------------------------------------------------------------------

    def one_epoch(
        self, wanted_steps: Mapping[int, float | None], show: Show, point: Callable[[], object] = lambda: None
    ) -> EpochRecord:
        """Train the epoch's architectures, measure their forgetting, and let the strategy learn.

        An epoch that was begun, as `load_state_dict` may have found it, is gone on with.

        Args:
            wanted_steps: Mean step under `wpl` by epoch, for the control arm.
            show: Called with the phase and what is known so far.
            point: Called wherever `state_dict` is all that the rest of the epoch depends on.

        Returns:
            The epoch's record.
        """
        config, now = self.config, self._begin_epoch()
        clock = _Clock(now.seconds)
        for j in range(len(now.architectures), config.schedule.models_per_epoch):
            self._train_next(now, j, wanted_steps.get(self.epoch), clock)
            show(f"model {j + 1}/{config.schedule.models_per_epoch}", {self.task.error_name: now.first[-1]})
            point()
        now.penalty = self.protection.penalty() if now.penalty is None else now.penalty
        while len(now.second) < len(now.architectures):
            part = now.architectures[len(now.second) :][: ranks.here().size]
            with clock("evaluate"):
                now.second += self.rewards.errors(part, "forgetting")
            show(f"error {len(now.second)}/{config.schedule.models_per_epoch}", {})
            point()
        forgetting = now.forgetting(self.task.diverged_above)
        if now.part is None:
            now.part = self._measured_part(forgetting, show, clock)
            point()
        show("learning", {"forgetting": forgetting.mean})
        learned = self._learn(now, clock, point)
        record = self._epoch_record(now, forgetting, learned)
        self.epoch += 1
        self._protected_epochs += self._protects
        if config.protect.start == "forgetting" and forgetting.mean > 0:
            self._protects = True
        self._now = None
        return record

    @property
    def _first_loss(self) -> int:
        """The number of the epoch's first batch that the strategy differentiates."""
        return self.epoch * self.config.schedule.strategy_steps * self.config.schedule.samples_per_step

    def _begin_epoch(self) -> EpochState:
        """The state of this epoch; where it is new, what happens at an epoch's beginning has happened."""
        config = self.config
        if self._now is None:
            if config.protect.reset_every and self.epoch % config.protect.reset_every == 0:
                self.protection.reset()
            self.protection.begin_epoch(self.epoch)
            self._protects |= self.epoch == config.protect.start
            self.rewards.begin(self._first_loss)
            self._now = EpochState()
        if self.protection.has_strength() and self.protection.decays:
            self.protection.strength = self._strength * config.protect.strength_decay**self._protected_epochs
        return self._now

    def _train_next(self, now: EpochState, j: int, wanted: float | None, clock: "_Clock") -> None:
        """Propose, train, measure and consolidate the epoch's model number j."""
        config = self.config
        architecture = self._next_architecture()
        number = self.epoch * config.schedule.models_per_epoch + j
        scheduled = self._mean_rate_factor(number)
        self.matched.follow(wanted if self.is_matched else None, scheduled)
        before = [weight.detach().clone() for weight in self._shared]
        with clock("train"):
            gradients, step, skipped = self._train(architecture, number)
        now.num_passed_over += skipped
        with clock("evaluate"):
            (error,) = self.rewards.errors([architecture], "forgetting")
        with clock("consolidate"):
            if error <= self.task.diverged_above and self._protects:
                self._consolidate(architecture, gradients)
        with clock("evaluate"):
            moves = self._protects and self.protection.moves_weights
            now.consolidated += self.rewards.errors([architecture], "forgetting") if moves else [error]
        now.moved.append(Moved(step, _distance(before, self._shared) / config.schedule.batches_per_model))
        self.matched.learn(self._measured_step(now.moved[-1]), scheduled)
        now.architectures.append(architecture)
        now.first.append(error)

    def _measured_part(self, forgetting: ForgettingSummary, show: Show, clock: "_Clock") -> float:
        """The multi-model part of the epoch's forgetting; NaN where it is not this epoch's turn."""
        config = self.config
        if not config.interference.every or (self.epoch + 1) % config.interference.every:
            return math.nan
        show("interference", {"forgetting": forgetting.mean})
        sample = fixed_sample(self.strategy.space, config.interference.models, self.arm.seed)
        with clock("interference"):
            return self.interference(sample, self.epoch + 1).multi_model_part.mean

    def _epoch_record(
        self, now: EpochState, forgetting: ForgettingSummary, learned: Mapping[str, float]
    ) -> EpochRecord:
        return EpochRecord(
            seed=self.arm.seed,
            protection=self.arm.protection,
            epoch=self.epoch,
            forgetting_mean=_or_none(forgetting.mean),
            forgetting_best=_or_none(forgetting.best),
            forgetting_max=_or_none(forgetting.maximum),
            num_models=forgetting.num_models,
            num_diverged=forgetting.num_diverged,
            multi_model_part=None if now.part is None else _or_none(now.part),
            error_first=_or_none(_finite_mean(now.first)),
            error_consolidated=_or_none(_finite_mean(now.consolidated)),
            error_second=_or_none(_finite_mean(now.second)),
            is_protected=self._protects and self.protection.protects,
            penalty=None if now.penalty is None else _or_none(now.penalty),
            mean_step=_or_none(_finite_mean([each.step for each in now.moved])),
            mean_net_step=_or_none(_finite_mean([each.net for each in now.moved])),
            num_passed_over=now.num_passed_over,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            strategy={name: _or_none(value) for name, value in learned.items()},
            seconds=now.seconds,
        )

    def _rate_factor(self, step: int) -> float:
        """What the schedule multiplies the rate of the search's batch number `step` by."""
        schedule = self.config.schedule
        return rate_factor(self.config.rates, step, per_epoch=schedule.batches_per_epoch, total=schedule.num_batches)

    def _mean_rate_factor(self, number: int) -> float:
        """The same over the batches of the search's model number `number`."""
        batches = self.config.schedule.batches_per_model
        return sum(self._rate_factor(number * batches + batch) for batch in range(batches)) / batches

    def _at_their_rates(self, batches: Iterator[Any], start: int) -> Iterator[Any]:
        """Batches number `start`, … of the search; before each, learning rates are set.

        In the control arm that of the shared weights is scaled.
        """
        for step, batch in enumerate(batches, start):
            rate = self.config.optimizer.learning_rate * self._rate_factor(step)
            for i, group in enumerate(self.optimizer.param_groups):
                group["lr"] = rate * (self.matched.scale if i == 0 else 1.0)
            yield batch

    def _measured_step(self, moved: Moved) -> float:
        """How far a model moved, as it counts for the control arm."""
        matched = self.protection.matches
        options = self.protection.options if matched is None else self.config.options_of(matched)
        return moved.net if options.moves_weights else moved.step

    def _next_architecture(self) -> Any:
        if not self.config.schedule.single:
            return self.sampler.next()
        if self._only is None:
            self._only = self.sampler.next()
        return self._only

    def _train(self, architecture: Any, number: int) -> tuple[TrainingFisher, float, int]:
        """Train one architecture for its batches: its gradients, mean step, and how many batches were skipped."""
        config = self.config
        steps = MeanStep(self._shared)
        gradients = TrainingFisher(dict(self._evidence.bound(architecture).named_parameters()))
        is_wanted = config.importance.source == "training" and self.protection.uses_fisher and self._protects
        start = number * config.schedule.batches_per_model
        average = self.average if self.epoch >= config.reward.average_from else None

        def after_step(_: int) -> None:
            steps.update()
            if average is not None:
                average.update()

        steps.start()
        skipped = self._train_on(
            architecture,
            start,
            config.schedule.batches_per_model,
            gradients.add if is_wanted else None,
            after_step,
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
        batches = self.task.training_batches(num_batches, torch.Generator().manual_seed(self.arm.seed), start=start)
        schedule = self.config.schedule
        is_over = start >= schedule.num_batches  # as interference after the last epoch is
        return train(
            self._at_their_rates(batches, schedule.num_batches - schedule.batches_per_epoch if is_over else start),
            self.task.loss_of(self.supernet, architecture),
            self.optimizer,
            self.protection if self._protects else NoProtection([]),
            max_gradient_norm=self.config.optimizer.max_gradient_norm,
            on_gradients=on_gradients,
            after_step=after_step,
        )

    def _consolidate(self, architecture: Any, gradients: TrainingFisher) -> None:
        is_from_training = self.config.importance.source == "training" and self.protection.uses_fisher
        if is_from_training and not gradients.suffice:
            return  # nearly all batches were skipped: it was not trained, and left no weight elsewhere
        evidence = self._evidence.of(architecture, gradients)
        consolidate(self.protection, self._evidence.bound(architecture), evidence)

    # ---- who overwrites whom ---------------------------------------------------------------------------------

    def interference(
        self,
        architectures: Sequence[Any],
        finished_epochs: int,
        num_batches: int | None = None,
        on_trained: Callable[[int], None] | None = None,
    ) -> Interference:
        """How training each of some architectures from the present state changes the errors of all; it is undone.

        Each trains under the protection on the first batches of the next epoch and at their learning rates, after the
        last epoch at those of the last; none is consolidated, so that anchors and importance stay what they are.

        Args:
            architectures: Members of the space, at least 2.
            finished_epochs: Epochs whose batches are skipped.
            num_batches: How many batches each is trained for; `batches_per_model` if None.
            on_trained: Called with the number of architectures trained so far.
        """
        schedule = self.config.schedule
        start = finished_epochs * schedule.batches_per_epoch
        return measure_interference(
            architectures,
            lambda architecture: self._train_on(architecture, start, num_batches or schedule.batches_per_model),
            lambda architecture: self.rewards.error(architecture, "forgetting"),
            self._undone,
            diverged_above=self.task.diverged_above,
            on_trained=on_trained,
        )

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """At its end weights, buffers, optimizer, protection, random state and mode are as before; no gradients."""
        weights, state = copy.deepcopy((self.supernet.state_dict(), self.optimizer.state_dict()))
        protection = copy.deepcopy(self.protection.state_dict())
        was_training = self.supernet.training
        devices = {weight.device for weight in self.supernet.parameters() if weight.is_cuda}
        with torch.random.fork_rng(devices=devices):
            try:
                yield
            finally:
                self.optimizer.zero_grad(set_to_none=True)
                self.supernet.load_state_dict(weights)
                self.optimizer.load_state_dict(state)
                self.protection.load_state_dict(protection)
                # By way of training mode, in which an image supernet drops whose batch statistics it has.
                self.supernet.train().train(was_training)

    # ---- the strategy ----------------------------------------------------------------------------------------

    def _learn(self, now: EpochState, clock: "_Clock", point: Callable[[], object]) -> dict[str, float]:
        """The epoch's steps of the strategy; their metrics, averaged."""
        while len(now.learned) < self.config.schedule.strategy_steps:
            with clock("learn"):
                architectures = self.strategy.propose(self.config.schedule.samples_per_step)
                now.learned.append(self.strategy.learn(architectures, self.rewards.of_all(architectures)))
            point()
        names = dict.fromkeys(name for metrics in now.learned for name in metrics)
        return {name: _finite_mean([metrics[name] for metrics in now.learned if name in metrics]) for name in names}

    # ---- the end ---------------------------------------------------------------------------------------------

    def derive(self, show: Show, point: Callable[[], object] = lambda: None) -> DerivedRecord:
        """The best of some proposed architectures by reward; it and a random one, trained from scratch.

        Where no shared weights are trained there are no rewards, and the first that was drawn stands for the best. A
        derivation that was begun is gone on with.

        Args:
            show: Called with the phase.
            point: Called wherever `state_dict` is all that the rest depends on.

        Returns:
            The record: the architecture, its reward on the shared weights if there are any, and both trainings' errors.
        """
        if self._end is None:
            self._end = DerivationState(self.strategy.propose_final(self.config.selection.final_samples))
        end, clock = self._end, _Clock(self._end.seconds)
        measured = self.strategy.trains_shared_weights
        missing, at_once = [each for each in dict.fromkeys(end.proposed) if each not in end.rewards], ranks.here().size
        for start in range(0, len(missing), at_once):
            part = missing[start : start + at_once]
            with clock("derive"):
                found = self.rewards.of_all(part) if measured else [math.nan] * len(part)
                end.rewards |= zip(part, found, strict=True)
            point()
        # Best first, what diverged last; of equals the one proposed first.
        known = end.rewards
        ranked = sorted(known, key=lambda a: math.inf if math.isnan(known[a]) else -known[a])
        best = ranked[0]
        show("training from scratch", {"reward": known[best]} if measured else {})
        random = self.strategy.space.sample(generator_for(self.arm.seed, "random architecture"))
        for name, architecture in (("derived", best), ("random", random)):
            if name not in end.trained:
                with clock("derive"):
                    end.trained[name] = self._from_scratch(architecture, end, point)
                end.training = None
                point()
        self._end = None
        return DerivedRecord(
            seed=self.arm.seed,
            protection=self.arm.protection,
            architecture=str(best),
            reward=_or_none(known[best]),
            candidates=[(str(architecture), _or_none(known[architecture])) for architecture in ranked],
            random_architecture=str(random),
            **{f"{name}_{key}": value for name, found in end.trained.items() for key, value in found.items()},
            seconds=end.seconds,
        )

    def _from_scratch(
        self, architecture: Any, end: DerivationState, point: Callable[[], object]
    ) -> dict[str, float | None]:
        """Validation and test error of an architecture trained alone."""
        begun = end.training
        end.random_state = torch.get_rng_state()  # the training draws from its own

        def on_step(present: Callable[[], dict[str, Any]]) -> None:
            end.training = present
            point()

        found = train_from_scratch(
            self.task,
            self.space,
            architecture,
            self.config.optimizer,
            device=self.config.run.device,
            seed=self.arm.seed,
            num_batches=self.config.final_batches,
            state=begun() if begun is not None else None,
            on_step=on_step,
        )
        end.random_state = None
        return {name: _or_none(getattr(found, name)) for name in ("validation_error", "test_error")}

    # ---- going on after an interruption ----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest depends on; torch.load reads it with weights_only=True."""
        outer = None if self._end is None else self._end.random_state
        return {
            "arm": dataclasses.asdict(self.arm),
            "epoch": self.epoch,
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "strategy": self.strategy.state_dict(),
            "sampler": self.sampler.state_dict(),
            "protection": self.protection.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scale": self.matched.scale,
            "step_at_rate_1": self.matched.step_at_1,
            "protects": self._protects,
            "protected_epochs": self._protected_epochs,
            "num_losses": self.rewards.num_losses,
            "only": None if self._only is None else str(self._only),
            "now": None if self._now is None else self._now.as_dict(),
            "end": None if self._end is None else self._end.as_dict(),
            "random_state": torch.get_rng_state() if outer is None else outer,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, in a search of the same configuration and arm.

        Args:
            state: From `state_dict`.
        """
        parse = self.strategy.space.parse
        self.epoch, self.matched.scale = state["epoch"], state["scale"]
        self._protected_epochs = state["protected_epochs"]
        self.matched.step_at_1, self._protects = state["step_at_rate_1"], state["protects"]
        self.rewards.begin(self._first_loss, state["num_losses"])
        self.supernet.load_state_dict(state["supernet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.strategy.load_state_dict(state["strategy"])
        if "sampler" in state:  # not in states from before there were samplers, which draw nothing of their own
            self.sampler.load_state_dict(state["sampler"])
        self.protection.load_state_dict(state["protection"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self._only = None if state["only"] is None else parse(state["only"])
        self._now = None if state["now"] is None else EpochState.from_dict(state["now"], parse)
        self._end = None if state["end"] is None else DerivationState.from_dict(state["end"], parse)
        torch.set_rng_state(state["random_state"])


class _Clock:
    """Adds wall seconds to those of each phase."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def _distance(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """‖after − before‖₂ over all weights in one vector."""
    with torch.no_grad():
        norms = torch._foreach_norm(torch._foreach_sub(list(before), list(after)))
    return float(torch.linalg.vector_norm(torch.stack(list(norms))))


def _finite_mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
