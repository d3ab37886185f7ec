"""How numbers are written and what protections are called: the same in pictures, on the page and in the terminal."""

import math
from collections.abc import Iterable, Sequence

from forgetless.forgetting import Interval
from forgetless.options import number
from forgetless.protection import BASELINE, PROTECTIONS, Protection, is_control
from forgetless.tasks.base import decimal

NOTHING = "–"
NOTHING_TO_REDUCE = "none to reduce"

# Numbers


def points(fraction: float, decimals: int = 1) -> str:
    """A fraction in per cent or points, without the sign.

    >>> points(0.1423), points(-0.0001), points(-0.02)
    ('14.2', '0.0', '−2.0')
    """
    return decimal(100 * fraction, decimals)


def signed(value: float | None, decimals: int = 3) -> str:
    """A difference with its sign; – for none.

    >>> signed(0.2173), signed(-0.0026), signed(0.00004), signed(None)
    ('+0.217', '−0.003', '0.000', '–')
    """
    if value is None:
        return NOTHING
    text = decimal(value, decimals)
    return f"+{text}" if float(text.replace("−", "-")) > 0 else text


def span(fractions: Iterable[float], decimals: int = 1) -> str:
    """The least and the greatest in points, or the one number if they read the same."""
    values = sorted(fractions)
    return ends(points(values[0], decimals), points(values[-1], decimals))


def ends(low: str, high: str) -> str:
    """`3 to 5`, or `3` if both are."""
    return low if low == high else f"{low} to {high}"


def share(value: float) -> str:
    """A reduction in per cent, with as many digits as keep it apart from 100; without the sign.

    >>> share(0.99986), share(0.6), share(1.2)
    ('99.99', '60', '120')
    """
    decimals = next((d for d in (0, 1, 2) if f"{100 * value:.{d}f}" != f"{100:.{d}f}"), 0)
    return points(value, 0 if value > 1 else decimals)


def share_interval(low: float | None, high: float | None) -> str:
    """The ends of a reduction's interval, such as `98 to 100 %`; an end without bound is said to be so."""
    if low is None or high is None:
        least = "no lower bound" if low is None else f"from {share(low)} %"
        return f"{least} and {'no upper bound' if high is None else f'at most {share(high)} %'}"
    return f"{ends(share(low), share(high))} %"


def plus_minus(estimate: Interval | None, decimals: int = 3, scale: float = 1.0, *, narrow: bool = False) -> str:
    """Mean ± half the width of the interval, – for nothing; narrow, a half of two digits has no decimals.

    >>> plus_minus(Interval(93.512, 93.4, 93.624), 2), plus_minus(None)
    ('93.51 ±0.11', '–')
    """
    if estimate is None or math.isnan(estimate.mean):
        return NOTHING
    mean = decimal(scale * estimate.mean, decimals)
    if estimate.high is None:
        return mean
    half = scale * (estimate.high - estimate.mean)
    return f"{mean} ±{decimal(half, 0 if narrow and half >= 10 - 0.5 * 10**-decimals else decimals)}"


def bracketed(estimate: Interval, decimals: int, scale: float = 1.0) -> str:
    """Mean and the ends of the interval, −∞ where there is no lower bound.

    >>> bracketed(Interval(0.75, None, 0.85), 0, 100)
    '75 [−∞, 85]'
    """
    if math.isnan(estimate.mean):
        return NOTHING
    mean, low, high = (decimal(scale * (end or 0.0), decimals) for end in (estimate.mean, estimate.low, estimate.high))
    # Only a lower end can be without bound: without an upper end there is no interval.
    return mean if estimate.high is None else f"{mean} [{'−∞' if estimate.low is None else low}, {high}]"


def probability(p: float | None) -> str:
    """A p value; – where there is no test."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: float) -> str:
    """Such as `1 h 20 min`, `3 min 5 s`, `4.2 s`.

    >>> duration(4.21), duration(185.2), duration(4800)
    ('4.2 s', '3 min 5 s', '1 h 20 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def or_nothing(strength: float | None) -> str:
    """A strength in a table; empty for none."""
    return "" if strength is None else number(strength)


# Words


def counted(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def unfinished(progress: tuple[int, int], what: str) -> list[str]:
    """A note, where something is."""
    done, wanted = progress
    return [f"Unfinished: {done} of {wanted} {what}. Go on with `forgetless resume`."] if done < wanted else []


def listed(names: Sequence[str]) -> str:
    """`B`, `B and C`, `B to F`."""
    if len(names) > 3:
        return f"{names[0]} to {names[-1]}"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# Protections


def label(protection: str) -> str:
    """What figures and tables call a protection; one that is not there any more goes by its name."""
    kind = PROTECTIONS.get(protection)
    return protection if kind is None else kind.label


def in_sentence(protection: str) -> str:
    """What sentences call a protection: `the L2 anchor`."""
    kind = PROTECTIONS.get(protection)
    return (kind.in_sentence or kind.label) if kind else protection


def with_protection(protection: str) -> str:
    """How sentences say that something is under a protection: `with the L2 anchor`, `without protection`."""
    return "without protection" if protection == BASELINE else f"with {in_sentence(protection)}"


def with_label(protection: str) -> str:
    """The same in a title, in short."""
    return "without protection" if protection == BASELINE else f"with {label(protection)}"


def arm_label(protection: str, strength: float | None = None) -> str:
    """Name and strength, such as `weight plasticity, α = 1e5`; for a control arm, that it is one."""
    name = label(protection)
    if is_control(protection):
        return f"{name} (control)"
    # The strength stays in one piece where a line is broken.
    if strength is None or protection not in PROTECTIONS:
        return name
    return f"{name}, {PROTECTIONS[protection].told(number(strength))}"


def strength_heading(protections: Iterable[str]) -> str:
    """Heads a column of strengths: what they are called, or `strength` where that differs.

    >>> strength_heading(["none", "wpl"]), strength_heading(["wpl", "wpl-tolerance"])
    ('α', 'strength')
    """
    kinds = [PROTECTIONS[name] for name in protections if name in PROTECTIONS]
    symbols = {kind.symbol for kind in kinds if kind.has_strength()}
    return "strength" if len(symbols) > 1 else next(iter(symbols), Protection.symbol)
