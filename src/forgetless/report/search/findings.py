"""What a search found, in sentences that do not say more than its records show."""

from collections.abc import Mapping
from typing import Any

from forgetless.forgetting import ROUNDING, Interval
from forgetless.protection import BASELINE
from forgetless.report.two_model.groups import (
    Group,
    control_of,
    is_control,
    label,
    main_of,
    share,
    share_interval,
    with_protection,
)
from forgetless.search.result import FORGETTING, REWARD, SearchResult
from forgetless.tasks.base import decimal

# The control arm follows the protected arm's mean step; where the two differ by more, that is said.
_MATCHED_WITHIN = 0.1


def arm_label(result: SearchResult, protection: str) -> str:
    """A protection in a legend, with its strength if it has one.

    Args:
        result: The search.
        protection: The protection.
    """
    return Group(protection, strength(result, protection), []).label


def strength(result: SearchResult, protection: str) -> float | None:
    """The strength of a protection; None if it has none.

    Args:
        result: The search.
        protection: The protection.
    """
    return result.config.options_of(protection).strength_or_none


def main_protection(result: SearchResult) -> str | None:
    """The protection that sentences are about, of those with a finished seed; None if none has one."""
    return main_of([name for name in result.protections if result.seeds(name)])


def search_headline(result: SearchResult) -> str:
    """What was found, in a few sentences; the first says the most.

    Args:
        result: Records, all or some of those asked for.
    """
    return " ".join(headline_sentences(result))


def headline_sentences(result: SearchResult) -> list[str]:
    """The sentences of `search_headline`.

    Args:
        result: Records, all or some of those asked for.

    Returns:
        At least one sentence.
    """
    entries = {entry["protection"]: entry for entry in result.summary()}
    if not entries:
        made = len(result.epochs())
        some = f"{made} epoch{'' if made == 1 else 's'} so far" if made else "no epoch yet"
        return [f"No search has all its epochs yet: {some}."]
    if not result.config.trains_shared_weights:
        first = "No search: the architectures are drawn uniformly, and no weights are shared."
        return [first, *_derived(result, BASELINE, entries)]
    main = main_protection(result)
    free, held = (
        result.by_seed(name, FORGETTING[0], result.forgetting_epochs) for name in (BASELINE, main or BASELINE)
    )
    if main is None or not held or set(held) - set(free):
        first, *others = _one_arm(result, entries, main)
    else:
        first, *others = _compared(result, entries, main)
    done, wanted = result.progress
    if done < wanted:
        first = f"So far, with {done} of {wanted} searches finished: {first}"
    return [first, *others, *_cautions(result, entries)]


def curves_title(result: SearchResult) -> str:
    """A sentence over the curves: what models lose without protection and with it.

    Args:
        result: Records of at least one epoch.
    """
    entries = {entry["protection"]: entry for entry in result.summary()}
    arms = (BASELINE, main_protection(result) or next(filter(is_control, result.protections), BASELINE))
    named = [name for name in dict.fromkeys(arms) if name in entries and entries[name][FORGETTING[0]]]
    if not named:
        return "Forgetting and reward so far"
    told: list[str] = []
    for name in named:
        value = entries[name][FORGETTING[0]]["mean"]
        verb = "improve by" if value < 0 else "lose"
        same = told and told[0].split()[0] == verb.split()[0]
        unit = "" if told else f" {result.unit.name}"
        how = "without protection" if name == BASELINE else f"with {label(name)}"
        told.append(f"{'' if same else verb + ' '}{result.unit.amount(abs(value))}{unit} {how}")
    return f"By the end of an epoch its models {' and '.join(told)}"


def _change(result: SearchResult, value: float, *, short: bool = False) -> str:
    """`lose 0.040 nats per token`, `improve by 0.2 points of accuracy`, without the unit if short."""
    unit = "" if short else f" {result.unit.name}"
    if abs(value) <= ROUNDING:
        return "lose nothing"
    return f"{'lose' if value > 0 else 'improve by'} {result.unit.amount(abs(value))}{unit}"


def _one_arm(result: SearchResult, entries: Mapping[str, Any], main: str | None) -> list[str]:
    """What can be said without a comparison, and which arm it takes if it was not asked for."""
    name = main or (BASELINE if BASELINE in entries else next(iter(entries)))
    lost, how = entries[name][FORGETTING[0]], with_protection(name)
    sentences = [f"All models diverged {how}."]
    if lost is not None:
        change = _change(result, lost["mean"])
        sentences = [f"Between their own training and the end of the epoch, models {change} {how} on average."]
    arms = (BASELINE, "wpl" if name == BASELINE else name)
    if not set(arms) <= set(result.config.arms):
        both = f"`--protection {' '.join(arms)}`"
        sentences.append(f"What protection changes takes both arms with the same seeds: {both}.")
    return sentences + _derived(result, name, entries)


