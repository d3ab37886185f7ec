"""What the page shows of a two-model run."""

from collections.abc import Mapping
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
from forgetless.report.two_model.groups import (
    Panel,
    chosen_strength,
    groups,
    later,
    main_protection,
    paired,
    panel_name,
    panels,
    progress,
)
from forgetless.report.two_model.tables import reduction_cell, summary_rows

# Of a table that a browser still shows; metrics.jsonl has all.
_MOST_ROWS = 1000


def two_model_section(result: TwoModelResult) -> dict[str, Any]:
    """What the template shows of a two-model run.

    Args:
        result: Runs, all or some of those asked for.
    """
    shown, said = panels(result), headline_sentences(result)
    names = {panel: panel_name(panel, shown) for panel in shown}
    done, wanted = progress(result)
    is_chain = result.config.chain.models > 2
    summary = [(name, summary_rows(result, panel, on_page=True)) for panel, name in names.items()]
    return {
        "settings": _settings(result.config),
        "headline": said[0],
        "details": " ".join(said[1:]),
        "findings": [(name, " ".join(finding(result, p))) for p, name in names.items()] if len(shown) > 1 else [],
        "unfinished": f"{done} of {wanted} runs are finished" if done < wanted else "",
        "figures": _figures(result) if result.runs else [],
        "trade_off_command": _trade_off_command(result),
        "summary": summary,
        "has_chosen": any(row.is_chosen for _, rows in summary for row in rows),
        "strength": strength_heading(result.config.arms),
        "models": [(name, _model_rows(result, panel)) for panel, name in names.items()] if is_chain else [],
        "seeds": [_seed_row(run) for run in result.runs[:_MOST_ROWS]],
        "num_seeds": len({run["seed"] for run in result.runs}),
        "num_runs": len(result.runs),
        "time": _time(result) if result.runs else "",
    }


def _time(result: TwoModelResult) -> str:
    seconds = duration(sum(run["seconds"] for run in result.runs))
    many = counted(len(result.runs), "run")
    return f"Training and following {later(result)} took {seconds} in {many}; training A comes on top."


def _settings(config: TwoModelConfig) -> str:
    chain, optimizer = config.chain, config.optimizer
    return (
        f"{config.data.name}, {chain.wiring} wiring, {chain.models} models of width {chain.width}, "
        f"{optimizer.name} at {number(optimizer.learning_rate)}, {config.schedule.iterations} iterations, "
        f"{counted(config.run.seeds, 'seed')}"
    )


def _figures(result: TwoModelResult) -> list[dict[str, str]]:
    seeds = len({run["seed"] for run in result.runs})
    over, spread, dots, band = "one seed", "", "", ""
    if seeds > 1:
        over, dots = f"mean over {seeds} seeds", " and a dot per seed"
        band = ", in a band from the lowest to the highest seed"
        spread = ", with the 95 % interval (Student's t; an arrowhead where it goes on beyond the axis)"
    strengths = _strengths(result)
    several = [name for name, values in strengths.items() if len(values) > 1]
    rule = "".join(
        f" Of {len(strengths[name])} strengths of {label(name)} this is {symbol_of(name)} = "
        f"{number(chosen_strength(result, name) or 0)}, "
        "under which A and B together have the highest mean validation accuracy; test data had no part in the choice."
        for name in several
    )
    is_chain = result.config.chain.models > 2
    trains, dashed = ("train", "the model in training") if is_chain else ("trains", "B")
    text = f"Test accuracy while {later(result)} {trains}, {over}: A solid{band}, {dashed} dashed; dotted, A before."
    drawn = [picture(accuracy_curves(result), text + rule)]
    text = f"What A lost by the end, {over}{spread}{dots}. The numbers at the right are the means.{rule}"
    drawn.append(picture(forgetting_bars(result), text))
    if is_chain:
        text = f"What each model lost by the end, {over}{spread}{dots}. Nothing is trained after the last model."
        drawn.append(picture(chain_forgetting(result), text))
    for name in several:
        text = (
            f"Stability against plasticity: test accuracy of A (solid) and B (dashed) by the {strength_axis(name)}, "
            f"{over}{spread}. Horizontal lines: arms without a strength"
        ) + ("; the control arm is matched to each strength." if control_of(name) else ".")
        drawn.append(picture(trade_off(result, name), text))
    return drawn


def _trade_off_command(result: TwoModelResult) -> str:
    """How to get the trade-off figure, where it cannot be drawn."""
    main = main_of(result.config.arms)
    is_drawn = any(len(each) > 1 for each in _strengths(result).values())
    if main is None or is_drawn or not PROTECTIONS[main].has_strength():
        return ""
    strength = next(each.strength_or_none for each in result.config.protections if each.kind.name == main) or 1.0
    several = tuple(strength * 10.0**power for power in range(-3, 3))
    return command_line(result.config, "two-model", **{f"{main.replace('-', '_')}_strength": several})


def _strengths(result: TwoModelResult) -> dict[str, list[float]]:
    """Protection → the strengths that it ran at, of those that are chosen among."""
    found: dict[str, set[float]] = {}
    for run in result.runs:
        if run["strength"] is not None and not is_control(run["protection"]):
            found.setdefault(run["protection"], set()).add(run["strength"])
    order = sorted(found, key=lambda name: (control_of(name) is None, result.config.arms.index(name)))
    return {name: sorted(found[name]) for name in order}


def _model_rows(result: TwoModelResult, panel: Panel) -> list[Row]:
    """Per protection and model of a chain: accuracies and forgetting, as mean over seeds."""
    rows = []
    for group in groups(result, panel):
        for j, model in enumerate(group.runs[0]["models"]):
            means = [
                sum(run["models"][j][key] for run in group.runs) / len(group.runs)
                for key in ("accuracy_before", "accuracy_after", "forgetting")
            ]
            cells = [model["model"], *(points(mean, 2) for mean in means)]
            rows.append(of_protection(group.protection, cells, name=group.label))
    return rows


def _seed_row(run: Mapping[str, Any]) -> list[str]:
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
    """Lines of the table that sets several runs side by side: the main finding of each panel.

    Args:
        result: The run.
    """
    rows = []
    for panel in panels(result):
        found = {group.protection: group for group in groups(result, panel)}
        shown = found.get(main_protection(result) or "", next(iter(found.values())))
        cells = [NOTHING] * 4
        if pair := paired(result, panel):
            free, held = pair
            lost, kept, cost = (
                plus_minus(each, 2, 100) for each in (free["forgetting"], held["forgetting"], held["cost_b"])
            )
            cells = [lost, kept, reduction_cell(held, on_page=True), cost]
        rows.append([panel_name(panel, [panel]), shown.label, *cells])
    return rows
