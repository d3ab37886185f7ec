"""What a landscape found, in sentences that say no more than its records show."""

from forgetless.experiments.landscape.result import LandscapeResult
from forgetless.forgetting import Interval
from forgetless.protection import BASELINE, main_of
from forgetless.report.formats import NOTHING, arm_label, points, signed, with_protection
from forgetless.report.sentences import diverged


def finding(result: LandscapeResult) -> str:
    """How far the shared weights moved and what that cost A, without protection and with it; means over seeds.

    Of several protections it is the one that sentences are about, of several strengths the last.
    """
    last = {entry.protection: entry for entry in result.summary()}
    parts: list[str] = []
    for name in [name for name in (BASELINE, main_of(last) or "") if name in last]:
        distance, change = mean_of(last[name].distance), _changed(mean_of(last[name].rise))
        who, what = ("they", "it") if parts else ("the shared weights", "A’s loss")
        parts.append(f"{with_protection(name)} {who} moved by {distance:.1f} and {what} {change}")
    told = "; ".join(parts)
    return f"{told[0].upper()}{told[1:]}." if told else "Every arm diverged."


def details(result: LandscapeResult) -> list[str]:
    """What the Fisher information expected, and how much of the paths the plane shows."""
    entries = {arm_label(entry.protection, entry.strength): entry for entry in result.summary()}
    expected = [f"{name}: {signed(mean_of(entry.predicted))}" for name, entry in entries.items()]
    shown = [(name, entry.share_of_length) for name, entry in entries.items()]
    told = [f"{name}: {points(share.mean, 0)} %" for name, share in shown if share is not None]
    weights = f"{next(iter(result.surfaces.values())).num_weights:,}"
    return [
        f"These are {over_seeds(result)}." if result.num_seeds > 1 else "This is one seed.",
        f"What the Fisher information expects of A’s loss, in nats: {'; '.join(expected)}.",
        f"The plane has two of {weights} directions. What it shows of the paths’ length: {'; '.join(told)}.",
        *lost(result),
    ]


def lost(result: LandscapeResult) -> list[str]:
    """Which arms diverged, if any."""
    arms = [arm for arm in result.arms if arm.is_diverged]
    return diverged([(arm_label(arm.protection, arm.strength), arm.seed) for arm in arms])


def mean_of(interval: Interval | None) -> float | None:
    """Its mean; None of nothing."""
    return None if interval is None else interval.mean


def over_seeds(result: LandscapeResult) -> str:
    """What numbers are."""
    return f"means over {result.num_seeds} seeds" if result.num_seeds > 1 else "one seed"


def _changed(rise: float | None) -> str:
    text = signed(rise)
    if text in {NOTHING, "0.000"}:
        return "stayed as it was"
    return f"{'rose' if text[0] == '+' else 'fell'} by {text[1:]} nats"
