"""How much a trained model needs each of its weights: the diagonal of the Fisher information, and relatives of it.

`diagonal_fisher` goes through examples, one gradient each; `mean_absolute_gradient` likewise.
"""

from forgetless.importance.fisher import diagonal_fisher, mean_absolute_gradient, unwrapped
from forgetless.importance.request import Batch, FisherKind, LossFunction

__all__ = [
    # what a model needs
    "diagonal_fisher",
    "mean_absolute_gradient",
    # how it is asked for
    "Batch",
    "FisherKind",
    "LossFunction",
    "unwrapped",
]
