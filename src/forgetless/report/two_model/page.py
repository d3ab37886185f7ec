"""What the page shows of a two-model run."""

from typing import Any

from forgetless.experiments.two_model import TwoModelConfig, TwoModelResult
from forgetless.options import command_line, number
from forgetless.protection import PROTECTIONS
from forgetless.report.canvas import picture
from forgetless.report.formats import (
    NOTHING,
    control_of,
    counted,
    duration,
    is_control,
    label,
    main_of,
    or_nothing,
    plus_minus,
    points,
    strength_axis,
    strength_heading,
    symbol_of,
)
from forgetless.report.table import Row, of_protection
from forgetless.report.two_model.figures import accuracy_curves, chain_forgetting, forgetting_bars, trade_off
from forgetless.report.two_model.findings import finding, headline_sentences
from forgetless.report.two_model.shown import Panel, Run, Shown, panel_name
from forgetless.report.two_model.tables import reduction_cell, summary_rows

# Of a table that a browser still shows; metrics.jsonl has all.
_MOST_ROWS = 1000


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
        "progress": (*shown.progress, "runs"),
        "figures": _figures(shown) if result.runs else [],
        "trade_off_command": _trade_off_command(shown),
        "summary": summary,
        "has_chosen": any(row.is_chosen for _, rows in summary for row in rows),
        "strength": strength_heading(result.config.arms),
        "models": [(name, _model_rows(shown, panel)) for panel, name in shown.names.items()] if shown.is_chain else [],
        "seeds": [_seed_row(run) for run in result.runs[:_MOST_ROWS]],
        "num_seeds": len({run["seed"] for run in result.runs}),
        "num_runs": len(result.runs),
        "time": _time(shown) if result.runs else "",
    }


def _time(shown: Shown) -> str:
    runs = shown.result.runs
    seconds = duration(sum(run["seconds"] for run in runs))
    return (
        f"Training and following {shown.later} took {seconds} in {counted(len(runs), 'run')}; training A comes on top."
    )


def _settings(config: TwoModelConfig) -> str:
    chain, optimizer = config.chain, config.optimizer
    return (
        f"{config.data.name}, {chain.wiring} wiring, {chain.models} models of width {chain.width}, "
        f"{optimizer.name} at {number(optimizer.learning_rate)}, {config.schedule.iterations} iterations, "
        f"{counted(config.run.seeds, 'seed')}"
    )


def _figures(shown: Shown) -> list[dict[str, str]]:
    result = shown.result
    seeds = len({run["seed"] for run in result.runs})
    over, spread, dots, band = "one seed", "", "", ""
    if seeds > 1:
        over, dots = f"mean over {seeds} seeds", " and a dot per seed"
        band = ", in a band from the lowest to the highest seed"
        spread = ", with the 95 % interval (Student's t; an arrowhead where it goes on beyond the axis)"
    strengths = _several(shown)
    rule = "".join(
        f" Of {len(found)} strengths of {label(name)} this is {symbol_of(name)} = {number(shown.chosen[name] or 0)}, "
        "under which A and B together have the highest mean validation accuracy; test data had no part in the choice."
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
        text = (
            f"Stability against plasticity: test accuracy of A (solid) and B (dashed) by the {strength_axis(name)}, "
            f"{over}{spread}. Horizontal lines: arms without a strength"
        ) + ("; the control arm is matched to each strength." if control_of(name) else ".")
        drawn.append(picture(trade_off(result, name), text))
    return drawn


def _trade_off_command(shown: Shown) -> str:
    """How to get the trade-off figure, where it cannot be drawn."""
    config = shown.result.config
    main = main_of(config.arms)
    if main is None or _several(shown) or not PROTECTIONS[main].has_strength():
        return ""
    strength = next(each.strength_or_none for each in config.protections if each.kind.name == main) or 1.0
    several = tuple(strength * 10.0**power for power in range(-3, 3))
    return command_line(config, "two-model", **{f"{main.replace('-', '_')}_strength": several})


def _several(shown: Shown) -> dict[str, list[float]]:
    """The protections that ran at several strengths, which are chosen among; those with a control arm first."""
    found = {name: values for name, values in shown.strengths.items() if len(values) > 1 and not is_control(name)}
    return dict(sorted(found.items(), key=lambda item: control_of(item[0]) is None))


def _model_rows(shown: Shown, panel: Panel) -> list[Row]:
    """Per protection and model of a chain: accuracies and forgetting, as mean over seeds."""
    rows = []
    for group in shown.groups(panel):
        for j, model in enumerate(group.runs[0]["models"]):
            means = [
                sum(run["models"][j][key] for run in group.runs) / len(group.runs)
                for key in ("accuracy_before", "accuracy_after", "forgetting")
            ]
            cells = [model["model"], *(points(mean, 2) for mean in means)]
            rows.append(of_protection(group.protection, cells, name=group.label))
    return rows


def _seed_row(run: Run) -> list[str]:
    accuracies = ("accuracy_a_before", "accuracy_a_after", "accuracy_a_min", "accuracy_b", "forgetting")
    return [
        str(run["seed"]),
        str(run["shared"]),
        f"{number(round(100 * run['convergence'], 6))} %",
        label(run["protection"]),
        or_nothing(run["strength"]),
        *(points(run[key], 2) for key in accuracies),
        str(run.get("steps_of_a", "")),
        f"{run['shared_learning_rate']:.3g}" if "shared_learning_rate" in run else "",
        f"{run['seconds']:.1f}",
    ]


def two_model_comparison(result: TwoModelResult) -> list[list[str]]:
    """A run beside others: a line for each panel, with its main finding."""
    shown, rows = Shown(result), []
    for panel in shown.panels:
        found = {group.protection: group for group in shown.groups(panel)}
        group = found.get(shown.main or "", next(iter(found.values())))
        cells = [NOTHING] * 4
        if pair := shown.paired(panel):
            free, held = pair
            lost, kept, cost = (plus_minus(e, 2, 100) for e in (free["forgetting"], held["forgetting"], held["cost_b"]))
            cells = [lost, kept, reduction_cell(held, on_page=True), cost]
        rows.append([panel_name(panel, [panel]), group.label, *cells])
    return rows
