"""Control arms, which are matched to a protection, and which protection findings are about."""

from collections.abc import Iterable

from forgetless.protection.base import BASELINE, PROTECTIONS


def is_control(protection: str) -> bool:
    """Whether an arm is a control: matched to a protection, without protecting.

    Args:
        protection: Its name; one that is not registered any more is none.
    """
    kind = PROTECTIONS.get(protection)
    return kind is not None and kind.matches is not None


def control_of(protection: str) -> str | None:
    """The control arm that is matched to a protection; None if there is none.

    Args:
        protection: Its name.
    """
    return next((kind.name for kind in PROTECTIONS.values() if kind.matches == protection), None)


def main_of(present: Iterable[str]) -> str | None:
    """The protection that findings are about: one that has a control arm, or else the first; None without any.

    Args:
        present: Names of arms.

    >>> main_of(["none", "l2", "wpl", "matched-lr"]), main_of(["none", "l2"]), main_of(["none"])
    ('wpl', 'l2', None)
    """
    held = [name for name in present if name != BASELINE and not is_control(name)]
    return next((name for name in held if control_of(name)), next(iter(held), None))