def _compared(result: SearchResult, entries: Mapping[str, Any], main: str) -> list[str]:
    lost, kept = _paired(result, main, FORGETTING[0], result.forgetting_epochs)
    prevented, how = entries[main]["reduction_mean"], with_protection(main)
    start = f"By the end of the epoch models {_change(result, lost)} on average without protection"
    second = _change(result, kept, short=True)
    if prevented is None:
        told = f"{start}, so there is no forgetting to reduce; {how} they {second}."
        return [told, *_rest(result, entries, main)]
    capped = {end: None if prevented[end] is None else min(prevented[end], 1.0) for end in ("low", "high")}
    several = prevented["high"] is not None  # only a lower end can be without bound
    ends = f"95 % interval {share_interval(capped)}" if several else "one seed, so no interval"
    if prevented["mean"] < 0:
        surely = several and prevented["high"] < 0
        verdict = "protection made it worse" if surely else "protection did not help"
        told = f"{start} and {second} {how}: {verdict} (reduction {share(prevented)}, {ends})."
        return [told, *_rest(result, entries, main)]
    much = "all" if prevented["mean"] >= 1 else share(prevented)
    told = f"{start} and {second} {how}: {much} of the forgetting was prevented ({ends})."
    sentences = [told]
    if several and (prevented["low"] is None or prevented["low"] <= 0):
        sentences.append("The interval includes 0: these seeds do not show that the protection helps.")
    low = entries[BASELINE][FORGETTING[0]]["low"]
    if low is not None and low <= 0:
        sentences.append("Without protection the seeds do not show forgetting beyond their noise.")
    return [*sentences, *_control(result, main), *_rest(result, entries, main)]


def _paired(result: SearchResult, main: str, key: str, epochs: range) -> list[float]:
    """Means of a quantity without protection and with it, over the seeds that both have; empty if there is none."""
    arms = [result.by_seed(name, key, epochs) for name in (BASELINE, main)]
    seeds = sorted(set.intersection(*map(set, arms)))
    return [sum(arm[seed] for seed in seeds) / len(seeds) for arm in arms] if seeds else []


def _rest(result: SearchResult, entries: Mapping[str, Any], main: str) -> list[str]:
    """The best five and the maximum, the reward, and the derived architecture."""
    sentences = []
    unit = result.unit
    epochs = result.forgetting_epochs
    best, worst = ([unit.text(mean) for mean in _paired(result, main, key, epochs)] for key in FORGETTING[1:])
    if best:
        sentences.append(
            f"The five best models of an epoch: {best[0]} without, {best[1]} with; the one that loses most: "
            f"{worst[0]} and {worst[1]}."
        )
    more = result.difference(main, BASELINE, REWARD, result.last_quarter)
    if more is not None:
        free, held = _paired(result, main, REWARD, result.last_quarter)
        sentences.append(_reward(held, free, more, with_protection(main)))
    return sentences + _derived(result, main, entries)


def _reward(held: float, free: float, more: Interval, how: str) -> str:
    start = f"The reward over the last quarter is {decimal(held, 3)} {how} and {decimal(free, 3)} without"
    if more.low is None or more.high is None:
        return f"{start}."
    if more.low > 0 or more.high < 0:
        return f"{start}, {'more' if more.mean > 0 else 'less'} beyond the noise of the seeds."
    return f"{start}; the seeds do not tell them apart."


def _control(result: SearchResult, main: str) -> list[str]:
    """How the protection compares with smaller steps alone."""
    control_arm = control_of(main)
    if control_arm is None:
        return []
    apart = result.difference(control_arm, main, FORGETTING[0], result.forgetting_epochs)
    if apart is None:
        return []
    alone = result.by_seed(control_arm, FORGETTING[0], result.forgetting_epochs)
    start = f"The control arm, no protection but smaller steps, {_arm_change(result, sum(alone.values()) / len(alone))}"
    found, wanted = (result.by_seed(name, "mean_step", result.forgetting_epochs) for name in (control_arm, main))
    ratios = [found[seed] / wanted[seed] for seed in sorted(set(found) & set(wanted)) if wanted[seed]]
    if apart_in := [ratio for ratio in ratios if abs(ratio - 1) > _MATCHED_WITHIN]:
        ends = dict.fromkeys(decimal(100 * ratio, 0) for ratio in (min(apart_in), max(apart_in)))
        some = f"in {len(apart_in)} of {len(ratios)} seeds " if len(ratios) > 1 else ""
        start += f" ({some}with steps of {' to '.join(ends)} % the protected arm's size)"
    if apart.low is None or apart.high is None:
        return [f"{start}."]
    how = with_protection(main)
    if apart.low > 0:
        return [f"{start}: {result.unit.amount(apart.mean)} more than {how}."]
    if apart.high < 0:
        return [f"{start}: {result.unit.amount(-apart.mean)} less than {how}."]
    return [f"{start}; the seeds do not tell it from {how.removeprefix('with ')}."]


def _arm_change(result: SearchResult, value: float) -> str:
    return _change(result, value, short=True).replace("lose", "loses", 1).replace("improve ", "improves ", 1)


def _derived(result: SearchResult, name: str, entries: Mapping[str, Any]) -> list[str]:
    """Whether the derived architecture is better than a random one."""
    entry = entries[name]
    found, random, gain = (entry[key] for key in ("derived_test_error", "random_test_error", "gain"))
    if found is None or random is None or gain is None:
        return []
    unit = result.unit
    measure = f"{unit.name} on test text" if unit.scale == 1 else "% test error"
    start = (
        f"Trained from scratch, the architecture derived {with_protection(name)} reaches {unit.text(found['mean'])} "
        f"{measure}, a random one {unit.text(random['mean'])}"
    )
    if gain["low"] is None:
        return [f"{start}, in one seed."]
    if gain["low"] > 0:
        return [f"{start}: better beyond the noise of the seeds."]
    if gain["high"] < 0:
        return [f"{start}: worse than random beyond the noise of the seeds."]
    return [f"{start}; the seeds do not tell them apart."]


def _cautions(result: SearchResult, entries: Mapping[str, Any]) -> list[str]:
    cautions = []
    if result.config.schedule.single:
        cautions.append("One architecture only was trained, so nothing here is one model overwriting another.")
    if lost := sum(entry["num_diverged"] for entry in entries.values()):
        cautions.append(f"{lost} trained models diverged and are left out of the averages.")
    return cautions
