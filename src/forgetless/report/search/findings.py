"""What a search found, in sentences that do not say more than its records show."""

from collections.abc import Mapping

from forgetless.forgetting import ROUNDING
from forgetless.protection import BASELINE, control_of, is_control, main_of
from forgetless.report.formats import counted, in_sentence, with_protection
from forgetless.report.sentences import compared, doubts, missing_arm, prevented, so_far, unmatched, with_and_without
from forgetless.search.records import SearchSummary
from forgetless.search.result import FORGETTING, REWARD, SearchResult
from forgetless.tasks.base import decimal

# The control arm follows the protected arm's mean step; where the two differ by more, that is said.
_MATCHED_WITHIN = 0.1

Entries = Mapping[str, SearchSummary]
"""Protection → its line of the summary."""


def search_headline(result: SearchResult) -> str:
    """What was found, in a few sentences; the first says the most."""
    return " ".join(headline_sentences(result))


def headline_sentences(result: SearchResult) -> list[str]:
    """The sentences of `search_headline`, at least one."""
    entries = {entry.protection: entry for entry in result.summary()}
    if not entries:
        made = len(result.epochs())
        so_many = f"{counted(made, 'epoch')} so far" if made else "no epoch yet"
        return [f"No search has all its epochs yet: {so_many}."]
    if not result.config.trains_shared_weights:
        first = "No search: the architectures are drawn uniformly, and no weights are shared."
        return [first, *_derived(result, BASELINE, entries)]
    main = result.main
    free, held = (
        result.by_seed(name, FORGETTING[0], result.forgetting_epochs) for name in (BASELINE, main or BASELINE)
    )
    if main is None or not held or set(held) - set(free):
        sentences = _one_arm(result, entries, main)
    else:
        sentences = [*_compared(result, entries, main), *_rest(result, entries, main)]
    return [*so_far(sentences, result.progress, "searches"), *_cautions(result, entries)]


def curves_title(result: SearchResult) -> str:
    """A sentence over the curves: what models lose without protection and with it."""
    entries = {entry.protection: entry for entry in result.summary()}
    arms = (BASELINE, result.main or next(filter(is_control, result.protections), BASELINE))
    losses = {name: getattr(entries[name], FORGETTING[0]) for name in dict.fromkeys(arms) if name in entries}
    told = [
        ("improve by" if loss.mean < 0 else "lose", result.unit.amount(abs(loss.mean)), name)
        for name, loss in losses.items()
        if loss is not None
    ]
    if not told:
        return "Forgetting and reward so far"
    return f"By the end of an epoch its models {with_and_without(told, result.unit.name)}"


def _change(result: SearchResult, value: float, unit: str = "") -> str:
    """`lose 0.040`, `improve by 0.2`, and the unit."""
    if abs(value) <= ROUNDING:
        return "lose nothing"
    return f"{'lose' if value > 0 else 'improve by'} {result.unit.amount(abs(value))}{unit and ' ' + unit}"


def _one_arm(result: SearchResult, entries: Entries, main: str | None) -> list[str]:
    """What can be said without a comparison, and which arm it takes if it was not asked for."""
    name = main or (BASELINE if BASELINE in entries else next(iter(entries)))
    lost, how = getattr(entries[name], FORGETTING[0]), with_protection(name)
    sentences = [f"All models diverged {how}."]
    if lost is not None:
        change = _change(result, lost.mean, result.unit.name)
        sentences = [f"Between their own training and the end of the epoch, models {change} {how} on average."]
    if BASELINE not in result.config.arms or not main_of(result.config.arms):
        sentences.append(f"What protection changes takes both arms with the same seeds: {missing_arm(name)}.")
    return sentences + _derived(result, name, entries)


