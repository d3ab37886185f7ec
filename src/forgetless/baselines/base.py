"""What every baseline offers: a score of an architecture that needs no search; its sign is fixed beforehand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.registry import Registry
from forgetless.spaces.base import SearchSpace

if TYPE_CHECKING:
    from torch import Tensor

    from forgetless.supernet import Supernet
    from forgetless.tasks import Task

BASELINES: Registry[type[Baseline]] = Registry("baseline", "forgetless.baselines")
"""Every baseline, by name."""


@dataclass(frozen=True)
class Subject:
    """An architecture before any training, alone: what a baseline may look at.

    Attributes:
        supernet: In training mode, its weights freshly drawn from the seed, as a training from scratch begins. A
            baseline leaves its weights and gradients as they are.
        architecture: Which of it.
        task: What it would be trained for.
        batch: The first training batch (inputs, targets) of the seed.
        seed: Of weights and batch.
    """

    supernet: Supernet[Any]
    architecture: Any
    task: Task[Any]
    batch: tuple[Tensor, Tensor]
    seed: int


class Baseline(ABC):
    """A rule that says how good an architecture is, without a search and without training.

    Attributes:
        name: What files and tables call it.
        sign: 1 where a larger score is expected to be better, −1 where a smaller one is. It is part of the rule, as
            its source has it, and never chosen by looking at a truth.
    """

    name: ClassVar[str]
    sign: ClassVar[int] = 1

    @classmethod
    def why_undefined(cls, space: SearchSpace) -> str:  # noqa: ARG003
        """Why there is no such score in a space, in one sentence; empty where there is.

        Args:
            space: With its supernet.
        """
        return ""

    @classmethod
    @abstractmethod
    def score(cls, subject: Subject) -> float:
        """The score of an architecture; one that is not finite ranks last.

        Args:
            subject: The architecture.
        """
