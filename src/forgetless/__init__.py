"""Measure and prevent multi-model forgetting in networks that share weights."""

from importlib.metadata import version

from forgetless.errors import InputError
from forgetless.forgetting import ForgettingMeter, ForgettingSummary, Interval, reduction
from forgetless.importance import diagonal_fisher
from forgetless.plasticity import WeightPlasticity, proximal_step, quadratic_penalty

__version__ = version("forgetless")

__all__ = [
    # what a model needs
    "diagonal_fisher",
    # keeping it
    "WeightPlasticity",
    "proximal_step",
    "quadratic_penalty",
    # how much was forgotten
    "ForgettingMeter",
    "ForgettingSummary",
    "Interval",
    "reduction",
    # bad input
    "InputError",
]
