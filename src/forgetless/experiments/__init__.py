"""The kinds of runs: each is a file, or a folder, of this package; one line registers it."""

from forgetless.experiments.base import RUN_KINDS, RunKind, load_config, load_result

__all__ = ["RUN_KINDS", "RunKind", "load_config", "load_result"]
