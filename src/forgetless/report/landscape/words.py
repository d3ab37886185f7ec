"""Names and numbers of a landscape, as figure, page and terminal write them."""

from collections.abc import Sequence

from forgetless.experiments.landscape.records import ArmRecord
from forgetless.experiments.landscape.result import measures
from forgetless.options import number
from forgetless.protection import BASELINE, PROTECTIONS
from forgetless.report.formats import label, main_of, with_protection


def arm_name(protection: str, strength: float | None) -> str:
    """Name and strength, such as `weight plasticity, α = 10`.

    Args:
        protection: Its name.
        strength: None if it has none.
    """
    kind = PROTECTIONS.get(protection)
    if strength is None or kind is None:
        return label(protection)
    return f"{kind.label}, {kind.told(number(strength))}"


def signed(value: float | None, decimals: int = 3) -> str:
    """A difference of losses with its sign; – for none.

    Args:
        value: In nats.
        decimals: Digits after the point.

    >>> signed(0.2173), signed(-0.0026), signed(0.00004), signed(None)
    ('+0.217', '−0.003', '0.000', '–')
    """
    if value is None:
        return "–"
    text = f"{value:+.{decimals}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def finding(arms: Sequence[ArmRecord]) -> str:
    """How far the shared weights moved and what that cost A, without protection and with it; means over seeds.

    Of several protections it is the one that sentences are about, of several strengths the last.

    Args:
        arms: Those that did not diverge.

    Returns:
        One sentence.
    """
    last = {arm.protection: arm.strength for arm in arms}
    names = [name for name in (BASELINE, main_of(list(last))) if name in last]
    parts: list[str] = []
    for name in names:
        group = [arm for arm in arms if (arm.protection, arm.strength) == (name, last[name])]
        distance, change = mean_of(group, "distance"), _changed(mean_of(group, "rise"))
        who, what = ("they", "it") if parts else ("the shared weights", "A’s loss")
        parts.append(f"{with_protection(name)} {who} moved by {distance:.1f} and {what} {change}")
    return f"{_first_up('; '.join(parts))}." if parts else "Every arm diverged."


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]


def _changed(rise: float | None) -> str:
    text = signed(rise)
    if rise is None or text == "0.000":
        return "stayed as it was"
    return f"{'rose' if rise > 0 else 'fell'} by {text.lstrip('+−')} nats"


def mean_of(arms: Sequence[ArmRecord], key: str) -> float | None:
    """The mean over arms of one of their `measures`; None of nothing.

    Args:
        arms: Those that did not diverge.
        key: Of `measures`.
    """
    values = [value for arm in arms if (value := measures(arm)[key]) is not None]
    return sum(values) / len(values) if values else None
