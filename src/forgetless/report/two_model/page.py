"""What the HTML report shows of a two-model run."""

from collections.abc import Mapping, Sequence
from typing import Any

from forgetless.experiments.two_model import TwoModelConfig, TwoModelResult
from forgetless.options import command_line, number
from forgetless.protection import BASELINE, PROTECTIONS
from forgetless.report.canvas import colour, data_uri
from forgetless.report.two_model.figures import accuracy_curves, chain_forgetting, forgetting_bars, trade_off
from forgetless.report.two_model.findings import finding, headline_sentences, paired
from forgetless.report.two_model.groups import (
    Panel,
    chosen_strength,
    control_of,
    duration,
    groups,
    is_control,
    label,
    later_models,
    listed,
    main_of,
    main_protection,
    panel_name,
    panels,
    points,
    progress,
    strength_axis,
    strength_heading,
    symbol_of,
)
from forgetless.report.two_model.tables import reduction_text

# Of a table that a browser still shows; metrics.jsonl has all.
_MOST_ROWS = 1000


def two_model_section(result: TwoModelResult) -> dict[str, Any]:
    """What the template shows of a two-model run.

    Args:
        result: Runs, all or some of those asked for.
    """
    config, shown = result.config, panels(result)
    done, wanted = progress(result)
    summary, said = result.summary(), headline_sentences(result)
    return {
        "settings": _settings(config),
        "headline": said[0],
        "details": " ".join(said[1:]),
        "findings": [(panel_name(p, shown), finding(result, p)) for p in shown] if len(shown) > 1 else [],
        "unfinished": f"{done} of {wanted} runs are finished" if done < wanted else "",
        "figures": _figures(result),
        "trade_off_command": _trade_off_command(result),
        "summary": [(panel_name(p, shown), _summary_rows(result, p, summary)) for p in shown],
        "strength": strength_heading(config.arms),
        "models": [(panel_name(p, shown), _model_rows(result, p)) for p in shown] if config.chain.models > 2 else [],
        "seeds": [_seed_row(run) for run in result.runs[:_MOST_ROWS]],
        "num_seeds": len({run["seed"] for run in result.runs}),
        "num_runs": len(result.runs),
        "later": listed(later_models(result)) if result.runs else "B",
        "time": _time(result),
    }


def _time(result: TwoModelResult) -> str:
    if not result.runs:
        return ""
    later, runs = listed(later_models(result)), len(result.runs)
    seconds = duration(sum(run["seconds"] for run in result.runs))
    many = f"{runs} run{'' if runs == 1 else 's'}"
    return f"Training and following {later} took {seconds} in {many}; training A comes on top."


def _settings(config: TwoModelConfig) -> str:
    chain, optimizer = config.chain, config.optimizer
    return ", ".join(
        [
            config.data.name,
            f"{chain.wiring} wiring",
            f"{chain.models} models of width {chain.width}",
            f"{optimizer.name} at {number(optimizer.learning_rate)}",
            f"{config.schedule.iterations} iterations",
            f"{config.run.seeds} seed{'' if config.run.seeds == 1 else 's'}",
        ]
    )


def _figures(result: TwoModelResult) -> list[dict[str, str]]:
    if not result.runs:
        return []
    config = result.config
    seeds = len({run["seed"] for run in result.runs})
    over = f"mean over {seeds} seeds" if seeds > 1 else "one seed"
    strengths = _strengths(result)
    several = [name for name, values in strengths.items() if len(values) > 1]
    rule = "".join(
        f" Of {len(strengths[name])} strengths of {label(name)} this is {symbol_of(name)} = "
        f"{number(chosen_strength(result, name) or 0)}, "
        "under which A and B together have the highest mean validation accuracy; test data had no part in the choice."
        for name in several
    )
    spread = (
        ", with the 95 % interval (Student's t; an arrowhead where it goes on beyond the axis)" if seeds > 1 else ""
    )
    dots = " and a dot per seed" if seeds > 1 else ""
    band = ", in a band from the lowest to the highest seed" if seeds > 1 else ""
    later = listed(later_models(result)) + (" trains" if config.chain.models == 2 else " train")
    dashed = "B" if config.chain.models == 2 else "the model in training"
    text = f"Test accuracy while {later}, {over}: A solid{band}, {dashed} dashed; dotted, A before.{rule}"
    drawn = [(accuracy_curves(result), text)]
    text = f"What A lost by the end, {over}{spread}{dots}. The numbers at the right are the means.{rule}"
    drawn.append((forgetting_bars(result), text))
    if config.chain.models > 2:
        text = f"What each model lost by the end, {over}{spread}{dots}. Nothing is trained after the last model."
        drawn.append((chain_forgetting(result), text))
    for name in several:
        text = f"Stability against plasticity: test accuracy of A (solid) and B (dashed) by the {strength_axis(name)}, "
        text += f"{over}{spread}. Horizontal lines: arms without a strength"
        text += "; the control arm is matched to each strength." if control_of(name) else "."
        drawn.append((trade_off(result, name), text))
    return [{"source": data_uri(figure), "caption": caption} for figure, caption in drawn]


