"""The words that options of several parts choose from; nothing here imports anything heavy."""

from typing import Literal

AccumulationRule = Literal["replace", "sum", "joint", "ema", "merge"]
"""How importance accumulates over models; see `forgetless.WeightPlasticity`."""

FisherKind = Literal["empirical", "monte_carlo", "exact", "batch"]
"""See `forgetless.diagonal_fisher`."""

OptimizerName = Literal["sgd", "adam", "adamw"]
"""The optimizers of the experiments."""
