"""Ways to protect what earlier models need of shared weights, behind one interface.

Each method is a file of this package: its class with formula and source in the docstring, its options, its label, and
one line that registers it. docs/choosing.md compares them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from forgetless.protection.base import (
    BASELINE,
    PROTECTIONS,
    Decisions,
    Evidence,
    Protection,
    ProtectionOptions,
    StrengthOptions,
)
from forgetless.protection.controls import control_of, is_control, main_of

if TYPE_CHECKING:
    from torch import Tensor


def make_protection(
    options: ProtectionOptions | str, shared_parameters: Iterable[Tensor], *, recall: Any = None, **changes: Any
) -> Protection:
    """A protection, holding nothing yet.

    Args:
        options: Of the protection; or its name, for its defaults.
        shared_parameters: The weights that several models use; all weights of the models for one that `holds_all`.
        recall: Makes an earlier model and its evidence from its decisions; see `Protection`.
        **changes: Options with another value.

    Returns:
        The protection.

    Raises:
        InputError: If the name is unknown, or an option is out of its range.

    >>> import torch
    >>> make_protection("wpl", [torch.zeros(3)], strength=10.0).strength
    10.0
    """
    kind = PROTECTIONS[options] if isinstance(options, str) else options.kind
    made: Protection = kind(shared_parameters, None if isinstance(options, str) else options, recall=recall, **changes)
    return made


__all__ = [
    # the interface
    "Decisions",
    "Evidence",
    "Protection",
    "ProtectionOptions",
    "StrengthOptions",
    # by name
    "BASELINE",
    "PROTECTIONS",
    "make_protection",
    # control arms
    "control_of",
    "is_control",
    "main_of",
]
