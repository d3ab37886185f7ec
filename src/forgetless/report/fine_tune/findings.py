"""What a fine-tuning found, in sentences that say no more than its records show."""

import dataclasses
import math
from collections.abc import Sequence

from forgetless.experiments.fine_tune.records import FineTuneRecord, MethodSummary
from forgetless.experiments.fine_tune.result import FineTuneResult
from forgetless.forgetting import Interval, mean_interval
from forgetless.options import number
from forgetless.protection import BASELINE, PROTECTIONS
from forgetless.report.formats import arm_label, counted, ends, in_sentence, label, points, signed
from forgetless.report.sentences import diverged, so_far
from forgetless.tasks.base import decimal

EVIDENCE = {"own-samples": "own samples", "old-data": "old data", "new-inputs": "new inputs"}
"""What a protection sees of the past, in words."""

Method = tuple[str, str | None]
"""A protection, and what it sees of the past: one curve, and one line of costs."""


def method_of(entry: FineTuneRecord | MethodSummary) -> Method:
    """Which curve it is on."""
    return entry.protection, entry.on


def arm_of(entry: FineTuneRecord | MethodSummary) -> tuple[str, str, str | None, float | None]:
    """Which line of a table it is of: all but the seed."""
    return entry.to, entry.protection, entry.on, entry.strength


def method_label(entry: FineTuneRecord | MethodSummary, *, with_strength: bool = True) -> str:
    """Such as `weight plasticity, α = 1, own samples`."""
    strength = entry.strength if with_strength else None
    return ", ".join([arm_label(entry.protection, strength), *([seen(entry.on)] if entry.on else [])])


def seen(on: str | None) -> str:
    """What a protection saw of the past; empty for nothing."""
    return EVIDENCE.get(on, on) if on else ""


def is_budget(protection: str) -> bool:
    """Whether its strength is what the old loss may grow by."""
    kind = PROTECTIONS.get(protection)
    return kind is not None and kind.unit == "nats" and kind.has_strength()


def targets(result: FineTuneResult) -> list[str]:
    """The new texts that have a run, in the order asked for."""
    made = {run.to for run in result.runs}
    return [to for to in result.config.texts.to if to in made]


def text_name(text: str | None) -> str:
    """A text by its name, a folder by the last part of its path."""
    return (text or "the old text").rstrip("/").rpartition("/")[2]


def compared(result: FineTuneResult) -> list[MethodSummary]:
    """The summary, with intervals of the new loss that are of its difference to no protection, seed by seed.

    Seeds have models of their own, some better than others under every protection, which says nothing of protections.
    The unprotected arm itself then has no interval. Without it on the same seeds, intervals are of the loss.
    """
    losses: dict[tuple[str, str, str | None, float | None], dict[int, float]] = {}
    for run in result.runs:
        losses.setdefault(arm_of(run), {})[run.seed] = run.new_after
    entries = result.summary()
    several = {entry.to for entry in entries if entry.protection != BASELINE}
    found = []
    for entry in entries:
        mine, free = losses[arm_of(entry)], losses.get((entry.to, BASELINE, None, None), {})
        if mine.keys() <= free.keys() and entry.to in several:
            apart = mean_interval([loss - free[seed] for seed, loss in mine.items()])
            both = (None if end is None else entry.new.mean + end - apart.mean for end in (apart.low, apart.high))
            low, high = (None, None) if entry.protection == BASELINE else both
            entry = dataclasses.replace(entry, new=Interval(entry.new.mean, low, high))
        found.append(entry)
    return found


def sentences_of(result: FineTuneResult) -> list[str]:
    """The headline, whether budgets held, and, of one new text, what is on the frontier."""
    found = targets(result)
    if not found:
        return lost(result) or ["No run is finished yet."]
    own = frontier(result, found[0]) if len(found) == 1 else []
    return so_far([headline(result), *budgets(result), *own, *lost(result)], result.progress, "runs")


