"""How what searches select is judged."""

from dataclasses import dataclass
from typing import ClassVar

from forgetless.configuration import MOST_SEEDS, Configuration, Part, option
from forgetless.errors import InputError
from forgetless.parts import TrainingResources


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Part):
    """How what searches select is judged.

    Attributes:
        top: Architectures that each search selects, the best of its own ranking; as many are drawn uniformly.
        truth: A file with the quality of every architecture, or the name of a benchmark that comes with forgetless.
            Without it, architectures are trained from scratch.
        column: Of the truth file; its test column by default. `median`, `mean`, `std` or `diverged` where it has a
            column per training seed.
        estimates: Architectures, drawn uniformly, whose rank by shared weights is compared with the truth; all of a
            space that has no more.
        baselines: Architectures of the truth, drawn uniformly for each seed, from which rules without a search select;
            all of a truth that has no more. None do if 0.
        training_seeds: Trainings from scratch of each architecture.
        batches: Of each training; as many as the search's own derivation took if 0.
    """

    title: ClassVar[str] = "Evaluation"

    top: int = option(5, basic=True)
    truth: str | None = option(None, basic=True)
    column: str | None = None
    estimates: int = 1000
    baselines: int = 200
    training_seeds: int = option(3, basic=True)
    batches: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "top", "training_seeds")
        self.expect_at_most(MOST_SEEDS, "training_seeds")
        self.expect_at_least(0, "estimates", "baselines", "batches")
        if self.column is not None and self.truth is None:
            raise InputError("Expected --truth FILE for a column of it, but got --column alone.")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Configuration):
    """What `forgetless evaluate` is asked to do.

    Attributes:
        evaluation: How searches are judged.
        resources: Where and how trainings are made.
    """

    evaluation: EvaluationConfig = EvaluationConfig()
    resources: TrainingResources = TrainingResources()
