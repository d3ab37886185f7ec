"""Protections × strategies × seeds on one space: which searches to make, which differences to test, and doing it."""

from typing import TYPE_CHECKING

from forgetless.comparison.config import ComparisonConfig, Measure, Row
from forgetless.lazy import lazily

if TYPE_CHECKING:
    from forgetless.comparison.run import (
        Unit,
        check,
        is_finished,
        read_evaluation,
        read_failures,
        read_unit,
        run_comparison,
        units,
    )

__all__ = [
    # what to do
    "ComparisonConfig",
    "Measure",
    "Row",
    # doing it
    "Unit",
    "check",
    "is_finished",
    "read_evaluation",
    "read_failures",
    "read_unit",
    "run_comparison",
    "units",
]

__getattr__ = lazily(
    __name__,
    dict.fromkeys(
        (
            "Unit",
            "check",
            "is_finished",
            "read_evaluation",
            "read_failures",
            "read_unit",
            "run_comparison",
            "units",
        ),
        "run",
    ),
)