def headline(result: FineTuneResult, *, in_title: bool = False) -> str:
    """What the old text loses without protection; what it loses in all arms, where there is none without.

    A title has no intervals.
    """
    found, old = targets(result), text_name(result.config.texts.old)
    free = {to: [run for run in result.runs if run.to == to and run.protection == BASELINE] for to in found}
    if not all(free.values()):
        rises = [entry.old_increase.mean for entry in result.summary()]
        span = ends(signed(min(rises)), signed(max(rises)))
        return f"After fine-tuning under protection, the loss on {old} differs by {span} nats per token."
    changes = {to: _change(mean_interval([run.increase for run in runs]), in_title) for to, runs in free.items()}
    if len(found) > 1:
        told = " and ".join(f"{change} on {text_name(to)}" for to, change in changes.items())
        told = told.replace(" and rises by ", " and by ") if told.startswith("rises by ") else told
        return f"Fine-tuned without protection, the model’s loss on {old} {told}, in nats per token."
    means = (_mean(free[found[0]], name) for name in ("old_before", "old_after", "new_before", "new_after"))
    old_before, old_after, new_before, new_after = (decimal(mean, 2) for mean in means)
    (to, change) = changes.popitem()
    return (
        f"Fine-tuned on {text_name(to)} without protection, the model’s loss on {old} {change} nats per token "
        f"({old_before} to {old_after}); that on the new text goes from {new_before} to {new_after}."
    )


def frontier(result: FineTuneResult, to: str) -> list[str]:
    """Which methods no other one is better than on both texts, by means over seeds."""
    entries = [entry for entry in result.summary() if entry.to == to]
    best: dict[Method, list[MethodSummary]] = {}
    for entry in entries:
        if not entry.is_dominated:
            best.setdefault(method_of(entry), []).append(entry)
    if len(entries) < 2:
        return []
    told = "; ".join(map(_with_strengths, best.values()))
    count = sum(map(len, best.values()))
    if count == len(entries):
        return [f"Of {count} arms none is better on both texts than another: {told}."]
    better = "this one" if count == 1 else f"these {count}"
    return [f"Of {len(entries)} arms none is better on both texts than {better}: {told}."]


def budgets(result: FineTuneResult, to: str | None = None) -> list[str]:
    """In how many runs what was allowed was kept, on old text that nothing has seen, and how much of it was used."""
    runs = [run for run in result.runs if is_budget(run.protection) and run.strength and to in {None, run.to}]
    told = []
    for method in dict.fromkeys(map(method_of, runs)):
        mine = [run for run in runs if method_of(run) == method]
        held = sum(_is_held(run) for run in mine)
        parts = []
        for budget in dict.fromkeys(run.strength for run in mine):
            its = [run for run in mine if run.strength == budget]
            used = max(0.0, sum(run.increase for run in its) / len(its) / (budget or math.nan))
            kept = f"{sum(map(_is_held, its))} of {len(its)}, " if len(its) < len(mine) else ""
            parts.append(f"{number(budget or 0)} nats: {kept}{points(used, 0)} % used")
        name, of = _name(*method), counted(len(mine), "run")
        told.append(f"{name[0].upper()}{name[1:]} lost no more than allowed in {held} of {of} ({'; '.join(parts)}).")
    return told


def lost(result: FineTuneResult) -> list[str]:
    """Which runs diverged, if any."""
    several = len(result.config.texts.to) > 1
    where = " on {}" if several else ""
    return diverged([(method_label(run) + where.format(text_name(run.to)), run.seed) for run in result.diverged])


def _is_held(run: FineTuneRecord) -> bool:
    return run.strength is not None and run.increase <= run.strength


def _name(protection: str, on: str | None) -> str:
    """A method in a sentence, such as `the weight plasticity loss on own samples`."""
    return in_sentence(protection) + (f" on {seen(on)}" if on else "")


def _with_strengths(entries: Sequence[MethodSummary]) -> str:
    """A method with strengths of its, such as `L2 anchor at α = 1, 10`."""
    kind = PROTECTIONS.get(entries[0].protection)
    strengths = [number(entry.strength) for entry in entries if entry.strength is not None]
    name = label(entries[0].protection) + (f" on {seen(entries[0].on)}" if entries[0].on else "")
    return name if kind is None or not strengths else f"{name} at {kind.told(', '.join(strengths))}"


def _change(rise: Interval, in_title: bool) -> str:
    """Such as `rises by 0.217 [0.2, 0.234]`."""
    text = decimal(abs(rise.mean), 3)
    if float(text) == 0:
        return "changes by 0.000"
    verb, low, high = ("rises", rise.low, rise.high) if rise.mean > 0 else ("falls", rise.high, rise.low)
    if in_title or low is None or high is None:
        return f"{verb} by {text}"
    sign = 1 if rise.mean > 0 else -1
    return f"{verb} by {text} [{decimal(sign * low, 3)}, {decimal(sign * high, 3)}]"


def _mean(runs: Sequence[FineTuneRecord], name: str) -> float:
    return math.fsum(getattr(run, name) for run in runs) / len(runs)