def _compared(result: SearchResult, entries: Entries, main: str) -> list[str]:
    """What models lose in both arms, and how much of it was prevented."""
    lost, kept = result.paired(BASELINE, main, FORGETTING[0], result.forgetting_epochs)
    reduction, how = entries[main].reduction_mean, with_protection(main)
    start = f"By the end of the epoch models {_change(result, lost, result.unit.name)} on average without protection"
    second = _change(result, kept)
    if reduction is None:
        return [f"{start}, so there is no forgetting to reduce; {how} they {second}."]
    told = f"{start} and {second} {how}: {prevented(reduction)}."
    if reduction.mean < 0:
        return [told]
    return [told, *doubts(getattr(entries[BASELINE], FORGETTING[0]), reduction), *_control(result, main)]


def _rest(result: SearchResult, entries: Entries, main: str) -> list[str]:
    """The best five and the maximum, the reward, and the derived architecture."""
    sentences = []
    best, worst = (
        [result.unit.text(mean) for mean in result.paired(BASELINE, main, key, result.forgetting_epochs)]
        for key in FORGETTING[1:]
    )
    if best:
        sentences.append(
            f"The five best models of an epoch: {best[0]} without, {best[1]} with; the one that loses most: "
            f"{worst[0]} and {worst[1]}."
        )
    more = result.difference(main, BASELINE, REWARD, result.last_quarter)
    if more is not None:
        free, held = (decimal(mean, 3) for mean in result.paired(BASELINE, main, REWARD, result.last_quarter))
        sentences.append(
            compared(
                f"The reward over the last quarter is {held} {with_protection(main)} and {free} without",
                more,
                more=", more beyond the noise of the seeds",
                less=", less beyond the noise of the seeds",
                neither=", no significant difference",
            )
        )
    return sentences + _derived(result, main, entries)


def _control(result: SearchResult, main: str) -> list[str]:
    """How the protection compares with smaller steps alone."""
    control_arm = control_of(main)
    if control_arm is None:
        return []
    apart = result.difference(control_arm, main, FORGETTING[0], result.forgetting_epochs)
    if apart is None:
        return []
    alone = result.by_seed(control_arm, FORGETTING[0], result.forgetting_epochs)
    change = _change(result, sum(alone.values()) / len(alone)).replace("lose", "loses").replace("improve", "improves")
    found, wanted = (result.by_seed(name, "mean_step", result.forgetting_epochs) for name in (control_arm, main))
    steps = unmatched([(found[s], wanted[s]) for s in sorted(set(found) & set(wanted)) if wanted[s]], _MATCHED_WITHIN)
    amount, how = result.unit.amount(abs(apart.mean)), with_protection(main)
    return [
        compared(
            f"The control arm, no protection but smaller steps, {change}{steps}",
            apart,
            more=f": {amount} more than {how}",
            less=f": {amount} less than {how}",
            neither=f", not significantly different from {in_sentence(main)}",
        )
    ]


def _derived(result: SearchResult, name: str, entries: Entries) -> list[str]:
    """Whether the derived architecture is better than a random one."""
    found, random, gain = (getattr(entries[name], key) for key in ("derived_test_error", "random_test_error", "gain"))
    if found is None or random is None or gain is None:
        return []
    unit = result.unit
    measure = f"{unit.name} on test text" if unit.scale == 1 else "% test error"
    start = (
        f"Trained from scratch, the architecture derived {with_protection(name)} reaches {unit.text(found.mean)} "
        f"{measure}, a random one {unit.text(random.mean)}"
    )
    if gain.low is None:
        return [f"{start}, in one seed."]
    better, worse = (f": {than} beyond the noise of the seeds" for than in ("better", "worse than random"))
    return [compared(start, gain, more=better, less=worse, neither=", no significant difference")]


def _cautions(result: SearchResult, entries: Entries) -> list[str]:
    cautions = []
    if result.config.schedule.single:
        cautions.append("One architecture only was trained, so nothing here is one model overwriting another.")
    if lost := sum(entry.num_diverged for entry in entries.values()):
        cautions.append(f"{lost} trained models diverged and are left out of the averages.")
    return cautions
