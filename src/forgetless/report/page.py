"""The report: one HTML file that needs nothing else, made from run folders."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from forgetless.comparison import ComparisonConfig
from forgetless.errors import InputError
from forgetless.experiments import two_model
from forgetless.experiments.two_model import LEARNING_RATES, TwoModelConfig, TwoModelResult
from forgetless.report.canvas import colour, data_uri
from forgetless.report.comparison import comparison_section
from forgetless.report.comparison_result import ComparisonResult, load_comparison
from forgetless.report.figures import accuracy_curves, chain_forgetting, forgetting_bars, trade_off
from forgetless.report.findings import finding, headline_sentences, paired
from forgetless.report.interference import load_interference
from forgetless.report.search_page import search_comparison, search_section
from forgetless.report.search_result import SearchResult
from forgetless.report.table import reduction_text
from forgetless.report.words import (
    NAMES,
    Panel,
    chosen_alpha,
    command_line,
    duration,
    groups,
    later_models,
    listed,
    main_protection,
    number,
    panel_name,
    panels,
    points,
    progress,
    strength_axis,
    strength_heading,
    symbol_of,
)
from forgetless.runs import COMPARE, EXPERIMENT, SEARCH, TWO_MODEL, RunFolder, write_atomically
from forgetless.search import SearchConfig, read_records

Result = TwoModelResult | SearchResult | ComparisonResult
"""What a run folder may hold."""

_CONFIGS: Mapping[str, type[TwoModelConfig | SearchConfig]] = {
    TWO_MODEL: TwoModelConfig,
    SEARCH: SearchConfig,
    COMPARE: ComparisonConfig,
}


# What is drawn against its strength, where several were run.
# Of a table that a browser still shows; metrics.jsonl has all.
_MOST_ROWS = 1000
_WITH_TRADE_OFF = ("wpl", "wpl-tolerance", "l2")


def write_report(folders: Sequence[RunFolder], path: str | Path) -> Path:
    """Write the report of one run, or of several side by side.

    The same folders always give the same file, byte for byte.

    Args:
        folders: Finished or unfinished runs, two-model experiments and searches in any mixture.
        path: The HTML file to write or replace.

    Returns:
        The path.

    Raises:
        InputError: If there is no folder, one is of an unknown experiment or damaged, or the file cannot be written.
    """
    path = Path(path)
    page = report_html(folders)
    try:
        write_atomically(path, page)
    except OSError as error:
        raise InputError(f"Expected a report file that can be written, but got {path} ({error.strerror}).") from error
    return path


def report_html(folders: Sequence[RunFolder]) -> str:
    """The report as text; see `write_report`.

    Args:
        folders: Finished or unfinished runs, two-model experiments and searches in any mixture.

    Returns:
        A whole HTML document without outside resources.

    Raises:
        InputError: If there is no folder, or one is of an unknown experiment or damaged.
    """
    if not folders:
        raise InputError("Expected at least one run folder to report on, but got none. Name the folder of a run.")
    results = [load_result(folder) for folder in folders]
    environment = Environment(
        loader=PackageLoader("forgetless.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    sections = []
    for i, (folder, result) in enumerate(zip(folders, results, strict=True)):
        own: dict[str, Any]
        if isinstance(result, ComparisonResult):
            own = comparison_section(result)
        elif isinstance(result, SearchResult):
            own = search_section(result, load_interference(folder))
        else:
            own = _section(result)
        sections.append({**own, **_common(i, folder, result)})
    return environment.get_template("template.html").render(
        sections=sections,
        kinds={section["kind"] for section in sections},
        comparison=_comparison(folders, results) if len(folders) > 1 else None,
    )


def load_result(folder: RunFolder) -> Result:
    """The configuration and records of a run folder.

    Args:
        folder: A run; `experiment` in its config.toml says of what.

    Returns:
        The result, as far as the run got.

    Raises:
        InputError: If the folder is of an unknown experiment, or a record lacks what every record has.
    """
    values = folder.config
    experiment = values.pop(EXPERIMENT)
    # The device does not matter here, and need not exist on the machine that makes the report.
    device = values.pop("device", "cpu")
    config = _CONFIGS[experiment].from_dict(values)
    object.__setattr__(config, "device", device)
    folder.expect_unedited()
    if isinstance(config, ComparisonConfig):
        return load_comparison(folder, config)
    if isinstance(config, SearchConfig):
        return SearchResult(config, read_records(config, folder))
    assert isinstance(config, TwoModelConfig)
    return TwoModelResult.of(config, two_model.read_records(config, folder))


def _common(index: int, folder: RunFolder, result: Result) -> dict[str, Any]:
    """What the template shows of a run of any kind."""
    return {
        "id": f"run-{index + 1}",
        "path": str(folder.path),
        "command": command_line(result.config),
        "environment": {key: _environment_text(value) for key, value in folder.environment.items()},
    }


def _environment_text(value: object) -> str:
    if isinstance(value, list):  # of what was different when the run was gone on in
        parts = [", ".join(f"{name.replace('_', ' ')} {each[name]}" for name in each) for each in value]
        return "; ".join(parts)
    return "not known" if value is None else str(value)


def _section(result: TwoModelResult) -> dict[str, Any]:
    """What the template shows of a two-model run only."""
    config, shown = result.config, panels(result)
    done, wanted = progress(result)
    summary, said = result.summary(), headline_sentences(result)
    return {
        "kind": TWO_MODEL,
        "settings": _settings(config),
        "headline": said[0],
        "details": " ".join(said[1:]),
        "findings": [(panel_name(p, shown), finding(result, p)) for p in shown] if len(shown) > 1 else [],
        "unfinished": f"{done} of {wanted} runs are finished" if done < wanted else "",
        "figures": _figures(result),
        "trade_off_command": _trade_off_command(result),
        "summary": [(panel_name(p, shown), _summary_rows(result, p, summary)) for p in shown],
        "strength": strength_heading(config.protection),
        "models": [(panel_name(p, shown), _model_rows(result, p)) for p in shown] if config.models > 2 else [],
        "seeds": [_seed_row(run) for run in result.runs[:_MOST_ROWS]],
        "num_seeds": len({run["seed"] for run in result.runs}),
        "num_runs": len(result.runs),
        "later": listed(later_models(result)) if result.runs else "B",
        "time": duration(sum(run["seconds"] for run in result.runs)),
    }


def _settings(config: TwoModelConfig) -> str:
    rate = LEARNING_RATES[config.optimizer] if config.learning_rate is None else config.learning_rate
    return ", ".join(
        [
            config.data,
            f"{config.wiring} wiring",
            f"{config.models} models of width {config.width}",
            f"{config.optimizer} at {number(rate)}",
            f"{config.iterations} iterations",
            f"{config.seeds} seed{'' if config.seeds == 1 else 's'}",
        ]
    )


def _figures(result: TwoModelResult) -> list[dict[str, str]]:
    if not result.runs:
        return []
    config = result.config
    seeds = len({run["seed"] for run in result.runs})
    over = f"mean over {seeds} seeds" if seeds > 1 else "one seed"
    strengths = {name: sorted({r["alpha"] for r in result.runs if r["protection"] == name}) for name in _WITH_TRADE_OFF}
    several = [name for name, alphas in strengths.items() if len(alphas) > 1]
    rule = "".join(
        f" Of {len(strengths[name])} strengths of {NAMES[name]} this is {symbol_of(name)} = "
        f"{number(chosen_alpha(result, name) or 0)}, "
        "under which A and B together have the highest mean validation accuracy; test data had no part in the choice."
        for name in several
    )
    spread = (
        ", with the 95 % interval (Student's t; an arrowhead where it goes on beyond the axis)" if seeds > 1 else ""
    )
    dots = " and a dot per seed" if seeds > 1 else ""
    band = ", in a band from the lowest to the highest seed" if seeds > 1 else ""
    later = listed(later_models(result)) + (" trains" if config.models == 2 else " train")
    dashed = "B" if config.models == 2 else "the model in training"
    text = f"Test accuracy while {later}, {over}: A solid{band}, {dashed} dashed; dotted, A before.{rule}"
    drawn = [(accuracy_curves(result), text)]
    text = f"What A lost by the end, {over}{spread}{dots}. The numbers at the right are the means.{rule}"
    drawn.append((forgetting_bars(result), text))
    if config.models > 2:
        text = f"What each model lost by the end, {over}{spread}{dots}. Nothing is trained after the last model."
        drawn.append((chain_forgetting(result), text))
    for name in several:
        text = f"Stability against plasticity: test accuracy of A (solid) and B (dashed) by the {strength_axis(name)}, "
        text += f"{over}{spread}. Horizontal lines: arms without a strength"
        text += "; the control arm is matched to each α." if name == "wpl" else "."
        drawn.append((trade_off(result, name), text))
    return [{"source": data_uri(figure), "caption": caption} for figure, caption in drawn]


def _trade_off_command(result: TwoModelResult) -> str:
    """How to get the trade-off figure, where it cannot be drawn."""
    if "wpl" not in result.config.protection or len(result.config.alpha) > 1:
        return ""
    return command_line(result.config, alpha=(1e2, 1e3, 1e4, 1e5, 1e6, 1e7))


def _summary_rows(result: TwoModelResult, panel: Panel, summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    here = [entry for entry in summary if panel.holds(entry)]
    unprotected = any(entry["protection"] == "none" for entry in here)
    here.sort(key=lambda entry: result.config.protection.index(entry["protection"]))
    several = {e["protection"] for e in here if sum(other["protection"] == e["protection"] for other in here) > 1}
    return [
        {
            "name": NAMES.get(entry["protection"], entry["protection"]),
            "colour": colour(entry["protection"], result),
            "chosen": entry["protection"] in several and entry["alpha"] == chosen_alpha(result, entry["protection"]),
            "cells": [
                "" if entry["alpha"] is None else number(entry["alpha"]),
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
                    "colour": colour(group.protection, result),
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
        NAMES.get(name, name),
        "" if run["alpha"] is None else number(run["alpha"]),
        *(
            points(run[key], 2)
            for key in ("accuracy_a_before", "accuracy_a_after", "accuracy_a_min", "accuracy_b", "forgetting")
        ),
        str(run.get("steps_of_a", "")),
        f"{run['shared_learning_rate']:.3g}" if "shared_learning_rate" in run else "",
        f"{run['seconds']:.1f}",
    ]


def _comparison(folders: Sequence[RunFolder], results: Sequence[Result]) -> dict[str, Any]:
    """Several runs side by side, each kind for itself: the main findings, and the options in which they differ."""
    named = [(f"#run-{i + 1}", folder.path.name or str(folder.path)) for i, folder in enumerate(folders)]
    two = [(run, r) for run, r in zip(named, results, strict=True) if isinstance(r, TwoModelResult)]
    searches = [(run, r) for run, r in zip(named, results, strict=True) if isinstance(r, SearchResult)]
    return {
        "runs": named,
        "rows": _comparison_rows(two),
        "search_rows": [(run, search_comparison(result)) for run, result in searches],
        "differences": [
            {"runs": [run for run, _ in kind], "options": _differing([result.config for _, result in kind])}
            for kind in (two, searches)
            if len(kind) > 1
        ],
    }


def _comparison_rows(runs: Sequence[tuple[tuple[str, str], TwoModelResult]]) -> list[dict[str, Any]]:
    """The main finding of each panel."""
    everywhere = [panel for _, result in runs for panel in panels(result)]
    rows = []
    for (link, name), result in runs:
        main = main_protection(result)
        for panel in panels(result):
            pair = paired(result, panel)
            found = {group.protection: group for group in groups(result, panel)}
            one = next(iter(found.values()))
            free, held = pair or (None, None)
            rows.append(
                {
                    "link": link,
                    "run": name,
                    "cells": [
                        panel_name(panel, everywhere),
                        found[main].label if main in found else one.label,
                        "–" if free is None else plus_minus(free["forgetting"]),
                        "–" if held is None else plus_minus(held["forgetting"]),
                        "–" if held is None else _reduction(held, unprotected=True),
                        "–" if held is None else plus_minus(held["cost_b"]),
                    ],
                }
            )
    return rows


def _differing(configs: Sequence[TwoModelConfig | SearchConfig]) -> list[tuple[str, list[str]]]:
    """The options in which configurations of one kind differ, as text."""
    options = [{name: _option(value) for name, value in dataclasses.asdict(c).items()} for c in configs]
    return [
        (name, [each[name] for each in options]) for name in options[0] if len({each[name] for each in options}) > 1
    ]


def _option(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(_option(item) for item in value)
    return number(value) if isinstance(value, float) else "–" if value is None else str(value)
