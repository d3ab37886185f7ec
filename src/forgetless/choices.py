"""The words that options of several parts choose from; nothing here imports anything heavy."""

from typing import Literal

AccumulationRule = Literal["replace", "sum", "joint", "ema", "merge"]
"""How importance accumulates over models; see `forgetless.WeightPlasticity`."""

FisherKind = Literal["empirical", "monte_carlo", "exact", "batch"]
"""See `forgetless.diagonal_fisher`."""

Likelihood = Literal["categorical", "bernoulli", "gaussian"]
"""What a model's outputs stand for; see `forgetless.diagonal_fisher`."""

Unit = Literal["example", "target"]
"""What a Fisher information is a mean over; see `forgetless.diagonal_fisher`."""

OptimizerName = Literal["sgd", "adam", "adamw"]
"""The optimizers of the experiments."""
