"""What was found, in sentences that do not say more than the runs show."""

from collections.abc import Mapping, Sequence
from typing import Any

from forgetless.experiments.two_model import TwoModelResult
from forgetless.forgetting import mean_interval
from forgetless.options import number
from forgetless.protection import BASELINE
from forgetless.report.two_model.groups import (
    Panel,
    Run,
    chosen_strength,
    control_of,
    diverged_arms,
    groups,
    later_models,
    listed,
    main_protection,
    mean_forgetting,
    panels,
    points,
    progress,
    share,
    share_interval,
    share_number,
    span,
    symbol_of,
    with_protection,
)

# Below this many points of accuracy a difference of B is shown as 0.0 and told as nothing.
_NOTHING = 0.05

# The control arm's steps are matched to within 5 %, seed by seed.
_MATCHED_WITHIN = 0.06


def headline(result: TwoModelResult) -> str:
    """What was found, in a few sentences; the first says the most.

    It tells how much A lost without and with protection (`wpl`, or the first other one), how much of that was
    prevented, what B pays, what the control arm prevents, and what keeps one from relying on it: a single seed, an
    interval that includes 0, arms that are missing, runs that are not finished.

    Args:
        result: The runs, all or some of those asked for.

    Returns:
        The finding of the one panel, or the range over several panels.
    """
    return " ".join(headline_sentences(result))


def headline_sentences(result: TwoModelResult) -> list[str]:
    """The sentences of `headline`.

    Args:
        result: The runs, all or some of those asked for.

    Returns:
        At least one sentence.
    """
    if not result.runs:
        return [diverged_arms(result) or "No run is finished yet."]
    done, wanted = progress(result)
    shown = panels(result)
    finished, diverged = ({run["protection"] for run in runs} for runs in (result.runs, result.diverged))
    if BASELINE in diverged - finished:
        first, others = "Without protection every run diverged, so there is nothing to compare with.", list[str]()
    else:
        first, *others = _finding(result, shown[0]) if len(shown) == 1 else _over_panels(result, shown)
    main = main_protection(result)
    strengths = {run["strength"] for run in result.runs if run["protection"] == main} - {None}
    if main is not None and len(strengths) > 1:
        strength = number(chosen_strength(result, main) or 0.0)
        others.append(
            f"This is told of {symbol_of(main)} = {strength}, chosen among {len(strengths)} on validation data."
        )
    if result.diverged:
        others.append(diverged_arms(result))
    if done < wanted:
        first = f"So far, with {done} of {wanted} runs finished: {first}"
    return [first, *others]


def finding(result: TwoModelResult, panel: Panel) -> str:
    """What was found in one panel: A's loss without and with protection, B's price, and what the control arm says.

    Args:
        result: The runs.
        panel: One of `panels(result)`.

    Returns:
        A few sentences.
    """
    return " ".join(_finding(result, panel))


