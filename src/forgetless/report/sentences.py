"""What sentences about two models and about searches have in common: they say no more than the records show."""

from collections.abc import Sequence

from forgetless.forgetting import Interval
from forgetless.protection import BASELINE, PROTECTIONS
from forgetless.report.formats import ends, listed, points, share, share_interval, with_label


def so_far(sentences: Sequence[str], progress: tuple[int, int], what: str) -> list[str]:
    """Sentences of which the first says that something is not finished, if it is not."""
    done, wanted = progress
    first, *others = sentences
    return [first if done == wanted else f"So far, with {done} of {wanted} {what} finished: {first}", *others]


def missing_arm(present: str) -> str:
    """How to ask for both arms where only one was run: the protection to add is one that has a control arm."""
    if present != BASELINE:
        return f"`--protection {BASELINE} {present}`"
    with_control = next((kind.matches for kind in PROTECTIONS.values() if kind.matches), None)
    return f"`--protection {BASELINE} {with_control or next(name for name in PROTECTIONS if name != BASELINE)}`"


def compared(start: str, difference: Interval, more: str, less: str, neither: str) -> str:
    """A sentence that ends by how a difference came out: its interval is above 0, below 0, or includes it.

    Without an interval nothing is said of it.
    """
    if difference.low is None or difference.high is None:
        return f"{start}."
    return f"{start}{more if difference.low > 0 else less if difference.high < 0 else neither}."


def with_and_without(amounts: Sequence[tuple[str, str, str]], unit: str) -> str:
    """Such as `lose 0.2 nats without protection and 0.1 with weight plasticity`: verb, amount and protection each."""
    told: list[str] = []
    for i, (verb, amount, protection) in enumerate(amounts):
        needs_unit = amount != "none" and not any(f" {unit}" in part for part in told)
        start = "" if i and verb == amounts[i - 1][0] else f"{verb} "
        told.append(f"{start}{amount}{f' {unit}' if needs_unit else ''} {with_label(protection)}")
    return " and ".join(told)


def prevented(reduction: Interval) -> str:
    """`99 % of the forgetting was prevented (95 % interval 98 to 100 %)`, or that there is more of it."""
    mean, low, high = reduction.mean, reduction.low, reduction.high
    # More than all of it, where models improved, is told as all. Only a lower end can be without bound.
    capped = None if low is None else min(low, 1.0)
    interval = "one seed, so no interval" if high is None else f"95 % interval {share_interval(capped, min(high, 1.0))}"
    if mean < 0:
        verdict = "made it worse" if high is not None and high < 0 else "did not help"
        return f"protection {verdict} (reduction {share(mean)} %, {interval})"
    return f"{'all' if mean >= 1 else f'{share(mean)} %'} of the forgetting was prevented ({interval})"


def doubts(unprotected: Interval, reduction: Interval) -> list[str]:
    """What keeps a reader from relying on the numbers, if anything."""
    found = []
    if reduction.high is not None and reduction.mean >= 0 and (reduction.low is None or reduction.low <= 0):
        found.append("The interval includes 0: these seeds do not show that the protection helps.")
    if unprotected.low is not None and unprotected.low <= 0:
        found.append("Without protection the seeds do not show forgetting beyond their noise.")
    return found


def unmatched(steps: Sequence[tuple[float, float]], within: float) -> str:
    """Where the steps of a control and a protected arm differ, such as ` (with steps of 80 to 125 % …)`.

    Args:
        steps: The mean step of both, seed by seed.
        within: The relative difference that is not worth saying.
    """
    apart = [(found, wanted) for found, wanted in steps if abs(found - wanted) > within * wanted]
    if not apart:
        return ""
    ratios = [found / wanted for found, wanted in apart if wanted]
    sizes = f"{ends(points(min(ratios), 0), points(max(ratios), 0))} %" if ratios else "any number of times"
    some = f"in {len(apart)} of {len(steps)} seeds " if len(steps) > 1 else ""
    return f" ({some}with steps of {sizes} the protected arm's size)"


def diverged(arms: Sequence[tuple[str, int]]) -> list[str]:
    """Which arms diverged, each with its seed, in one sentence; none if none did."""
    seeds: dict[str, list[str]] = {}
    for arm, seed in arms:
        seeds.setdefault(arm, []).append(str(seed))
    told = "; ".join(f"{arm} with seed{'s' * (len(found) > 1)} {listed(found)}" for arm, found in seeds.items())
    return [f"Diverged, and in no mean: {told}. A lower learning rate may help."] if told else []
