"""Run folders: what a run was asked, on what machine, and every result as it came."""

from forgetless.runs.environment import environment
from forgetless.runs.files import read_sealed, write_atomically, write_sealed
from forgetless.runs.folder import RunFolder, writing_to
from forgetless.runs.names import (
    CHECKPOINT,
    CHECKPOINT_BEFORE,
    COMPARE,
    CONFIG,
    ENVIRONMENT,
    EVALUATION,
    EXPERIMENT,
    INTERFERENCE,
    METRICS,
    REPORT,
    SCORES,
    SEARCH,
    TENSORBOARD,
)

__all__ = [
    "CHECKPOINT",
    "CHECKPOINT_BEFORE",
    "COMPARE",
    "CONFIG",
    "ENVIRONMENT",
    "EVALUATION",
    "EXPERIMENT",
    "INTERFERENCE",
    "METRICS",
    "REPORT",
    "SCORES",
    "SEARCH",
    "TENSORBOARD",
    "RunFolder",
    "environment",
    "read_sealed",
    "write_atomically",
    "write_sealed",
    "writing_to",
]