def paired(result: TwoModelResult, panel: Panel) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Summaries of the unprotected arm and of the main protection's, over the seeds that both have.

    Args:
        result: The runs.
        panel: One of `panels(result)`.

    Returns:
        Two dicts as `TwoModelResult.summary` makes them, with the runs under `runs`; None if one arm is missing.
    """
    found = {group.protection: group.runs for group in groups(result, panel)}
    main = main_protection(result)
    if main is None or BASELINE not in found or main not in found:
        return None
    seeds = {run["seed"] for run in found[BASELINE]} & {run["seed"] for run in found[main]}
    free, held = ([run for run in found[name] if run["seed"] in seeds] for name in (BASELINE, main))
    return (_summary(result, free, free), _summary(result, held, free)) if seeds else None


def _summary(result: TwoModelResult, runs: Sequence[Run], plain: Sequence[Run]) -> dict[str, Any]:
    """The summary of one group of runs against the unprotected runs of the same seeds, with the runs themselves."""
    key = (runs[0]["protection"], runs[0]["strength"])
    both = [*plain, *(run for run in runs if run["protection"] != BASELINE)]
    entries = TwoModelResult(result.config, both).summary()
    return {**next(e for e in entries if (e["protection"], e["strength"]) == key), "runs": list(runs)}


def _finding(result: TwoModelResult, panel: Panel) -> list[str]:
    pair = paired(result, panel)
    later = listed(later_models(result))
    if pair is None:
        return _one_arm(result, panel, later)
    free, held = pair
    sentences = [_compared(free, held, later)]
    if result.config.chain.models > 2:
        without, with_ = (points(_mean_over_models(arm["runs"])) for arm in (free, held))
        sentences.append(_averaged(result, without, with_))
    if held["reduction"] is not None:
        sentences += _doubts(free, held) + _control(result, panel, free, held)
    return sentences


def _one_arm(result: TwoModelResult, panel: Panel, later: str) -> list[str]:
    """What can be said without a comparison, and which arm it takes."""
    found = {group.protection: group for group in groups(result, panel)}
    name = next((name for name in (BASELINE, main_protection(result)) if name in found), next(iter(found)))
    group = found[name]
    before, after, b = (
        points(mean_interval(group.values(key)).mean) for key in ("accuracy_a_before", "accuracy_a_after", "accuracy_b")
    )
    lost = round(mean_interval(group.values("forgetting")).mean, 9)
    told = f"Training {later} {_cost(lost)} {with_protection(name)} ({before} to {after} %), and B reached {b} %."
    return [told, _missing(name)]


def _missing(present: str) -> str:
    if present == BASELINE:
        return (
            "How much a protection prevents takes a protected arm of the same seeds, such as `--protection none wpl`."
        )
    return f"How much of it was prevented takes an unprotected arm of the same seeds: `--protection none {present}`."


def _compared(free: Mapping[str, Any], held: Mapping[str, Any], later: str) -> str:
    # Differences of equal accuracies may leave a rounding error in their mean.
    lost, kept = (round(summary["forgetting"]["mean"], 9) for summary in (free, held))
    prevented = held["reduction"]
    how, price = with_protection(held["protection"]), _price(held["cost_b"]["mean"])
    start = f"Training {later} {_cost(lost)} without protection"
    if prevented is None:
        before, after, protected = (
            points(value["mean"])
            for value in (free["accuracy_a_before"], free["accuracy_a_after"], held["accuracy_a_after"])
        )
        return (
            f"{start} ({before} to {after} %), so there is no forgetting to reduce; {how} A ends at {protected} %, "
            f"and {price}."
        )
    # Where A improved, more than all of it: told as all.
    capped = {end: None if prevented[end] is None else min(prevented[end], 1.0) for end in ("low", "high")}
    ends = f"95 % interval {share_interval(capped)}" if held["num_seeds"] > 1 else "one seed, so no interval"
    if prevented["mean"] < 0:
        surely = held["num_seeds"] > 1 and prevented["high"] is not None and prevented["high"] < 0
        verdict = "protection made it worse" if surely else "protection did not help"
        return f"{start} and {_amount(kept)} {how}: {verdict} (reduction {share(prevented)}, {ends}), and {price}."
    much = "all" if prevented["mean"] >= 1 else share(prevented)
    told = f"{much} of the forgetting was prevented ({ends}), and {price}."
    if kept < 0:
        return f"{start}; {how} A gained {_amount(-kept)}: {told}"
    return f"{start} and {_amount(kept) if kept else 'nothing'} {how}: {told}"


def _amount(fraction: float) -> str:
    """Points with one decimal, or more where that would read 0.0."""
    return points(fraction, next((d for d in (1, 2, 3) if float(f"{100 * fraction:.{d}f}")), 1))


def _cost(lost: float) -> str:
    if not lost:
        return "cost A nothing"
    return f"cost A {_amount(lost)} points of accuracy" if lost > 0 else f"improved A by {_amount(-lost)} points"


def _price(cost: float) -> str:
    if abs(100 * cost) < _NOTHING:
        return "B pays nothing"
    return f"B pays {points(cost)} points" if cost > 0 else f"B ends {points(-cost)} points higher than unprotected"


def _doubts(free: Mapping[str, Any], held: Mapping[str, Any]) -> list[str]:
    """What keeps a reader from relying on the numbers, if anything."""
    if held["num_seeds"] < 2:
        return []
    doubts = []
    low = free["forgetting"]["low"]
    if low is not None and low <= 0:
        doubts.append(
            f"The unprotected loss varies so much between these {free['num_seeds']} seeds that its own 95 % interval "
            "includes 0: more seeds would tell."
        )
    low = held["reduction"]["low"]
    if held["reduction"]["mean"] >= 0 and (low is None or low <= 0):
        doubts.append("The reduction's interval includes 0: these runs do not show that the protection helps.")
    return doubts


def _control(result: TwoModelResult, panel: Panel, free: Mapping[str, Any], held: Mapping[str, Any]) -> list[str]:
    """How the protection compares with smaller steps alone, where that arm has the same seeds."""
    control_arm = control_of(held["protection"])
    runs = {run["seed"]: run for g in groups(result, panel) if g.protection == control_arm for run in g.runs}
    seeds = [run["seed"] for run in held["runs"]]
    if control_arm is None or not set(seeds) <= set(runs):
        return []
    control = _summary(result, [runs[seed] for seed in seeds], free["runs"])["reduction"]
    start = f"The control arm, no protection but smaller steps of the shared weights, prevented {share(control)}"
    steps = [(runs[run["seed"]]["mean_step"], run["mean_step"]) for run in held["runs"]]
    if apart := [pair for pair in steps if abs(pair[0] - pair[1]) > _MATCHED_WITHIN * pair[1]]:
        ratios = [found / wanted for found, wanted in apart if wanted]
        ends = dict.fromkeys(points(ratio, 0) for ratio in (min(ratios), max(ratios))) if ratios else {}
        sizes = f"{' to '.join(ends)} %" if ends else "any number of times"
        some = f"in {len(apart)} of {len(seeds)} seeds " if len(seeds) > 1 else ""
        start += f" ({some}with steps of {sizes} the protected arm's size, as they could not be matched)"
    more = mean_interval([runs[run["seed"]]["forgetting"] - run["forgetting"] for run in held["runs"]])
    if more.low is None or more.high is None:
        return [f"{start}."]
    name = with_protection(held["protection"]).removeprefix("with ")
    if more.low > 0:
        return [f"{start}; {name} keeps {_amount(more.mean)} points more of A."]
    if more.high < 0:
        return [f"{start}, and keeps {_amount(-more.mean)} points more of A than {name}."]
    return [f"{start}; these {len(seeds)} seeds do not tell the two apart."]


def _over_panels(result: TwoModelResult, shown: Sequence[Panel]) -> list[str]:
    later = listed(later_models(result))
    pairs = [pair for panel in shown if (pair := paired(result, panel)) is not None]
    if not pairs:
        losses: dict[str, list[float]] = {}
        for panel in shown:
            for group in groups(result, panel):
                losses.setdefault(group.protection, []).append(mean_interval(group.values("forgetting")).mean)
        name = next((name for name in (BASELINE, main_protection(result)) if name in losses), next(iter(losses)))
        cost = f"training {later} cost A {span(losses[name])} points of accuracy {with_protection(name)}"
        return [f"In {len(losses[name])} settings, {cost}.", _missing(name)]
    free, held = zip(*pairs, strict=True)
    start = (
        f"In {len(pairs)} settings, training {later} cost A {span(s['forgetting']['mean'] for s in free)} points of "
        f"accuracy without protection and {span(s['forgetting']['mean'] for s in held)} "
        f"{with_protection(held[0]['protection'])}"
    )
    sentences = [f"{start}: {_range_of_reductions([summary['reduction'] for summary in held])}."]
    highest = max(summary["cost_b"]["mean"] for summary in held)
    sentences.append(f"B pays {f'at most {points(highest)} points' if 100 * highest >= _NOTHING else 'nothing'}.")
    if result.config.chain.models > 2:
        without, with_ = (span(_mean_over_models(s["runs"]) for s in arm) for arm in (free, held))
        sentences.append(_averaged(result, without, with_))
    return sentences


def _range_of_reductions(reductions: Sequence[Mapping[str, float] | None]) -> str:
    found = sorted(reduction["mean"] for reduction in reductions if reduction is not None)
    if not found:
        return "without protection there is no forgetting to reduce"
    low, high = (share_number(min(value, 1.0)) for value in (found[0], found[-1]))
    told = f"{low if low == high else f'{low} to {high}'} % of the forgetting was prevented"
    if worse := sum(value < 0 for value in found):
        told += f"; with protection it was more in {worse} of them"
    if idle := len(reductions) - len(found):
        told += f"; in {idle} of them there was no forgetting to reduce"
    return told


def _averaged(result: TwoModelResult, without: str, with_: str) -> str:
    kept = listed([model["model"] for model in result.runs[0]["models"][:-1]])
    return f"Averaged over {kept}, {without} points are lost without protection, {with_} with it."


def _mean_over_models(runs: Sequence[Run]) -> float:
    return mean_interval([mean_forgetting(run) for run in runs]).mean
