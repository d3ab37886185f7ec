"""Two models that share hidden layers: how much of A is lost while B trains, and what protects it.

Figures 1 and 3 of Benyahia et al., Overcoming Multi-Model Forgetting, ICML 2019 (arXiv:1902.08232). Model A is
trained to convergence, or stopped on the way; then B trains on the same data, on some of A's layers, and A's accuracy
is followed. Every protection sees the same initial weights and the same batches, so that curves of one seed differ by
the protection alone.
"""

from forgetless.experiments.two_model.config import LEARNING_RATES, Arm, OptimizerName, TwoModelConfig, arms
from forgetless.experiments.two_model.records import read_records
from forgetless.experiments.two_model.result import TwoModelResult
from forgetless.experiments.two_model.run import Progress, check_memory, load_task, run, run_in_folder

__all__ = [
    "LEARNING_RATES",
    "Arm",
    "OptimizerName",
    "Progress",
    "TwoModelConfig",
    "TwoModelResult",
    "arms",
    "check_memory",
    "load_task",
    "read_records",
    "run",
    "run_in_folder",
]
