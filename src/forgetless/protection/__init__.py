"""Ways to protect what earlier models need of shared weights, behind one interface.

Each method is a file with the formula and its source in the docstring:

| name | what it does |
|---|---|
| `none` | nothing: the baseline |
| `freeze` | shared weights stay where the first model left them |
| `l2` | draws every shared weight back equally, whatever the earlier models need |
| `wpl` | the weight plasticity loss: draws each back as strongly as the earlier models need it |
"""

from collections.abc import Iterable

from torch import Tensor

from forgetless.errors import expect_one_of
from forgetless.protection.base import NoProtection, Protection
from forgetless.protection.freeze import Freeze
from forgetless.protection.l2 import L2
from forgetless.protection.wpl import WPL

PROTECTIONS: dict[str, type[Protection]] = {"none": NoProtection, "freeze": Freeze, "l2": L2, "wpl": WPL}

MATCHED = "matched-lr"
"""The control arm: no protection, but smaller steps of the shared weights, as long as those under `wpl`."""

ARMS = (*PROTECTIONS, MATCHED)
"""What experiments compare."""


def make_protection(
    name: str, shared_parameters: Iterable[Tensor], alpha: float = 1e5, *, damping: float = 0.0
) -> Protection:
    """A protection by its name.

    Args:
        name: A key of PROTECTIONS.
        shared_parameters: The weights that several models use.
        alpha: Strength, for those that have one.
        damping: Added to `wpl`'s importance, as a share of its mean; the others have none.

    Returns:
        The protection, holding nothing yet.

    Raises:
        InputError: If the name is unknown.
    """
    expect_one_of("protection", name, PROTECTIONS)
    if name == "wpl":
        return WPL(shared_parameters, alpha, damping)
    return PROTECTIONS[name](shared_parameters, alpha)


__all__ = ["ARMS", "L2", "MATCHED", "PROTECTIONS", "WPL", "Freeze", "NoProtection", "Protection", "make_protection"]
