"""The weight plasticity loss: what model A needs is kept while model B trains on shared weights.

    L_WPL(θ₂, θ_s) = L₂(θ₂, θ_s) + α/2 Σ_i F_i (θ_s,i − θ̂_s,i)²

Source: Benyahia et al., Overcoming Multi-Model Forgetting, ICML 2019, arXiv:1902.08232, eq. 8. The anchor θ̂ is where
A left the shared weights, the importance F is A's Fisher information there. `quadratic_penalty` is the added term,
`proximal_step` its implicit form, which is finite for every α; `WeightPlasticity` holds anchor and importance and
applies either in anybody's loop, at a given α or at the one that a tolerance calls for.
"""

from forgetless.choices import AccumulationRule
from forgetless.plasticity import optimizers as optimizers  # defines their metrics
from forgetless.plasticity.budget import LEAST_TOLERANCE, expected_increase, tolerance_step
from forgetless.plasticity.distributed_state import DistributedState
from forgetless.plasticity.metric import scaled_metric
from forgetless.plasticity.penalty import proximal_step, quadratic_penalty
from forgetless.plasticity.weight_plasticity import WeightPlasticity

__all__ = [
    # the object for a training loop
    "AccumulationRule",
    "DistributedState",
    "WeightPlasticity",
    # a strength
    "proximal_step",
    "quadratic_penalty",
    # a tolerance
    "LEAST_TOLERANCE",
    "expected_increase",
    "tolerance_step",
    # an optimizer's own metric
    "scaled_metric",
]
