"""What was found, in sentences that do not say more than the runs show."""

from collections.abc import Mapping, Sequence
from typing import Any

from forgetless.experiments.two_model import TwoModelResult
from forgetless.experiments.two_model.selection import Panel, Side
from forgetless.forgetting import Interval, mean_interval
from forgetless.options import number
from forgetless.protection import BASELINE, PROTECTIONS, control_of
from forgetless.report import formats
from forgetless.report.sentences import compared, doubts, missing_arm, prevented, so_far, unmatched
from forgetless.report.two_model.shown import Shown
from forgetless.tasks import TASKS

_UNIT = TASKS["images"].unit

# Below this many points of accuracy a difference of B is shown as 0.0 and said to be nothing.
_NOTHING = 0.05

# The control arm's steps are matched to within 5 %, seed by seed.
_MATCHED_WITHIN = 0.06


def headline(result: TwoModelResult) -> str:
    """What was found, in a few sentences; the first says the most.

    It says how much A lost without and with protection (one that has a control arm, or the first), how much of that
    was prevented, what B pays, what the control arm prevents, and what keeps one from relying on it: a single seed, an
    interval that includes 0, arms that are missing, runs that are not finished. Over several panels it gives ranges.
    """
    return " ".join(headline_sentences(Shown(result)))


def headline_sentences(shown: Shown) -> list[str]:
    """The sentences of `headline`, at least one."""
    result, main = shown.result, shown.main
    if not result.runs:
        return shown.diverged or ["No run is finished yet."]
    finished, diverged = ({run.protection for run in runs} for runs in (result.runs, result.diverged))
    if BASELINE in diverged - finished:
        sentences = ["Without protection every run diverged, so there is nothing to compare with."]
    else:
        sentences = finding(shown, shown.panels[0]) if len(shown.panels) == 1 else _over_panels(shown)
    if main is not None and len(strengths := shown.strengths[main]) > 1:
        chosen = f"{PROTECTIONS[main].symbol} = {number(shown.chosen[main] or 0.0)}"
        sentences.append(f"This is at {chosen}, chosen among {len(strengths)} on validation data.")
    return so_far([*sentences, *shown.diverged], result.progress, "runs")


def finding(shown: Shown, panel: Panel) -> list[str]:
    """A few sentences on one panel: A's loss without and with protection, B's price, and what the control arm says."""
    pair = shown.pairs[panel]
    if not pair:
        return _one_arm(shown, panel)
    free, held = pair
    sentences = [_compared(free, held, shown.later)]
    if shown.is_chain:
        sentences.append(_averaged(shown, *(formats.points(arm.mean("mean_forgetting")) for arm in pair)))
    if held.summary.reduction is not None:
        sentences += doubts(free.summary.forgetting, held.summary.reduction) + _control(shown, panel, held)
    return sentences


def _one_arm(shown: Shown, panel: Panel) -> list[str]:
    """What can be said without a comparison, and which arm it takes."""
    found = {group.protection: group for group in shown.groups(panel)}
    name = _first_of(shown, found)
    before, after, b = (
        formats.points(found[name].mean(key)) for key in ("accuracy_a_before", "accuracy_a_after", "accuracy_b")
    )
    cost = f"{_cost(found[name].mean('forgetting'))} {formats.with_protection(name)}"
    told = f"Training {shown.later} {cost} ({before} to {after} %), and B reached {b} %."
    return [told, _missing(name)]


def _first_of(shown: Shown, present: Mapping[str, Any]) -> str:
    """Which arm to describe where there is nothing to compare."""
    return next((name for name in (BASELINE, shown.main) if name and name in present), next(iter(present)))


def _missing(present: str) -> str:
    arms = missing_arm(present)
    if present == BASELINE:
        return f"How much a protection prevents takes a protected arm of the same seeds, such as {arms}."
    return f"How much of it was prevented takes an unprotected arm of the same seeds: {arms}."


