"""The tables of a two-model run, and what the page shows of it."""

import math
from typing import Any

from rich import table as rich

from forgetless.experiments.two_model import TwoModelConfig, TwoModelResult
from forgetless.experiments.two_model.records import ArmSummary, RunRecord
from forgetless.experiments.two_model.selection import Panel
from forgetless.options import command_line, number
from forgetless.protection import BASELINE, PROTECTIONS, control_of, main_of
from forgetless.report import formats
from forgetless.report.canvas import picture
from forgetless.report.table import Row, Table, in_terminal, of_protection
from forgetless.report.two_model.figures import accuracy_curves, chain_forgetting, forgetting_bars, trade_off
from forgetless.report.two_model.findings import finding, headline_sentences
from forgetless.report.two_model.shown import Shown, label_of, panel_name

_COLUMNS = ("A before", "A after", "forgetting", "reduction", "B", "B's cost")
# Of a table that a browser still shows; metrics.jsonl has all.
_MOST_ROWS = 1000


def summary_table(result: TwoModelResult) -> rich.Table:
    """What each protection did to A and to B, over seeds.

    Accuracies are in per cent and differences in points, with ± half the width of the 95 % interval; a reduction is
    followed by the ends of its interval, rounded outwards. With several panels there is a table for each, under its
    name. The α that the report's figures show is in bold.
    """
    shown = Shown(result)
    columns = (formats.strength_heading(result.config.arms), *_COLUMNS)
    parts = [Table(name, columns, summary_rows(shown, panel)) for panel, name in shown.names.items()]
    return in_terminal(parts, _notes(shown), wrapped="reduction")


def summary_rows(shown: Shown, panel: Panel, *, on_page: bool = False) -> list[Row]:
    """The lines of a panel's table; on the page with one digit more."""
    here = [entry for entry in shown.result.summary() if panel.holds(entry)]
    here.sort(key=lambda entry: shown.result.config.arms.index(entry.protection))
    protections = [entry.protection for entry in here]
    rows = []
    for entry in here:
        name, strength = entry.protection, entry.strength
        before, after, forgetting, b, cost = (
            formats.plus_minus(getattr(entry, key), 2 if on_page else 1, 100, narrow=not on_page)
            for key in ("accuracy_a_before", "accuracy_a_after", "forgetting", "accuracy_b", "cost_b")
        )
        reduced = reduction_cell(entry, on_page=on_page, unprotected=BASELINE in protections)
        cells = [formats.or_nothing(strength), before, after, forgetting, reduced, b, cost]
        is_chosen = protections.count(name) > 1 and strength is not None and strength == shown.chosen[name]
        rows.append(of_protection(name, cells, is_chosen=is_chosen))
    return rows


def reduction_cell(entry: ArmSummary, *, on_page: bool, unprotected: bool = True) -> str:
    """A reduction: on the page `98.60 (97.1 to 99.5)`; in the terminal `98.6 [97,100]`, the ends rounded outwards.

    That there is none to reduce, where the unprotected arm does not forget; – where it is missing, as in that arm.
    """
    if entry.reduction is None:
        is_compared = unprotected and entry.protection != BASELINE and entry.cost_b is not None
        return ("no forgetting to reduce" if on_page else formats.NOTHING_TO_REDUCE) if is_compared else formats.NOTHING
    mean, low, high = entry.reduction.mean, entry.reduction.low, entry.reduction.high
    if on_page:
        ends = (
            f" ({'−∞' if low is None else formats.points(low)} to {formats.points(high)})" if high is not None else ""
        )
        return formats.points(mean, 2) + ends
    text = formats.points(mean, 1 if abs(mean) < 0.9995 else 0)
    if high is None:
        return text
    least, most = math.floor(round(100 * low, 6)) if low is not None else None, math.ceil(round(100 * high, 6))
    return f"{text} [{'−∞' if least is None else formats.points(least / 100, 0)},{formats.points(most / 100, 0)}]"


def _notes(shown: Shown) -> list[str]:
    """How to read it, and what is missing."""
    summary, notes = shown.result.summary(), formats.unfinished(shown.result.progress, "runs") + shown.diverged
    seeds = max((entry.num_seeds for entry in summary), default=0)
    if seeds > 1:
        notes.append(f"In % and points of test accuracy; ± and [ ]: 95 % interval over {seeds} seeds.")
    elif seeds:
        notes.append("In % and points of test accuracy; one seed gives no interval.")
    if any(entry.reduction is None and entry.cost_b is not None for entry in summary):
        notes.append(f"{formats.NOTHING_TO_REDUCE}: the unprotected A lost nothing, no forgetting to reduce.")
    if summary and BASELINE not in shown.result.config.arms:
        notes.append("No reduction without an unprotected arm: add none to --protection.")
    return notes + [
        f"Bold: the {PROTECTIONS[name].symbol} with the best mean validation accuracy of A and B."
        for name in shown.strengths
        if name in shown.several
    ]


# The page


