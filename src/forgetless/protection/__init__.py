"""Ways to protect what earlier models need of shared weights, behind one interface.

Each method is a file with the formula and its source in the docstring:

| name | what it does |
|---|---|
| `none` | nothing: the baseline |
| `freeze` | shared weights stay where the first model left them |
| `l2` | draws every shared weight back equally, whatever the earlier models need |
| `wpl` | the weight plasticity loss: draws each back as strongly as the earlier models need it |
| `wpl-tolerance` | the same with the least α under which the earlier models lose no more than a tolerance |
| `coupling` | as `wpl` with the full curvature in place of its diagonal, the earlier models' own weights refitted |
| `ewc` | elastic weight consolidation: all weights of each earlier model, each drawn back to where that model had it |
| `mas` | memory aware synapses: as strongly as the earlier models' outputs depend on it |
| `si` | synaptic intelligence: as strongly as its way lowered the earlier models' losses |
| `nsas` | trains an archive of diverse earlier models along |
| `ogl` | steps only where the earlier models' predictions stay, to first order |
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from forgetless.errors import expect_one_of
from forgetless.protection.base import Decisions, Evidence, Loss, NoProtection, Protection
from forgetless.protection.coupling import Coupling
from forgetless.protection.ewc import EWC
from forgetless.protection.freeze import Freeze
from forgetless.protection.l2 import L2
from forgetless.protection.mas import MAS
from forgetless.protection.nsas import NSAS
from forgetless.protection.ogl import OGL
from forgetless.protection.si import SI
from forgetless.protection.tolerance import ToleranceWPL
from forgetless.protection.wpl import WPL

PROTECTIONS: dict[str, type[Protection]] = {
    "none": NoProtection,
    "freeze": Freeze,
    "l2": L2,
    "wpl": WPL,
    "wpl-tolerance": ToleranceWPL,
    "coupling": Coupling,
    "ewc": EWC,
    "mas": MAS,
    "si": SI,
    "nsas": NSAS,
    "ogl": OGL,
}

STRENGTHS = tuple(dict.fromkeys(kind.strength for kind in PROTECTIONS.values() if kind.strength is not None))
"""The options that an experiment's configuration has for the strengths of the protections."""

MATCHED = "matched-lr"
"""The control arm: no protection, but smaller steps of the shared weights, as long as those under `wpl`."""

ARMS = (*PROTECTIONS, MATCHED)
"""What experiments compare."""


def make_protection(
    name: str, shared_parameters: Iterable[Tensor], alpha: float | None = None, **options: Any
) -> Protection:
    """A protection by its name.

    Args:
        name: A key of PROTECTIONS.
        shared_parameters: The weights that several models use.
        alpha: Strength, for those that have one; the tolerance of `wpl-tolerance`. Each has its own default.
        **options: Keywords of some protections, such as `damping`; a protection that lacks one does without it.

    Returns:
        The protection, holding nothing yet.

    Raises:
        InputError: If the name, or an option, is one of no protection.
    """
    expect_one_of("protection", name, PROTECTIONS)
    known = {option for kind in PROTECTIONS.values() for option in kind.options}
    for option in options:
        expect_one_of("option", option, known)
    kind = PROTECTIONS[name]
    strength = () if alpha is None else (alpha,)
    return kind(shared_parameters, *strength, **{key: value for key, value in options.items() if key in kind.options})


__all__ = [
    "ARMS",
    "EWC",
    "L2",
    "MAS",
    "MATCHED",
    "NSAS",
    "OGL",
    "PROTECTIONS",
    "SI",
    "STRENGTHS",
    "WPL",
    "Coupling",
    "Decisions",
    "Evidence",
    "Freeze",
    "Loss",
    "NoProtection",
    "Protection",
    "ToleranceWPL",
    "make_protection",
]
