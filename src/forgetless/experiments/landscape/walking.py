"""The trainings of one seed, followed: A once, then B under each protection, with the path of the shared weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from forgetless.experiments.landscape.config import LandscapeConfig
from forgetless.experiments.landscape.plane import Plane, plane_through
from forgetless.experiments.landscape.records import ArmRecord, LandscapeRecord, SurfaceRecord
from forgetless.experiments.landscape.surface import grid_axes, loss_surface, mean_loss, set_weights
from forgetless.experiments.two_model.config import Arm
from forgetless.experiments.two_model.training import Report, Trainer
from forgetless.records import plain
from forgetless.tasks.images import ImageClassification

Make = Callable[[], Mapping[str, Any]]


@dataclass
class Way:
    """What is kept of one training of B until the plane is known.

    Attributes:
        steps: Of B, 0 first.
        weights: The shared weights then, (P,) each.
        losses: A's and B's then.
        made: The record of the two-model experiment, when B is trained.
        model_b: B's state then.
    """

    steps: list[int] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    losses: list[tuple[float, float]] = field(default_factory=list)
    made: dict[str, Any] | None = None
    model_b: dict[str, Tensor] | None = None

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """From what `vars` made of one.

        Args:
            state: Of a checkpoint.
        """
        return cls(**{**state, "losses": [tuple(each) for each in state["losses"]]})


class Walker:
    """Trains A, then B once per arm, and keeps each arm's path; then makes the seed's records.

    Args:
        config: What to do.
        task: The data.
        arms: Of one seed.
        report: As of a `Trainer`.
        point: Called with a function that makes the state, wherever that is whole.
        state: Of an interrupted call; one of another seed is left out.
    """

    def __init__(
        self,
        config: LandscapeConfig,
        task: ImageClassification,
        arms: Sequence[Arm],
        report: Report,
        point: Callable[[Make], object],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.task, self.arms = config, task, arms
        is_ours = state is not None and state["seed"] == arms[0].seed
        self.ways = [Way.from_state(each) for each in state["ways"]] if is_ours and state is not None else []
        self._loss = mean_loss(next(task.batches("validation", config.slice.images)), task.loss)
        self.trainer = Trainer(
            config.two_models,
            task,
            arms[0],
            report,
            lambda make: point(lambda: self._state(make())),
            state["trainer"] if is_ours and state is not None else None,
            self._observe,
        )
        a, self._b = self.trainer.models
        self.anchor, self.loss_a_before = self._shared(), self._loss(a)
        found = self.trainer.fisher(a)
        names = {id(weight): name for name, weight in a.named_parameters()}
        self.fisher = torch.cat([found[names[id(weight)]].flatten() for weight in self.trainer.shared])

    def _state(self, trainer: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "seed": self.arms[0].seed,
            "trainer": dict(trainer),
            "ways": [vars(way) for way in self.ways],
        }

    def state(self) -> dict[str, Any]:
        """What to go on from, between two arms."""
        return self._state(self.trainer.state())

    def _shared(self) -> Tensor:
        return parameters_to_vector(self.trainer.shared).detach().clone()

    def _observe(self, step: int) -> None:
        if step == 0:
            self.ways.append(Way())
        way, (a, b) = self.ways[-1], self.trainer.models
        way.steps.append(step)
        way.weights.append(self._shared())
        way.losses.append((self._loss(a), self._loss(b)))

    def walk(self, after_arm: Callable[[], object]) -> None:
        """Make the trainings that are left.

        Args:
            after_arm: Called after each.
        """
        for i, arm in enumerate(self.arms):
            if i < len(self.ways) and self.ways[i].made is not None:
                continue
            self.ways[i].made = plain(self.trainer.run(arm, None))
            self.ways[i].model_b = {name: value.clone() for name, value in self._b.state_dict().items()}
            after_arm()

    # ---- records -------------------------------------------------------------------------------------------------

    def records(self) -> list[LandscapeRecord]:
        """Those of the seed, when all its trainings are made."""
        moves = [torch.stack(way.weights) - self.anchor for way in self.ways]
        finite = [each for each in moves if torch.isfinite(each).all()]
        plane = plane_through([each[-1] for each in (finite[0], finite[-1])], torch.cat(finite))
        axes = grid_axes(torch.cat([plane.coordinates(each) for each in finite]), self.config.slice.points)
        surface = self._surface(plane, axes)
        return [surface, *(self._arm(i, moves[i], plane, axes) for i in range(len(self.arms)))]

    def _surface(self, plane: Plane, axes: tuple[list[float], list[float]]) -> SurfaceRecord:
        assert self.trainer.start is not None
        a, _ = self.trainer.models
        a.load_state_dict(self.trainer.start[0])
        return SurfaceRecord(
            seed=self.arms[0].seed,
            x=axes[0],
            y=axes[1],
            loss_a=[_numbers(row) for row in loss_surface(a, self.trainer.shared, plane, axes, self._loss)],
            form=plane.form(self.fisher).tolist(),
            loss_a_before=_number(self.loss_a_before),
            num_weights=len(self.anchor),
        )

    def _arm(self, i: int, moves: Tensor, plane: Plane, axes: tuple[list[float], list[float]]) -> ArmRecord:
        arm, way, b = self.arms[i], self.ways[i], self._b
        assert way.made is not None
        assert way.model_b is not None
        b.load_state_dict(way.model_b)
        set_weights(self.trainer.shared, self.anchor)
        coordinates = plane.coordinates(moves)
        return ArmRecord(
            seed=arm.seed,
            protection=arm.protection,
            strength=arm.strength,
            steps=way.steps,
            x=_numbers(coordinates[:, 0].tolist()),
            y=_numbers(coordinates[:, 1].tolist()),
            outside=_numbers(plane.outside(moves).tolist()),
            loss_a=_numbers([a for a, _ in way.losses]),
            loss_b=_numbers([b for _, b in way.losses]),
            predicted=_numbers((moves.double().square() @ self.fisher.double() / 2).tolist()),
            length=_number(_length(moves.double())),
            length_in_plane=_number(_length(coordinates)),
            loss_b_surface=[_numbers(row) for row in loss_surface(b, self.trainer.shared, plane, axes, self._loss)],
            **{key: way.made[key] for key in ("accuracy_a_before", "accuracy_a_after", "accuracy_b", "seconds")},
        )


def _length(points: Tensor) -> float:
    """Of the line through points (T, D)."""
    return float(torch.linalg.vector_norm(points.diff(dim=0), dim=1).sum())


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(values: Sequence[float]) -> list[float | None]:
    return list(map(_number, values))
