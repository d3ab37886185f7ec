"""How much a trained model needs each of its weights: the diagonal of the Fisher information, and relatives of it.

`diagonal_fisher` and `mean_absolute_gradient` go through examples once more after training, one gradient each.
`TrainingFisher` is an estimate from the mean gradients of training batches, which are there anyway.
"""

from forgetless.choices import FisherKind
from forgetless.importance.fisher import diagonal_fisher, mean_absolute_gradient, unwrapped
from forgetless.importance.request import Batch, LossFunction
from forgetless.importance.training import TrainingFisher

__all__ = [
    # what a model needs
    "TrainingFisher",
    "diagonal_fisher",
    "mean_absolute_gradient",
    # how it is asked for
    "Batch",
    "FisherKind",
    "LossFunction",
    "unwrapped",
]
