"""The report: one HTML file that needs nothing else, made from run folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from forgetless.errors import InputError
from forgetless.experiments import load_result
from forgetless.experiments.base import kind_of
from forgetless.options import command_line, side_by_side
from forgetless.runs import RunFolder, write_atomically


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
    """The report of `write_report` as text: a whole HTML document without outside resources."""
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
        kind = kind_of(folder)
        sections.append({**kind.section(result, folder), **_common(i, folder, result)})
    return environment.get_template("template.html").render(
        sections=sections,
        kinds={section["kind"] for section in sections},
        comparison=_comparison(folders, results) if len(folders) > 1 else None,
    )


def _common(index: int, folder: RunFolder, result: Any) -> dict[str, Any]:
    """What the template shows of a run of any kind."""
    kind = kind_of(folder)
    return {
        "id": f"run-{index + 1}",
        "kind": kind.name,
        "template": kind.template,
        "path": str(folder.path),
        "progress": (*result.progress, kind.counts),
        "command": command_line(result.config, kind.name),
        "environment": {key: _environment_text(value) for key, value in folder.environment.items()},
    }


def _environment_text(value: object) -> str:
    if isinstance(value, list):  # of what was different when the run was gone on in
        parts = [", ".join(f"{name.replace('_', ' ')} {each[name]}" for name in each) for each in value]
        return "; ".join(parts)
    return "not known" if value is None else str(value)


def _comparison(folders: Sequence[RunFolder], results: Sequence[Any]) -> dict[str, Any]:
    """Several runs side by side, each kind for itself: the main findings, and the options in which they differ."""
    named = [(f"#run-{i + 1}", folder.path.name or str(folder.path)) for i, folder in enumerate(folders)]
    kinds = [kind_of(folder) for folder in folders]
    tables, differences = [], []
    for kind in dict.fromkeys(kinds):
        mine = [(run, result) for run, result, its in zip(named, results, kinds, strict=True) if its is kind]
        rows = [(run, cells) for run, result in mine for cells in kind.comparison_rows(result)]
        if rows:
            tables.append(
                {"title": kind.title, "note": kind.comparison_note, "columns": kind.comparison_columns, "rows": rows}
            )
        if len(mine) > 1:
            options = side_by_side([result.config.to_dict() for _, result in mine])
            differences.append({"runs": [run for run, _ in mine], "options": options})
    return {"runs": named, "tables": tables, "differences": differences}
