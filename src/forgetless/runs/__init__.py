"""Run folders: what a run was asked, on what machine, and every result as it came."""

from forgetless.runs.environment import environment
from forgetless.runs.files import write_atomically
from forgetless.runs.folder import (
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
    SEARCH,
    TENSORBOARD,
    TWO_MODEL,
    RunFolder,
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
    "SEARCH",
    "TENSORBOARD",
    "TWO_MODEL",
    "RunFolder",
    "environment",
    "write_atomically",
]
