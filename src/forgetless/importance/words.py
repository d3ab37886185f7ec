"""Warnings that point at the user's line."""

import sys
import warnings


def warn(message: str) -> None:
    """Warn where the package was called from.

    Args:
        message: One or two sentences.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("forgetless."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level + 1)
