"""Pages of `forgetless compare`: protections beside each other in searches whose cells a benchmark judges."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from page import HERE, Cells, Page, command_block, environment, load, read, run_block, shown, table, time_taken

from forgetless.comparison import Measure, Row
from forgetless.comparison.result import ComparisonResult
from forgetless.evaluation.searches import summarise
from forgetless.evaluation.significance import paired_permutation_test
from forgetless.forgetting import Interval, mean_interval
from forgetless.report.comparison.page import comparison_notes, comparison_tables
from forgetless.report.formats import points
from forgetless.report.table import Table
from forgetless.search.result import REWARD

SHARE = " 0.01 is one point."
"""Said where a table has shares and another points."""

WHY_CHANCE = (
    "The two trainings ask for different things. Alone, a cell has 200 batches, in which relu is quick and tanh slow "
    "or unsteady. The shared weights have trained ten times as long: there tanh ranks high, and relu gains little."
)

TOO_SMALL = (
    "1,200 batches are 1.9 passes over the training images. *Best reward* is that of 100 random architectures. "
    "`wpl-tolerance` is not in the tables: its search was stopped in its first epoch. On large images it measures for "
    "longer than it trains, because each measurement recomputes batch statistics."
)

STRENGTHS = {"nas201-digits": "image cells", "recurrent-3": "recurrent cells"}


def pages() -> list[Page]:
    return [
        *(digits(), longer(), recurrent(), text_rivals(), cifar(), tried()),
        *(strengths(name, what) for name, what in STRENGTHS.items()),
    ]


def result_of(name: str) -> ComparisonResult:
    result: ComparisonResult = load(HERE / "compare" / name)
    return result


def recurrent() -> Page:
    result = result_of("recurrent-3")
    free, held = (lost_in(result, protection, 3) for protection in ("none", "wpl"))
    (reward, p), _ = effects(result, Row("enas", "wpl"))
    return Page(
        name="compare-recurrent-3",
        title="Weight plasticity, recurrent cells",
        question="Does weight plasticity make a search of recurrent cells on text better, over 20 seeds?",
        answer=f"Forgetting halves ({free} to {held} nats), but the selected cells are no better than random ones.",
        more=f"The reward on the shared weights rises by {reward.mean:.3f} (p = {p:.3f}). The selected cells are not "
        f"significantly better than random ones (p = {against_random(result)['wpl'][1]:.2f}): the shared weights rank "
        "cells no better than chance, with protection or without.",
        parts=[*compared("recurrent-3"), ranking("ranking.json", "enas"), WHY_CHANCE],
    )


def digits() -> Page:
    result = result_of("nas201-digits")
    fell = {name: -100 * effects(result, Row("enas", name))[1][0].mean for name in ("nsas", "wpl", "si", "mas", "l2")}
    weak = sorted(value for name, value in fell.items() if name != "nsas")
    chances = sorted(p for _, p in against_random(result).values())
    return Page(
        name="compare-nas201-digits",
        title="All protections, image cells",
        question="Which protection helps a search of NAS-Bench-201 cells on digits? Each has the strength selected on "
        "[other seeds](strengths-nas201-digits.md).",
        answer="Five improve the shared weights; none finds significantly better cells than no protection.",
        more=f"The error at the end of an epoch (err₂) falls by {fell['nsas']:.1f} points under `nsas`, at "
        f"{time_ratio(result, 'nsas')} times the time, and by {weak[0]:.1f} to {weak[-1]:.1f} under `wpl`, `si`, `mas` "
        "and `l2`. Smaller steps alone (`matched-lr`) do "
        "not lower it, and freezing raises it. Every search beats random selection, also the unprotected one "
        f"(p = {chances[0]:.3f} to {chances[-1]:.3f}).",
        parts=compared("nas201-digits"),
    )


def longer() -> Page:
    mine, others = second_errors(result_of("nas201-digits-longer"), "none"), result_of("nas201-digits")
    fell, _ = tested(mine, second_errors(others, "none"))
    apart, p = tested(mine, second_errors(others, "nsas"))
    rewarded = rewards(result_of("nas201-digits-longer"), "none")
    gained, gained_p = tested(rewarded, rewards(others, "none"))
    behind, behind_p = tested(rewarded, rewards(others, "nsas"))
    batches = [
        result.config.search.schedule.batches_per_model for result in (result_of("nas201-digits-longer"), others)
    ]
    return Page(
        name="compare-nas201-digits-longer",
        title="Longer training in place of replay",
        question=f"`nsas` takes {time_ratio(others, 'nsas')} times the time. What does a search without protection "
        f"reach with {batches[0]} batches per model in place of {batches[1]}?",
        answer=f"err₂ falls by {points(-fell.mean)} points, not significantly less than under `nsas` (p = {p:.2f}).",
        more=f"The difference from [`nsas`](compare-nas201-digits.md) is {shown(apart, 100, 1)} points. The reward "
        f"rises by {gained.mean:.3f} (p = {gained_p:.2f}), {-behind.mean:.3f} less than under `nsas` (p = "
        f"{behind_p:.2f}). On these cells replay is worth no more than the time that it takes.",
        parts=compared("nas201-digits-longer"),
    )


def text_rivals() -> Page:
    result = result_of("recurrent-3-rivals")
    lost = {name: lost_in(result, name, 3) for name in ("none", "wpl", "si", "nsas")}
    return Page(
        name="compare-recurrent-3-rivals",
        title="All protections, recurrent cells",
        question="Which protection helps a search of recurrent cells on text? Each has the strength selected on "
        "[other seeds](strengths-recurrent-3.md).",
        answer=f"Only `nsas`, at {time_ratio(result, 'nsas')} times the time, finds significantly better cells than no "
        "protection.",
        more=f"Of those that cost little, `wpl` and `si` are best: mean forgetting falls from {lost['none']} to "
        f"{lost['wpl']} and {lost['si']} nats, and both raise the reward. Compared with random selection, the p of "
        f"`nsas` ({against_random(result)['nsas'][1]:.3f}) is not significant after correction for twelve rows.",
        parts=compared("recurrent-3-rivals"),
    )


def cifar() -> Page:
    result = result_of("nas201-cifar10")
    least = math.floor(10 * min(p for _, p in against_random(result).values())) / 10
    return Page(
        name="compare-nas201-cifar10",
        title="CIFAR-10",
        question="Do protections help a small search on CIFAR-10 (JPEG copy), judged by the published accuracies?",
        answer=f"No search is better than random, protected or not (three seeds, p ≥ {least}).",
        more="The search is too small: on its shared weights cells rank no better than chance (no mean τ is above 0). "
        "Three seeds cannot make any difference significant.",
        parts=[*compared("nas201-cifar10"), ranking("ranking-nas201.json", "enas"), TOO_SMALL],
    )


def tried() -> Page:
    names = {
        "uniform-lr1e-2": "Uniform sampling, stronger protection",
        "uniform-lr3e-3": "Smaller learning rate, protected throughout",
    }
    results = [result_of(f"recurrent-3-tried/{name}") for name in names]
    taus = sorted(i.mean for result in results for row in result.ranked if (i := result.interval(row, Measure.TAU)))
    said = " to ".join(f"{tau:.2f}".replace("-", "−") for tau in (taus[0], taus[-1]))
    return Page(
        name="compare-recurrent-3-tried",
        title="Variants tried, recurrent cells",
        question="Do uniform sampling, stronger protection or a smaller learning rate make the shared weights rank "
        "cells better? Three seeds that no other comparison uses, on validation data.",
        answer=f"Their τ with the benchmark stays at chance ({said}).",
        parts=[
            part
            for name, heading in names.items()
            for part in (f"## {heading}", *compared(f"recurrent-3-tried/{name}", "#"))
        ],
    )


# ---- parts -------------------------------------------------------------------------------------------------------


def compared(name: str, heading: str = "") -> list[str]:
    """How a comparison was made, and its tables; a row is a protection, or a strategy that does not search."""
    path, result = HERE / "compare" / name, result_of(name)
    assert len({row.strategy for row in result.ranked if row.is_search}) == 1, f"rows of {name} need their strategy"
    seconds = [value for row in result.ranked for value in result.values(row, Measure.SECONDS).values()]
    parts = comparison_tables(result)[:3]  # without the rules that were not asked for then
    quality, forgetting, ranks = (f"#{heading}# {part.title}" for part in parts)
    selected, lost, ranked = (rows_of(part, result) for part in parts)
    # A row without a search has nothing to forget and nothing to rank by.
    lost, ranked = ([cells for cells in rows if has_search(result, cells)] for rows in (lost, ranked))
    chances = against_random(result)
    for cells in selected:
        gain, p = chances.get(cells[""], (None, None))
        cells |= {"better than random by": shown(gain, 1, 3), "p": "–" if p is None else f"{p:.3f}"}
    return [
        run_block(path, time_taken(math.fsum(seconds))),
        f"{quality}\n\n*Better than random*: than as many "
        "architectures drawn uniformly for the same seed; p of one-sided sign flips over seeds, not corrected."
        + SHARE
        * ("in %" in quality),
        table(selected),
        f"{forgetting}\n\nHow much models' errors rise between the end of their training and the end of the epoch.",
        table(lost),
        *learnt_part(on_shared_weights(result), heading, SHARE * (result.unit.scale == 100)),
        ranks,
        table(ranked),
        f"#{heading}# How to read this\n\n" + " ".join(note.strip() for note in comparison_notes(result)),
    ]


def has_search(result: ComparisonResult, cells: Cells) -> bool:
    return any(row.is_search and label(row) == cells[""] for row in result.ranked)


def learnt_part(rows: Sequence[Cells], heading: str, unit: str) -> list[str]:
    """The table of what protections do to the shared weights, if any was tested."""
    note = (
        "Validation data, against no protection on the same seeds; p of two-sided sign flips over seeds, not "
        f"corrected. err₂ is the error at the end of the epoch, also of models that diverged if it is finite.{unit}"
    )
    return [f"#{heading}# On the shared weights\n\n{note}", table(rows)] if rows else []


def label(row: Row) -> str:
    """What a table calls a row: on every page the searches are of one strategy."""
    return row.protection if row.is_search else row.strategy


def rows_of(part: Table, result: ComparisonResult) -> list[Cells]:
    """The rows of a table of the report."""
    return [
        {"": label(ranked)} | dict(zip(part.columns, map(str, row.cells), strict=True))
        for ranked, row in zip(result.ranked, (row for row in part.rows if row.is_ranked), strict=True)
    ]


def on_shared_weights(result: ComparisonResult) -> list[Cells]:
    """What each protection does to the shared weights themselves, seed by seed against no protection."""
    rows = []
    for row in result.ranked:
        if found := effects(result, row):
            (reward, reward_p), (error, error_p) = found
            cells = {"": label(row), "reward, last quarter": shown(reward, 1, 4), "p of reward": f"{reward_p:.4f}"}
            rows.append(cells | {"err₂, last half": shown(error, 1, 4), "p of err₂": f"{error_p:.4f}"})
    return rows


def gains(result: ComparisonResult) -> list[tuple[Row, Interval, float]]:
    """How much better than random the architectures are that each search selected, with an interval, and p."""
    # Each seed's search is a run of its own there; here they are the seeds of one.
    records = [dataclasses.replace(record, run="") for record in result.evaluations]
    lower = result.lower_is_better(Measure.FOUND_MEAN)
    found = {Row(each.strategy, each.protection): each for each in summarise(records, lower_is_better=lower)}
    entries = [(row, found[row]) for row in result.ranked if row.is_search]
    return [(row, entry.gain, entry.p) for row, entry in entries if entry.gain is not None and entry.p is not None]


def against_random(result: ComparisonResult) -> dict[str, tuple[Interval, float]]:
    return {label(row): (gain, p) for row, gain, p in gains(result)}


def effects(result: ComparisonResult, row: Row) -> list[tuple[Interval, float]]:
    """What a protection does to the reward and to err₂ against none, each with its p; none for no protection."""
    search = result.searches[row.strategy]
    found = []
    for key, epochs in ((REWARD, search.last_quarter), ("error_second", last_half(result, row.strategy))):
        mine, free = (search.by_seed(name, key, epochs) for name in (row.protection, "none"))
        if row.protection != "none" and set(mine) & set(free):
            found.append(tested(mine, free))
    return found


def last_half(result: ComparisonResult, strategy: str) -> range:
    epochs = result.searches[strategy].config.schedule.epochs
    return range(epochs // 2, epochs)


def second_errors(result: ComparisonResult, protection: str) -> dict[int, float]:
    """Seed → mean err₂ over the last half of the epochs."""
    return result.searches["enas"].by_seed(protection, "error_second", last_half(result, "enas"))


def rewards(result: ComparisonResult, protection: str) -> dict[int, float]:
    """Seed → mean reward over the last quarter of the epochs."""
    search = result.searches["enas"]
    return search.by_seed(protection, REWARD, search.last_quarter)


def tested(mine: Mapping[int, float], other: Mapping[int, float]) -> tuple[Interval, float]:
    """The mean difference over the seeds that both have, and its two-sided p."""
    differences = [mine[seed] - other[seed] for seed in sorted(set(mine) & set(other))]
    return mean_interval(differences), paired_permutation_test(differences, alternative="two-sided").p


def lost_in(result: ComparisonResult, protection: str, digits: int) -> str:
    """Mean forgetting of a protection under ENAS, in words."""
    interval = result.interval(Row("enas", protection), Measure.FORGETTING)
    assert interval is not None
    return f"{result.unit.scale * interval.mean:.{digits}f}".replace("-", "−")


def time_ratio(result: ComparisonResult, protection: str) -> str:
    """How many times as long as without protection a search takes."""
    seconds = [result.interval(Row("enas", name), Measure.SECONDS) for name in (protection, "none")]
    return f"{seconds[0].mean / seconds[1].mean:.1f}" if seconds[0] and seconds[1] else "–"


def ranking(file: str, strategy: str) -> str:
    """What shared weights rank by, beside what the truth ranks by."""
    searches = read(HERE / file)["searches"]
    is_benchmark = "benchmark_with_number_of" in searches[0]
    truth = searches[0]["benchmark_with_number_of" if is_benchmark else "truth_with_number_of"]
    folders = " ".join(f"RUN/{strategy}/seed-{found['seed']}" for found in searches)
    note = (
        f"`python results/ranking.py {'' if is_benchmark else 'nasbench201.csv '}{folders}`, searches under `wpl`. The "
        f"last columns are τ with the number of {'nodes with each activation' if is_benchmark else 'each operation'}: "
        "of the reward on the shared weights, and in the last row of the truth."
    )
    if is_benchmark:
        note += (
            f" *Stable* are the {searches[0]['num_stable']} cells whose three trainings from scratch have a standard "
            "deviation below 0.1 nats."
        )
    rows = []
    for found in searches:
        taus = {"τ over all": f"{found['tau']:.2f}"}
        key, column = ("tau_stable", "τ over stable") if is_benchmark else ("best_reward", "best reward")
        taus[column] = f"{found[key]:.2f}"
        rows.append({"seed": str(found["seed"]), **taus, **number_of(found["rewards_with_number_of"])})
    rows.append({**dict.fromkeys(rows[0], ""), "seed": "truth", **number_of(truth)})
    return f"## What the shared weights rank by\n\n{note}\n\n{table(rows)}"


def number_of(taus: Mapping[str, float]) -> Cells:
    # Adding 0 to the rounded number turns −0.00 into 0.00.
    return {f"number of {name}": f"{round(tau, 2) + 0:.2f}" for name, tau in taus.items()}


def strengths(name: str, what: str) -> Page:
    """What every protection's strengths did on the seeds that no comparison uses."""
    found = read(HERE / "strengths" / f"{name}.json")
    selected: dict[str, float] = found["chosen"]
    keys = ("error_first", "error_second", "forgetting_mean", "strategy_mean_reward")
    order = list(selected)
    rows: list[Cells] = []
    for row in sorted(found["rows"], key=lambda row: (order.index(row["protection"]), row["strength"])):
        numbers = ["–" if row[key] is None else f"{row[key]:.4f}" for key in keys]
        rows.append(
            {
                "protection": row["protection"],
                "strength": f"{row['strength']:g}" if row["strength"] else "",
                **dict(zip(("err₁", "err₂", "forgetting", "reward"), numbers, strict=True)),
                "diverged": str(row["num_diverged"]),
                "selected": "✓" if selected[row["protection"]] == row["strength"] else "",
            }
        )
    return Page(
        name=f"strengths-{name}",
        title=f"Strengths: {what}",
        question="Which strength of each protection has the smallest err₂, the error at the end of the epoch?",
        answer=f"`wpl` {selected['wpl']:g}, `l2` {selected['l2']:g}, `si` {selected['si']:g}, `nsas` "
        f"{selected['nsas']:g}.",
        more="The comparisons use the selected strengths, on other seeds.",
        parts=[
            command_block(
                f"python results/strengths.py {name}",
                "Seeds 100 and 101; mean over the last half of the epochs, validation data. The time was not recorded. "
                f"{environment(found['environment'])}.",
            ),
            table(rows),
        ],
    )