def _compared(free: Side, held: Side, models: str) -> str:
    # Differences of equal accuracies may leave a rounding error in their mean.
    lost, kept = (round(side.summary.forgetting.mean, 9) for side in (free, held))
    how, price = formats.with_protection(held.protection), _price(held.cost)
    start = f"Training {models} {_cost(lost)} without protection"
    if held.summary.reduction is None:
        before, after = (
            formats.points(getattr(free.summary, key).mean) for key in ("accuracy_a_before", "accuracy_a_after")
        )
        return (
            f"{start} ({before} to {after} %), so there is no forgetting to reduce; {how} A ends at "
            f"{formats.points(held.summary.accuracy_a_after.mean)} %, and {price}."
        )
    told = f"{prevented(held.summary.reduction)}, and {price}."
    if kept < 0:
        return f"{start}; {how} A gained {_UNIT.amount(-kept)}: {told}"
    return f"{start} and {_UNIT.amount(kept) if kept else 'nothing'} {how}: {told}"


def _cost(lost: float) -> str:
    if not round(lost, 9):
        return "cost A nothing"
    return f"cost A {_UNIT.amount(lost)} {_UNIT.name}" if lost > 0 else f"improved A by {_UNIT.amount(-lost)} points"


def _price(cost: float) -> str:
    if abs(100 * cost) < _NOTHING:
        return "B pays nothing"
    return (
        f"B pays {formats.points(cost)} points"
        if cost > 0
        else f"B ends {formats.points(-cost)} points higher than unprotected"
    )


def _control(shown: Shown, panel: Panel, held: Side) -> list[str]:
    """How the protection compares with smaller steps alone, where that arm has the same seeds."""
    sides = shown.compared(panel, BASELINE, held.protection, control_of(held.protection) or "")
    if not sides or len(sides[-1].runs) < len(held.runs):
        return []
    control = sides[-1].summary.reduction
    assert control is not None  # since there is one of the held arm, over the same seeds
    pairs = list(zip(sides[-1].runs, held.runs, strict=True))
    steps = unmatched([(run.mean_step, wanted.mean_step) for run, wanted in pairs], _MATCHED_WITHIN)
    more = mean_interval([run.forgetting - protected.forgetting for run, protected in pairs])
    name, amount = formats.in_sentence(held.protection), _UNIT.amount(abs(more.mean))
    return [
        compared(
            "The control arm, no protection but smaller steps of the shared weights, prevented "
            f"{formats.share(control.mean)} %{steps}",
            more,
            more=f"; {name} keeps {amount} points more of A",
            less=f", and keeps {amount} points more of A than {name}",
            neither=f"; over these {len(pairs)} seeds the two are not significantly different",
        )
    ]


def _over_panels(shown: Shown) -> list[str]:
    pairs = [pair for pair in shown.pairs.values() if pair]
    if not pairs:
        losses: dict[str, list[float]] = {}
        for group in shown.groups():
            losses.setdefault(group.protection, []).append(group.mean("forgetting"))
        name = _first_of(shown, losses)
        cost = f"cost A {formats.span(losses[name])} {_UNIT.name} {formats.with_protection(name)}"
        return [f"In {len(losses[name])} settings, training {shown.later} {cost}.", _missing(name)]
    arms = tuple(zip(*pairs, strict=True))
    lost, kept = (formats.span(side.summary.forgetting.mean for side in arm) for arm in arms)
    held = arms[1]
    told = _range_of_reductions([side.summary.reduction for side in held])
    highest = max(side.cost for side in held)
    sentences = [
        (
            f"In {len(pairs)} settings, training {shown.later} cost A {lost} {_UNIT.name} without protection and "
            f"{kept} {formats.with_protection(held[0].protection)}: {told}."
        ),
        f"B pays {f'at most {formats.points(highest)} points' if 100 * highest >= _NOTHING else 'nothing'}.",
    ]
    if shown.is_chain:
        sentences.append(
            _averaged(shown, *(formats.span(side.mean("mean_forgetting") for side in arm) for arm in arms))
        )
    return sentences


def _range_of_reductions(reductions: Sequence[Interval | None]) -> str:
    found = sorted(reduction.mean for reduction in reductions if reduction is not None)
    if not found:
        return "without protection there is no forgetting to reduce"
    low, high = (formats.share(min(value, 1.0)) for value in (found[0], found[-1]))
    told = f"{formats.ends(low, high)} % of the forgetting was prevented"
    if worse := sum(value < 0 for value in found):
        told += f"; with protection it was more in {worse} of them"
    if idle := len(reductions) - len(found):
        told += f"; in {idle} of them there was no forgetting to reduce"
    return told


def _averaged(shown: Shown, without: str, with_: str) -> str:
    kept = formats.listed(shown.letters[:-1])
    return f"Averaged over {kept}, {without} points are lost without protection, {with_} with it."