def two_model_section(result: TwoModelResult) -> dict[str, Any]:
    """What section.html shows of a two-model run, finished or not."""
    shown = Shown(result)
    summary = [(name, summary_rows(shown, panel, on_page=True)) for panel, name in shown.names.items()]
    return {
        "settings": _settings(result.config),
        "sentences": headline_sentences(shown),
        "findings": [(name, " ".join(finding(shown, p))) for p, name in shown.names.items()]
        if len(summary) > 1
        else [],
        "figures": _figures(shown) if result.runs else [],
        "trade_off_command": _trade_off_command(shown),
        "summary": summary,
        "has_chosen": any(row.is_chosen for _, rows in summary for row in rows),
        "strength": formats.strength_heading(result.config.arms),
        "models": [(name, _model_rows(shown, panel)) for panel, name in shown.names.items()] if shown.is_chain else [],
        "seeds": [_seed_row(run) for run in result.runs[:_MOST_ROWS]],
        "num_seeds": len({run.seed for run in result.runs}),
        "num_runs": len(result.runs),
        "time": _time(shown) if result.runs else "",
    }


def _time(shown: Shown) -> str:
    runs = shown.result.runs
    seconds = formats.duration(sum(run.seconds for run in runs))
    many = formats.counted(len(runs), "run")
    return f"Training and following {shown.later} took {seconds} in {many}; training A comes on top."


def _settings(config: TwoModelConfig) -> str:
    chain, optimizer = config.chain, config.optimizer
    return (
        f"{config.data.name}, {chain.wiring} wiring, {chain.models} models of width {chain.width}, "
        f"{optimizer.name} at {number(optimizer.learning_rate)}, {config.schedule.iterations} iterations, "
        f"{formats.counted(config.run.seeds, 'seed')}"
    )


def _figures(shown: Shown) -> list[dict[str, str]]:
    result = shown.result
    seeds = len({run.seed for run in result.runs})
    over, spread, dots, band = "one seed", "", "", ""
    if seeds > 1:
        over, dots = f"mean over {seeds} seeds", " and a dot per seed"
        band = ", in a band from the lowest to the highest seed"
        spread = ", with the 95 % interval (Student's t; an arrowhead where it goes on beyond the axis)"
    strengths = shown.several
    rule = "".join(
        f" Of {len(found)} strengths of {formats.label(name)} this is {PROTECTIONS[name].symbol} = "
        f"{number(shown.chosen[name] or 0)}, under which A and B together have the highest mean validation accuracy; "
        "test data had no part in the choice."
        for name, found in strengths.items()
    )
    trains, dashed = ("train", "the model in training") if shown.is_chain else ("trains", "B")
    text = f"Test accuracy while {shown.later} {trains}, {over}: A solid{band}, {dashed} dashed; dotted, A before."
    drawn = [picture(accuracy_curves(result), text + rule)]
    text = f"What A lost by the end, {over}{spread}{dots}. The numbers at the right are the means.{rule}"
    drawn.append(picture(forgetting_bars(result), text))
    if shown.is_chain:
        text = f"What each model lost by the end, {over}{spread}{dots}. Nothing is trained after the last model."
        drawn.append(picture(chain_forgetting(result), text))
    for name in strengths:
        control = "; the control arm is matched to each strength" if control_of(name) else ""
        text = (
            "Stability against plasticity: test accuracy of A (solid) and B (dashed) by the "
            f"{PROTECTIONS[name].axis()}, {over}{spread}. Horizontal lines: arms without a strength{control}."
        )
        drawn.append(picture(trade_off(result, name), text))
    return drawn


def _trade_off_command(shown: Shown) -> str:
    """How to get the trade-off figure, where it cannot be drawn."""
    config = shown.result.config
    main = main_of(config.arms)
    if main is None or shown.several or not PROTECTIONS[main].has_strength():
        return ""
    strength = next(each.strength_or_none for each in config.protections if each.kind.name == main) or 1.0
    several = tuple(strength * 10.0**power for power in range(-3, 3))
    return command_line(config, "two-model", **{f"{main.replace('-', '_')}_strength": several})


def _model_rows(shown: Shown, panel: Panel) -> list[Row]:
    """Per protection and model of a chain: accuracies and forgetting, as mean over seeds."""
    rows = []
    for group in shown.groups(panel):
        for j, model in enumerate(group.runs[0].models):
            means = [
                sum(getattr(run.models[j], key) for run in group.runs) / len(group.runs)
                for key in ("accuracy_before", "accuracy_after", "forgetting")
            ]
            cells = [model.model, *(formats.points(mean, 2) for mean in means)]
            rows.append(of_protection(group.protection, cells, name=label_of(group)))
    return rows


def _seed_row(run: RunRecord) -> list[str]:
    accuracies = ("accuracy_a_before", "accuracy_a_after", "accuracy_a_min", "accuracy_b", "forgetting")
    return [
        str(run.seed),
        str(run.shared),
        f"{number(round(100 * run.convergence, 6))} %",
        formats.label(run.protection),
        formats.or_nothing(run.strength),
        *(formats.points(getattr(run, key), 2) for key in accuracies),
        str(run.steps_of_a),
        f"{run.shared_learning_rate:.3g}",
        f"{run.seconds:.1f}",
    ]


def two_model_comparison(result: TwoModelResult) -> list[list[str]]:
    """A run beside others: a line for each panel, with its main finding."""
    shown, rows = Shown(result), []
    for panel in shown.panels:
        found = {group.protection: group for group in shown.groups(panel)}
        group = found.get(shown.main or "", next(iter(found.values())))
        cells = [formats.NOTHING] * 4
        if pair := shown.pairs[panel]:
            free, held = pair
            lost, kept, cost = (
                formats.plus_minus(e, 2, 100)
                for e in (free.summary.forgetting, held.summary.forgetting, held.summary.cost_b)
            )
            cells = [lost, kept, reduction_cell(held.summary, on_page=True), cost]
        rows.append([panel_name(panel, [panel]), label_of(group), *cells])
    return rows
