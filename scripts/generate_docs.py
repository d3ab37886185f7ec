"""Write what documentation pages say of the code from the code itself, between marks such as `<!-- made: plugins -->`.

$ python scripts/generate_docs.py          # writes
$ python scripts/generate_docs.py --check  # exit code 1 and the names of the pages that are not up to date
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

from forgetless.comparison import ComparisonConfig, Measure
from forgetless.comparison.records import ComparisonSummary, DifferenceTest, RowSummary
from forgetless.comparison.run import FailureRecord
from forgetless.evaluation.config import EvaluateConfig
from forgetless.evaluation.records import (
    BaselineSummary,
    Beats,
    Ceiling,
    Evaluation,
    JudgedBaseline,
    JudgedBy,
    JudgedSearch,
    JudgedSummary,
)
from forgetless.experiments.fine_tune import FineTuneConfig
from forgetless.experiments.fine_tune.records import FineTuneCurve, FineTuneRecord, MethodSummary
from forgetless.experiments.landscape import ArmRecord, LandscapeConfig, SurfaceRecord
from forgetless.experiments.landscape.records import LandscapeSummary
from forgetless.experiments.two_model import TwoModelConfig
from forgetless.experiments.two_model.records import ArmSummary, CurveRecord, ModelRecord, RunRecord
from forgetless.interference import InterferenceRecord
from forgetless.options import CommandOption, command_options, field_docs
from forgetless.protection import PROTECTIONS
from forgetless.records import Record
from forgetless.sampling import SAMPLERS
from forgetless.search import SearchConfig
from forgetless.search.records import DerivedRecord, EpochRecord, SearchSummary
from forgetless.search.scratch import TrainingResult
from forgetless.spaces import SPACES
from forgetless.strategies import STRATEGIES
from forgetless.strategies.base import Strategy
from forgetless.tasks import TASKS

ROOT = Path(__file__).parents[1]
_REGION = re.compile(r"(<!-- made: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

RECORDS = {
    "two-model": RunRecord,
    "model": ModelRecord,
    "curve": CurveRecord,
    "two-model-summary": ArmSummary,
    "fine-tune": FineTuneRecord,
    "fine-tune-curve": FineTuneCurve,
    "method-summary": MethodSummary,
    "epoch": EpochRecord,
    "derived": DerivedRecord,
    "search-summary": SearchSummary,
    "evaluation": Evaluation,
    "judged-by": JudgedBy,
    "ceiling": Ceiling,
    "judged-search": JudgedSearch,
    "judged-summary": JudgedSummary,
    "judged-baseline": JudgedBaseline,
    "beats": Beats,
    "baseline-summary": BaselineSummary,
    "training": TrainingResult,
    "failed": FailureRecord,
    "comparison": ComparisonSummary,
    "row": RowSummary,
    "difference": DifferenceTest,
    "interference": InterferenceRecord,
    "surface": SurfaceRecord,
    "arm": ArmRecord,
    "landscape-summary": LandscapeSummary,
}
COMMANDS = {
    "two-model": TwoModelConfig,
    "landscape": LandscapeConfig,
    "fine-tune": FineTuneConfig,
    "search": SearchConfig,
    "compare": ComparisonConfig,
    "evaluate": EvaluateConfig,
}
ADDS_TO = {"compare": "search", "landscape": "two-model"}


def plugins() -> str:
    """The files of examples/plugins, whole."""
    parts = []
    for path in sorted((ROOT / "examples" / "plugins").glob("*.py")):
        code = path.read_text(encoding="utf-8")
        parts.append(f"### `{path.name}`\n\n```python\n{code.rstrip()}\n```\n")
    return "\n".join(parts)


def options(command: str) -> str:
    """Tables of the options of a command, by part; where it adds to another, those that this has not, or not so."""
    known = {_row(option) for option in command_options(COMMANDS[ADDS_TO[command]])} if command in ADDS_TO else set()
    groups: dict[str, list[CommandOption]] = {}
    for option in command_options(COMMANDS[command]):
        if _row(option) in known:
            continue
        groups.setdefault(option.group, []).append(option)
    parts = []
    for group, found in groups.items():
        rows = [_row(option) for option in found]
        parts.append("\n".join([f"**{group}**", "", "| option | what it is | default |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def _row(option: CommandOption) -> str:
    return f"| `{option.flag}` | {_cell(option.help)} | {_cell(option.default)} |"


def kinds() -> str:
    """What registers itself: a table of each registry."""
    parts = []
    for registry in (PROTECTIONS, STRATEGIES, SAMPLERS, SPACES, TASKS):
        rows = [f"| `{name}` | {_cell(_first(registry[name]))} |" for name in registry]
        plural = f"{registry.what[:-1]}ies" if registry.what.endswith("y") else f"{registry.what}s"
        parts.append("\n".join([f"**{plural.capitalize()}**", "", "| name | what it does |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def record(kind: type[Record]) -> str:
    """A table of the keys of a record, from the docstring of its class, but for those of a field that lies flat."""
    docs = field_docs(kind)
    keys = [field.name for field in dataclasses.fields(kind) if field.name != kind.flat]
    event = [("event", f"(text) `{kind.event}`")] if kind.event else []
    return _keys([*event, *((key, docs[key]) for key in keys)])


def strategy_keys() -> str:
    """A table of what each strategy tells of its steps."""
    own = {"all": Strategy.measured} | {name: vars(STRATEGIES[name]).get("measured", {}) for name in STRATEGIES}
    found: dict[str, list[str]] = {}
    for name, measured in own.items():
        for key, text in measured.items():
            unit, meaning = _unit(text)
            found.setdefault(f"`strategy_{key}`", []).append(f"| {name} | {unit} | {_cell(meaning)} |")
    rows = [f"| {key} {row}" for key, rows_ in found.items() for row in rows_]
    return "\n".join(["| key | strategy | unit | meaning |", "|---|---|---|---|", *rows, ""])


def measures() -> str:
    """A table of what a comparison measures, and where that is explained."""
    rows = []
    for measure in Measure:
        is_of_epoch = measure in field_docs(EpochRecord) and not measure.is_quality and measure.is_tested
        unit, _ = _unit(field_docs(EpochRecord if is_of_epoch else JudgedSearch)[measure])
        is_tau = measure in {Measure.TAU, Measure.TAU_TOP}
        of_search = "τ of an entry of `searches`" if is_tau else "as in an entry of `searches`"
        meaning = "as in the record of an epoch, mean over `forgetting_epochs`" if is_of_epoch else of_search
        rows.append(f"| `{measure}` | {'τ' if is_tau else unit} | {meaning} |")
    return "\n".join(["| key | unit | meaning |", "|---|---|---|", *rows, ""])


def _keys(entries: list[tuple[str, str]]) -> str:
    rows = [f"| `{key}` | {unit} | {_cell(text)} |" for key, (unit, text) in ((k, _unit(t)) for k, t in entries)]
    return "\n".join(["| key | unit | meaning |", "|---|---|---|", *rows, ""])


def _unit(text: str) -> tuple[str, str]:
    """The unit, which is in parentheses in front, and the rest."""
    found = re.match(r"\(([^()]*)\) (.*)", text)
    if found is None:
        raise ValueError(f"Expected a unit in parentheses in front of {text!r}.")
    return found[1], found[2]


def _first(kind: type) -> str:
    """The first sentence of a docstring."""
    text = " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())
    return text if text.endswith(".") else f"{text}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


MAKERS: dict[str, Callable[[], str]] = {
    "plugins": plugins,
    "kinds": kinds,
    "measures": measures,
    "strategy-keys": strategy_keys,
    **{f"record-{name}": lambda kind=kind: record(kind) for name, kind in RECORDS.items()},
    **{f"options-{command}": lambda command=command: options(command) for command in COMMANDS},
}


def made(text: str) -> str:
    """A page with all of its regions made anew."""
    return _REGION.sub(lambda found: f"{found[1]}\n{MAKERS[found[2]]()}\n{found[3]}", text)


def pages() -> list[Path]:
    """The pages that have regions."""
    candidates = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in candidates if page.is_file() and _REGION.search(page.read_text(encoding="utf-8"))]


def main() -> int:
    """Write or check all pages."""
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := made(text)) != text:
            stale.append(page)
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'is stale' if '--check' in sys.argv else 'written'}")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