def _trade_off_command(result: TwoModelResult) -> str:
    """How to get the trade-off figure, where it cannot be drawn."""
    main = main_of(result.config.arms)
    if (
        main is None
        or not PROTECTIONS[main].has_strength()
        or any(len(each) > 1 for each in _strengths(result).values())
    ):
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


def _summary_rows(result: TwoModelResult, panel: Panel, summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    here = [entry for entry in summary if panel.holds(entry)]
    unprotected = any(entry["protection"] == BASELINE for entry in here)
    here.sort(key=lambda entry: result.config.arms.index(entry["protection"]))
    several = {e["protection"] for e in here if sum(other["protection"] == e["protection"] for other in here) > 1}
    return [
        {
            "name": label(entry["protection"]),
            "colour": colour(entry["protection"]),
            "chosen": entry["protection"] in several
            and entry["strength"] == chosen_strength(result, entry["protection"]),
            "cells": [
                "" if entry["strength"] is None else number(entry["strength"]),
                *(plus_minus(entry[key]) for key in ("accuracy_a_before", "accuracy_a_after", "forgetting")),
                _reduction(entry, unprotected=unprotected),
                plus_minus(entry["accuracy_b"]),
                plus_minus(entry["cost_b"]),
            ],
        }
        for entry in here
    ]


def _reduction(entry: Mapping[str, Any], *, unprotected: bool) -> str:
    prevented = entry["reduction"]
    if prevented is None:
        text = reduction_text(entry, unprotected=unprotected)
        return text if text == "–" else "no forgetting to reduce"
    ends = (
        ("−∞" if prevented["low"] is None else points(prevented["low"], 1)),
        ("∞" if prevented["high"] is None else points(prevented["high"], 1)),
    )
    return points(prevented["mean"], 2) + (f" ({ends[0]} to {ends[1]})" if entry["num_seeds"] > 1 else "")


def plus_minus(interval: Mapping[str, float | None] | None) -> str:
    """Mean ± half the width of the interval, in per cent with two decimals; – for nothing."""
    if interval is None or interval["mean"] is None:
        return "–"
    half = None if interval["high"] is None else interval["high"] - interval["mean"]
    return points(interval["mean"], 2) + ("" if half is None else f" ± {points(half, 2)}")


def _model_rows(result: TwoModelResult, panel: Panel) -> list[dict[str, Any]]:
    """Per protection and model of a chain: accuracies and forgetting, as mean over seeds."""
    rows = []
    for group in groups(result, panel):
        for j, model in enumerate(group.runs[0]["models"]):
            means = {
                key: sum(run["models"][j][key] for run in group.runs) / len(group.runs)
                for key in ("accuracy_before", "accuracy_after", "forgetting")
            }
            rows.append(
                {
                    "name": group.label,
                    "colour": colour(group.protection),
                    "cells": [model["model"], *(points(value, 2) for value in means.values())],
                }
            )
    return rows


def _seed_row(run: Mapping[str, Any]) -> list[str]:
    name = str(run["protection"])
    return [
        str(run["seed"]),
        str(run["shared"]),
        f"{number(round(100 * run['convergence'], 6))} %",
        label(name),
        "" if run["strength"] is None else number(run["strength"]),
        *(
            points(run[key], 2)
            for key in ("accuracy_a_before", "accuracy_a_after", "accuracy_a_min", "accuracy_b", "forgetting")
        ),
        str(run.get("steps_of_a", "")),
        f"{run['shared_learning_rate']:.3g}" if "shared_learning_rate" in run else "",
        f"{run['seconds']:.1f}",
    ]


def two_model_comparison(result: TwoModelResult) -> list[list[str]]:
    """Lines of the table that sets several runs side by side: the main finding of each panel.

    Args:
        result: The run.
    """
    rows, main = [], main_protection(result)
    for panel in panels(result):
        pair = paired(result, panel)
        found = {group.protection: group for group in groups(result, panel)}
        one = next(iter(found.values()))
        free, held = pair or (None, None)
        rows.append(
            [
                panel_name(panel, [panel]),
                found[main].label if main in found else one.label,
                "–" if free is None else plus_minus(free["forgetting"]),
                "–" if held is None else plus_minus(held["forgetting"]),
                "–" if held is None else _reduction(held, unprotected=True),
                "–" if held is None else plus_minus(held["cost_b"]),
            ]
        )
    return rows
