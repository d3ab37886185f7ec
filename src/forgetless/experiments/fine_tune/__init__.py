"""Fine-tuning of a language model on new text: how much of the old text is lost, and what prevents it.

A small Transformer is pretrained on one text, or a model is taken from a folder; it is then fine-tuned on another text
under each protection. Every protection starts from the same weights and sees the same batches, so that the losses of
one seed differ by the protection alone. The old test text is used for reported numbers and for nothing else.
"""

from typing import TYPE_CHECKING

from forgetless.experiments.fine_tune.config import Arm, FineTuneConfig, arms
from forgetless.experiments.fine_tune.kind import FineTuneRun
from forgetless.lazy import lazily

if TYPE_CHECKING:
    from forgetless.experiments.fine_tune.records import FineTuneRecord
    from forgetless.experiments.fine_tune.result import FineTuneResult
    from forgetless.experiments.fine_tune.running import check_memory, load_texts, run

__all__ = [
    "Arm",
    "FineTuneConfig",
    "FineTuneRecord",
    "FineTuneResult",
    "FineTuneRun",
    "arms",
    "check_memory",
    "load_texts",
    "run",
]

__getattr__ = lazily(
    __name__,
    {
        "FineTuneRecord": "records",
        "FineTuneResult": "result",
        "check_memory": "running",
        "load_texts": "running",
        "run": "running",
    },
)
