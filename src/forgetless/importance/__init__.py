"""How much a trained model needs each of its weights: the diagonal of the Fisher information, and relatives of it.

`diagonal_fisher` and `mean_absolute_gradient` go through examples once more after training, one gradient each.
`TrainingFisher` is an estimate from the mean gradients of training batches, which are there anyway. `sample_text` draws
examples from a language model itself, where there are no others.
"""

from forgetless.choices import FisherKind, Likelihood
from forgetless.importance.fisher import diagonal_fisher, mean_absolute_gradient
from forgetless.importance.model import unwrapped
from forgetless.importance.request import Batch, LossFunction
from forgetless.importance.text import evaluated, own_texts, sample_text
from forgetless.importance.training import TrainingFisher

__all__ = [
    # what a model needs
    "TrainingFisher",
    "diagonal_fisher",
    "mean_absolute_gradient",
    # examples of its own
    "evaluated",
    "own_texts",
    "sample_text",
    # how it is asked for
    "Batch",
    "FisherKind",
    "Likelihood",
    "LossFunction",
    "unwrapped",
]
