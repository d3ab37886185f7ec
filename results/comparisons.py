"""The parts of results/README.md that compare rivals; results/tables.py puts them in their place."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forgetless.comparison import ComparisonConfig, Measure, Row
from forgetless.comparison.result import ComparisonResult, load_comparison
from forgetless.evaluation.searches import summarise
from forgetless.evaluation.significance import paired_permutation_test
from forgetless.experiments.two_model import TwoModelResult
from forgetless.forgetting import Interval, mean_interval
from forgetless.options import command_line
from forgetless.report.comparison.page import comparison_notes, comparison_tables
from forgetless.runs import RunFolder
from forgetless.search.result import REWARD

Run = Mapping[str, Any]

RIVALS_NOTE = (
    "Of each protection the strength, of those in the command, with the largest mean validation accuracy of A after "
    "and B; the numbers are of the test images. *A's loss* is its change in nats while B trains. *Together* is "
    "(A after + B)/2 against no protection, on the same seeds. Five seeds cannot make any of these differences "
    "significant after Holm's correction for so many."
)


def kept_and_learnt(run: Run) -> float:
    """By which a strength is chosen: what A and B reach together on the validation images, up to a constant."""
    return float(run["validation_b"] - run["validation_forgetting"])


def rivals(result: TwoModelResult) -> str:
    """Per protection the strength that is best on the validation images, and what it does on the test images."""
    lines = [RIVALS_NOTE]
    for convergence in result.config.chain.convergence:
        stopped = "trained to convergence" if convergence == 1 else f"stopped at {convergence:.0%}"
        columns = ("protection", "strength", "A before", "A after", "forgetting, points", "A's loss", "B", "together")
        lines += ["", f"A {stopped}:", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        plain = _of(result, convergence, "none")
        rows = []
        for protection in result.config.arms:
            groups: dict[float | None, list[Run]] = {}
            for run in _of(result, convergence, protection):
                groups.setdefault(run["strength"], []).append(run)
            strength, runs = max(groups.items(), key=lambda group: statistics.fmean(map(kept_and_learnt, group[1])))
            rows.append(
                (protection, strength, runs, [_together(r) - _together(p) for r, p in zip(runs, plain, strict=True)])
            )
        for protection, strength, runs, gains in sorted(rows, key=lambda row: -statistics.fmean(row[3])):
            before, after, b = (_mean(runs, key) for key in ("accuracy_a_before", "accuracy_a_after", "accuracy_b"))
            loss = mean_interval([run["loss_a_after"] - run["loss_a_before"] for run in runs])
            cells = [
                protection,
                "" if strength is None else f"{strength:g}",
                f"{100 * before:.2f}",
                f"{100 * after:.2f}",
            ]
            cells += [with_ends(mean_interval([run["forgetting"] for run in runs]), 100, 2), with_ends(loss, 1, 3)]
            cells += [f"{100 * b:.2f}", "–" if protection == "none" else with_ends(mean_interval(gains), 100, 2)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _of(result: TwoModelResult, convergence: float, protection: str) -> list[Run]:
    return [r for r in result.runs if r["convergence"] == convergence and r["protection"] == protection]


def _together(run: Run) -> float:
    return float(run["accuracy_a_after"] + run["accuracy_b"]) / 2


def _mean(runs: Sequence[Run], key: str) -> float:
    return statistics.fmean(run[key] for run in runs)


def with_ends(interval: Interval, scale: float, digits: int) -> str:
    mean, low, high = (None if end is None else scale * end for end in (interval.mean, interval.low, interval.high))
    # Adding 0 to the rounded number turns −0.00 into 0.00.
    shown = [f"{round(end, digits) + 0:.{digits}f}" for end in (mean, low, high) if end is not None]
    return shown[0] if len(shown) < 3 else f"{shown[0]} ({shown[1]} … {shown[2]})"


def strengths(path: Path) -> str:
    """What every protection's strengths did on the seeds that no comparison uses."""
    found = json.loads(path.read_text(encoding="utf-8"))
    columns = ("protection", "strength", "err₁", "err₂", "forgetting", "reward", "diverged", "chosen")
    note = (
        f"`python results/strengths.py {path.stem}`: seeds 100 and 101, mean over the last half of the epochs, "
        "validation data; the smallest err₂ is chosen."
    )
    lines = [
        f"### Strengths for {path.stem}",
        *("", note, ""),
        *(f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"),
    ]
    for row in found["rows"]:
        keys = ("error_first", "error_second", "forgetting_mean", "strategy_mean_reward")
        numbers = ["–" if row[key] is None else f"{row[key]:.4f}" for key in keys]
        chosen = "✓" if found["chosen"][row["protection"]] == row["strength"] else ""
        strength = f"{row['strength']:g}" if row["strength"] else ""
        lines.append(f"| {row['protection']} | {strength} | {' | '.join(numbers)} | {row['num_diverged']} | {chosen} |")
    return "\n".join([*lines, ""])


def comparison(folder: RunFolder, title: str) -> str:
    """The tables of `forgetless compare`."""
    config = ComparisonConfig.from_dict(folder.header.options)
    result = load_comparison(folder, config)
    environment = ", ".join(f"{key} {folder.environment[key]}" for key in ("python", "torch", "git_revision"))
    lines = [
        f"## {title}",
        "",
        f"`{command_line(config, 'compare')}` ({folder.environment['processor']}, {environment})",
        "",
    ]
    for table in comparison_tables(result):
        lines += [f"{table['title']}:", "", f"| | {' | '.join(table['columns'])} |"]
        lines.append("|---" * (len(table["columns"]) + 1) + "|")
        for row in table["rows"]:
            cells = [f"{cell.text}{cell.signs}" for cell in row["cells"]]
            lines.append(f"| {row['rank']} {row['row']} | {' | '.join(cells)} |")
        lines.append("")
    lines += [
        " ".join(note.strip() for note in comparison_notes(result)),
        "",
        *against_random(result),
        "",
        *on_shared_weights(result),
        "",
    ]
    return "\n".join(lines)


def against_random(result: ComparisonResult) -> list[str]:
    """What each search hands over against as many architectures drawn uniformly, tested over seeds."""
    lines = ["Better than as many architectures drawn uniformly for the same seed; one-sided sign flips over seeds:"]
    lines += ["", "| | by | p |", "|---|---|---|"]
    return lines + [f"| {row} | {with_ends(gain, 1, 3)} | {p:.3f} |" for row, gain, p in gains(result)]


def gains(result: ComparisonResult) -> list[tuple[Row, Interval, float]]:
    """How much better than random the architectures are that each search found, with an interval, and p."""
    # Each seed's search is a run of its own there; here they are the seeds of one.
    records = [{**record, "run": ""} for record in result.evaluations]
    lower = result.lower_is_better(Measure.FOUND_MEAN)
    found = {Row(r["strategy"], r["protection"]): r for r in summarise(records, lower_is_better=lower)}
    tested = [row for row in result.ranked if row.is_search and found[row]["p"] is not None]
    return [(row, Interval(**found[row]["gain"]), found[row]["p"]) for row in tested]


def on_shared_weights(result: ComparisonResult) -> list[str]:
    """What each protection does to the shared weights themselves, seed by seed against no protection."""
    told = (
        "On the shared weights, validation data, against no protection; two-sided sign flips over seeds. err₂ counts "
        "models that diverged, if their error is finite:"
    )
    lines = [told, ""]
    lines += ["| | reward, last quarter | p | err₂, last half | p |", "|---|---|---|---|---|"]
    rows = []
    for row in result.ranked:
        found = effects(result, row)
        cells = [f"{with_ends(difference, 1, 4)} | {p:.4f}" for difference, p in found]
        if cells:
            rows.append(f"| {row} | {' | '.join(cells)} |")
    return [*lines, *rows] if rows else []


def effects(result: ComparisonResult, row: Row) -> list[tuple[Interval, float]]:
    """What a protection does to the reward and to err₂ against none, each with its p; none for no protection."""
    search = result.searches[row.strategy]
    half = range(search.config.schedule.epochs // 2, search.config.schedule.epochs)
    found = []
    for key, epochs in ((REWARD, search.last_quarter), ("error_second", half)):
        mine, free = (search.by_seed(name, key, epochs) for name in (row.protection, "none"))
        differences = [mine[seed] - free[seed] for seed in sorted(set(mine) & set(free))]
        if row.protection != "none" and differences:
            p = paired_permutation_test(differences, alternative="two-sided").p
            found.append((mean_interval(differences), p))
    return found


def ranking(path: Path) -> str:
    """What shared weights and trainings alone rank by."""
    searches = json.loads(path.read_text(encoding="utf-8"))["searches"]
    names = list(searches[0]["rewards_with_number_of"])
    columns = ("seed", "τ over all", "τ over stable", *(f"reward, number of {name}" for name in names))
    folders = " ".join(f"RUN/enas/seed-{found['seed']}" for found in searches)
    note = (
        f"What the shared weights under `wpl` rank by: `python results/ranking.py {folders}`. Stable are the "
        f"{searches[0]['num_stable']} cells whose three trainings alone have a standard deviation below 0.1 nats. The "
        "last columns are τ of how many nodes have an activation; with the benchmark it is "
        + ", ".join(f"{value:.2f} for {name}" for name, value in searches[0]["benchmark_with_number_of"].items())
        + "."
    )
    lines = [note, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for found in searches:
        numbers = [found["tau"], found["tau_stable"], *(found["rewards_with_number_of"][name] for name in names)]
        lines.append(f"| {found['seed']} | {' | '.join(f'{number:.2f}' for number in numbers)} |")
    return "\n".join([*lines, ""])


def evaluation(path: Path) -> str:
    """How long judging by a shipped benchmark takes."""
    found = json.loads(path.read_text(encoding="utf-8"))
    where = ", ".join(f"{key} {found['environment'][key]}" for key in ("cpu", "python", "torch"))
    said = (
        f"`{found['command']}` ({where}): {found['searches']} searches of one seed, with the rank of all "
        f"{found['architectures']} architectures on the shared weights of each, take {found['seconds']:.1f} s."
    )
    return f"## Judging searches by a shipped benchmark\n\n{said}\n"


def fan_out(path: Path) -> str:
    """The same trainings in one process and in several."""
    found = json.loads(path.read_text(encoding="utf-8"))
    where = ", ".join(f"{key} {found['environment'][key]}" for key in ("cpu", "python", "torch"))
    lines = [f"## Fanning out {found['trainings']} trainings from scratch", "", f"`{found['command']}` ({where})", ""]
    lines += ["| | same numbers | s |", "|---|---|---|"]
    for name, way in found["ways"].items():
        lines.append(f"| {name} | {way['same']} of {found['trainings']} | {way['seconds']:.1f} |")
    return "\n".join([*lines, ""])
