"""Two models that share hidden layers: how much of A is lost while B trains, and what protects it.

Figures 1 and 3 of Benyahia et al., Overcoming Multi-Model Forgetting, ICML 2019 (arXiv:1902.08232). Model A is
trained to convergence, or stopped on the way; then B trains on the same data, on some of A's layers, and A's accuracy
is followed. Every protection sees the same initial weights and the same batches, so that curves of one seed differ by
the protection alone.
"""

from typing import TYPE_CHECKING

from forgetless.experiments.two_model.config import Arm, TwoModelConfig, arms
from forgetless.experiments.two_model.kind import TwoModelRun
from forgetless.lazy import lazily

if TYPE_CHECKING:
    from forgetless.experiments.two_model.result import TwoModelResult
    from forgetless.experiments.two_model.running import check_memory, load_task, run

__all__ = [
    "Arm",
    "TwoModelConfig",
    "TwoModelResult",
    "TwoModelRun",
    "arms",
    "check_memory",
    "load_task",
    "run",
]

__getattr__ = lazily(
    __name__,
    {
        "TwoModelResult": "result",
        "check_memory": "running",
        "load_task": "running",
        "run": "running",
    },
)
