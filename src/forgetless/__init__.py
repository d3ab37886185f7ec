"""Measure and prevent multi-model forgetting in networks that share weights."""

from importlib.metadata import version
from typing import TYPE_CHECKING

from forgetless.lazy import lazily

if TYPE_CHECKING:
    from forgetless.budget import Budget
    from forgetless.errors import InputError
    from forgetless.forgetting import ForgettingMeter, ForgettingSummary, Interval, reduction
    from forgetless.importance import TrainingFisher, diagonal_fisher, sample_text
    from forgetless.plasticity import WeightPlasticity, proximal_step, quadratic_penalty
    from forgetless.search import SearchConfig, run_search

__version__ = version("forgetless")

__all__ = [
    # what a model needs
    "TrainingFisher",
    "diagonal_fisher",
    "sample_text",
    # keeping it
    "Budget",
    "WeightPlasticity",
    "proximal_step",
    "quadratic_penalty",
    # how much was forgotten
    "ForgettingMeter",
    "ForgettingSummary",
    "Interval",
    "reduction",
    # searching
    "SearchConfig",
    "run_search",
    # bad input
    "InputError",
]

# The command line has to handle signals before PyTorch is loaded.
__getattr__ = lazily(
    __name__,
    {
        "TrainingFisher": "importance",
        "diagonal_fisher": "importance",
        "sample_text": "importance",
        "Budget": "budget",
        "WeightPlasticity": "plasticity",
        "proximal_step": "plasticity",
        "quadratic_penalty": "plasticity",
        "ForgettingMeter": "forgetting",
        "ForgettingSummary": "forgetting",
        "Interval": "forgetting",
        "reduction": "forgetting",
        "SearchConfig": "search",
        "run_search": "search",
        "InputError": "errors",
    },
)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
