"""Write results/README.md from the run folders beside it: every number with the command that made it.

$ python results/tables.py
"""

import json
import math
from pathlib import Path
from typing import Any

import comparisons
import instruction_sets

from forgetless.experiments import load_result
from forgetless.experiments.two_model import TwoModelResult, arms
from forgetless.experiments.two_model.records import ArmSummary
from forgetless.forgetting import Interval
from forgetless.options import command_line
from forgetless.runs import INTERFERENCE, METRICS, RunFolder, write_atomically
from forgetless.search.records import EpochRecord
from forgetless.search.result import REWARD, SearchResult, epochs_text

HERE = Path(__file__).parent

INTRODUCTION = """# Results

Written by `python results/tables.py` from the run folders beside this page; each holds its configuration,
environment and every record, and `forgetless report results/two-model/NAME` draws it. Accuracies are test accuracies in
per cent, means over seeds; intervals are 95 % (Student's t for means, percentile bootstrap over seeds for reductions).
*B against unprotected* is B's accuracy minus the unprotected B's on the same seeds: positive is better.

`mnist` is read from the folder that FORGETLESS_DATA names. Every arm of a seed starts from the same A and sees the same
batches. α and damping were chosen on the validation split.
"""

TITLES = {
    "mnist-crossed-adam": "Crossed wiring, Adam 0.005 (the defaults): A stopped at 100, 55, 43 and 38 %",
    "mnist-crossed-sgd": "The same under SGD 0.1 with momentum 0.9",
    "mnist-crossed-adam-undamped": "The same under Adam, the paper's penalty (`--damping 0`)",
    "mnist-prefix-sigmoid": "Prefix wiring, one to three shared layers, where unprotected A loses over 10 points",
    "mnist-prefix-sgd": "Prefix wiring, ReLU, SGD 0.05: where there is hardly anything to forget",
    "mnist-alpha-adam": "α from 0 to 10¹² in decades, A at convergence",
    "mnist-chain": "A chain of five models",
    "mnist-damping-0": "Damping, A stopped at 43 %: none (the paper's penalty)",
    "mnist-damping-1e-3": "Damping, A stopped at 43 %: 10⁻³ (the default)",
    "mnist-damping-1e-2": "Damping, A stopped at 43 %: 10⁻²",
}


RIVALS = {
    "mnist-rivals-crossed": "All protections, crossed wiring",
    "mnist-rivals-prefix": "All protections, prefix wiring, two shared layers",
}

COMPARISONS = {
    "nas201-digits": "All protections in searches on the benchmark nas201-digits",
    "nas201-digits-longer": "No protection for as long as `nsas` takes, nas201-digits",
    "nas201-digits-strategies": "All strategies on the benchmark nas201-digits",
    "recurrent-3": "Searches on the benchmark recurrent-3",
    "recurrent-3-tried/uniform-lr1e-2": "Tried on recurrent-3: uniform sampling, stronger protection",
    "recurrent-3-tried/uniform-lr3e-3": "Tried on recurrent-3: a smaller learning rate, protected throughout",
    "recurrent-3-rivals": "All protections in searches on the benchmark recurrent-3",
    "recurrent-3-longer": "No protection for as long as `nsas` takes, recurrent-3",
    "recurrent-3-strategies": "All strategies on the benchmark recurrent-3",
    "nas201-cifar10": "Searches on CIFAR-10 (JPEG copy) against NAS-Bench-201",
}

SEARCHES = {
    "ptb": "A search for recurrent cells on the Penn Treebank",
    "nas201-digits": "A search for NAS-Bench-201 cells on the embedded digits",
    "nas201-mnist": "A search for NAS-Bench-201 cells on MNIST",
    "cell-mnist": "A search for ENAS's normal and reduction cells on MNIST",
}


def percent(interval: Interval | None, digits: int = 2) -> str:
    return scaled(interval, 100, digits)


def negated(interval: Interval | None) -> Interval | None:
    return None if interval is None else Interval(-interval.mean, -interval.high, -interval.low)


def validation(result: TwoModelResult, summary: ArmSummary, key: str) -> str:
    """The mean over seeds on the validation split, by which settings were chosen."""
    same = ("shared", "convergence", "protection", "strength")
    runs = [r for r in result.runs if all(getattr(r, name) == getattr(summary, name) for name in same)]
    values = [getattr(run, key) for run in runs]
    return f"{round(100 * sum(values) / len(values), 2) + 0:.2f}"


def table(result: TwoModelResult) -> str:
    columns = [
        "shared",
        "A stopped at",
        "protection",
        "strength",
        "A before",
        "A after",
        "forgetting, points",
        "reduction, %",
    ]
    columns += ["B", "B against unprotected, points", "validation: forgetting, points", "validation: B"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for s in sorted(result.summary(), key=lambda s: (s.shared, -s.convergence)):
        strength = "" if s.strength is None else f"{s.strength:g}"
        stopped = "convergence" if s.convergence == 1 else f"{s.convergence:.0%}"
        lines.append(
            f"| {s.shared} | {stopped} | {s.protection} | {strength} | "
            f"{100 * s.accuracy_a_before.mean:.2f} | "
            f"{100 * s.accuracy_a_after.mean:.2f} | {percent(s.forgetting)} | {percent(s.reduction)} | "
            f"{100 * s.accuracy_b.mean:.2f} | {percent(negated(s.cost_b))} | "
            f"{validation(result, s, 'validation_forgetting')} | {validation(result, s, 'validation_b')} |"
        )
    if result.config.chain.models > 2:
        letters = [m.model for m in result.summary()[0].models]
        lines += ["", "Forgetting per model, points:", "", f"| protection | {' | '.join(letters)} |"]
        lines.append("|---" * (len(letters) + 1) + "|")
        for s in result.summary():
            lines.append(f"| {s.protection} | {' | '.join(percent(m.forgetting) for m in s.models)} |")
    return "\n".join(lines)


def search_table(result: SearchResult) -> str:
    """Forgetting over the epochs in which unprotected models forget, reward over the last quarter."""
    measures = ("forgetting_mean", "forgetting_best", "forgetting_max", "multi_model_part")
    reduced = ("reduction_mean", "reduction_best", "reduction_max", "reduction_multi_model")
    columns = [
        "protection",
        "mean",
        "best 5",
        "maximum",
        "multi-model part",
        *(f"reduction of {n}, %" for n in ("mean", "best 5", "maximum", "part")),
    ]
    columns += ["reward", "reward against none", "derived, test error", "random, test error"]
    averaged = (
        f"forgetting over {epochs_text(result.forgetting_epochs)}, reward over {epochs_text(result.last_quarter)}"
    )
    lines = [f"Errors in {result.unit.name}; {averaged}.", ""]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    digits = 2 if result.unit.scale == 100 else 4
    for s in result.summary():
        cells = [s.protection, *(scaled(getattr(s, name), result.unit.scale, digits) for name in measures)]
        cells += [percent(getattr(s, name), 1) for name in reduced]
        more = result.difference(s.protection, "none", REWARD, result.last_quarter)
        cells += [scaled(s.reward, 1, 3)]
        cells += ["–" if more is None or s.protection == "none" else scaled(more, 1, 3)]
        cells += [
            scaled(getattr(s, name), result.unit.scale, digits) for name in ("derived_test_error", "random_test_error")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def choices(folder: Path, whole: Path) -> str:
    """One line per choice: the same seed, epochs and batches as an unprotected and a protected search of `whole`."""
    paths = [path for path in sorted(folder.iterdir()) if (path / METRICS).exists()]
    results = [result for path in paths if isinstance(result := load_result(RunFolder(path)), SearchResult)]
    reference = load_result(RunFolder(whole))
    assert isinstance(reference, SearchResult)
    shortest = min(result.config.schedule.epochs for result in results)
    epochs = range(reference.forgetting_epochs.start, shortest)
    rewards = range(shortest - math.ceil(shortest / 4), shortest)
    note = (
        f"`{command_line(results[0].config, 'search')}` and the like, seed 0, against seed 0 of the search above; in "
        f"{reference.unit.name}; forgetting over {epochs_text(epochs)}, reward over {epochs_text(rewards)}. One seed "
        "has no interval."
    )
    columns = ("protection", "mean", "best 5", "maximum", "multi-model part", "reward", "s to consolidate, an epoch")
    rows = [("no protection", reference, "none"), (f"`--wpl.strength {_strength(reference):g}`", reference, "wpl")]
    rows += [(f"`{differences(result, reference)}`", result, "wpl") for result in results]
    return "\n".join(
        [
            "## Choices of protection on the Penn Treebank, one seed",
            *("", note, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"),
            *(choice(name, result.epochs(arm, 0), epochs, rewards) for name, result, arm in rows),
            "",
        ]
    )


def choice(name: str, records: list[EpochRecord], epochs: range, rewards: range) -> str:
    def mean(key: str, span: range) -> float:
        values = [v for record in records if record.epoch in span and (v := record.number(key)) is not None]
        return sum(values) / len(values)

    measures = ("forgetting_mean", "forgetting_best", "forgetting_max", "multi_model_part")
    seconds = [record.seconds["consolidate"] for record in records if record.epoch in epochs]
    cells = [f"{mean(key, epochs):.4f}" for key in measures]
    return f"| {name} | {' | '.join(cells)} | {mean(REWARD, rewards):.3f} | {sum(seconds) / len(seconds):.1f} |"


def differences(result: SearchResult, reference: SearchResult) -> str:
    """The options in which a search differs from its reference, as they are typed."""
    mine, other = result.config, reference.config
    pairs = {
        "--strength-decay": (mine.protect.strength_decay, other.protect.strength_decay),
        "--wpl.rule": (mine.options_of("wpl").rule, other.options_of("wpl").rule),
        "--wpl.decay": (mine.options_of("wpl").decay, other.options_of("wpl").decay),
        "--protect": (mine.protect.scope, other.protect.scope),
        "--importance": (mine.importance.source, other.importance.source),
    }
    changes = [f"{flag} {value}" for flag, (value, usual) in pairs.items() if value != usual]
    return " ".join([f"--wpl.strength {_strength(result):g}", *changes])


def _strength(result: SearchResult) -> float:
    return float(result.config.options_of("wpl").strength)


def interference_table(path: Path, result: SearchResult) -> str:
    """What the multi-model part is made of: what others do to a model, and what its own training does."""
    arms = json.loads(path.read_text(encoding="utf-8"))["arms"]
    models, epochs, batches = len(arms[0]["architectures"]), arms[0]["epochs"], arms[0]["num_batches"]
    scale, unit = result.unit.scale, result.unit.name
    note = (
        f"Who overwrites whom, seed {arms[0]['seed']}, after {epochs} epochs: `forgetless interference RUN --models "
        f"{models}`. Change of a model's error, in {unit}, by {batches} batches of training another model, and of "
        "training itself on the same batches; the multi-model part is the difference."
    )
    lines = [note, "", "| protection | by another | by itself | multi-model part |", "|---|---|---|---|"]
    for arm in arms:
        own = sum(arm["change"][i][i] for i in range(models)) / models
        others = sum(arm["change"][i][j] for i in range(models) for j in range(models) if i != j) / (models**2 - models)
        part = scaled(Interval(**arm["multi_model_part"]), scale, 4)
        lines.append(f"| {arm['protection']} | {scale * others:.4f} | {scale * own:.4f} | {part} |")
    return "\n".join(lines)


def scaled(interval: Interval | None, scale: float, digits: int) -> str:
    return "–" if interval is None else comparisons.with_ends(interval, scale, digits)


def section(folder: RunFolder, title: str) -> str:
    result = load_result(folder)
    environment: dict[str, Any] = folder.environment
    where = ", ".join(
        f"{environment[key]}" if key == "processor" else f"{key} {environment[key]}"
        for key in ("processor", "python", "torch", "git_revision")
    )
    measured = []
    if isinstance(result, SearchResult) and (folder.path / INTERFERENCE).exists():
        measured = [interference_table(folder.path / INTERFERENCE, result), ""]
    command = command_line(result.config, folder.header.experiment)
    return "\n".join(
        [
            f"## {title}",
            "",
            f"`{command}` ({result.config.run.seeds} seeds, one thread; {where})",
            "",
            body(result, folder.path.name),
            "",
            *measured,
        ]
    )


def is_complete(folder: RunFolder) -> bool:
    result = load_result(folder)
    return isinstance(result, TwoModelResult) and len(result.runs) == len(arms(result.config))


def body(result: SearchResult | TwoModelResult, name: str) -> str:
    if isinstance(result, SearchResult):
        return search_table(result)
    return (
        "\n\n".join([comparisons.rivals(result), "Every strength:", table(result)]) if name in RIVALS else table(result)
    )


def reliability(path: Path) -> str:
    """How often a run was struck in each way, and how it ended."""
    found = json.loads(path.read_text(encoding="utf-8"))
    outcomes = ("identical", "warned", "refused", "wrong")
    totals: dict[str, dict[str, int]] = {}
    revisions: dict[str, set[str]] = {}
    for name, section_ in found["sections"].items():
        what = "bombs among data files" if name.startswith("bomb ") else name.partition(", part ")[0]
        total = totals.setdefault(what, dict.fromkeys(outcomes, 0))
        revisions.setdefault(what, set()).add(section_["revision"])
        for counts in section_["counts"].values():
            for outcome in outcomes:
                total[outcome] += counts[outcome]
    note = (
        f"`{found['command']}`. Struck were real commands of small size: killed, told that the disk is full, started "
        "twice, sent signals, or given damaged files. *Identical*: the same result after going on, without a word. "
        "*Warned*: the same, and a sentence said what was lost or left out. *Refused*: one clear sentence and exit "
        "code 2 or 1. *Wrong*: another result in silence, a traceback, a hang, an orphan."
    )
    lines = _head("Kills, full disks, damage, signals", note, ("what", *outcomes, "revision"))
    for what, total in totals.items():
        lines.append(f"| {what} | {' | '.join(map(str, total.values()))} | {', '.join(sorted(revisions[what]))} |")
    lines += ["", "What was found to go wrong once, and the test that fails if it does again:", "", "| what | test |"]
    lines.append("|---|---|")
    for what, test in json.loads((HERE / "faults.json").read_text(encoding="utf-8")).items():
        lines.append(f"| {what} | `{test}` |")
    return "\n".join([*lines, ""])


def checkpoints(path: Path) -> str:
    """What it costs to store the state of a run every so often."""
    found = json.loads(path.read_text(encoding="utf-8"))
    note = (
        f"`{found['command']}` ({_where(found)}). A checkpoint is possible at every *call*; it is stored at the "
        f"first call after `--checkpoint-every`, by default {found['interval']}. The share of a run's time is that of "
        "its calls and of the longest checkpoint per such interval."
    )
    columns = ("run", "s", "calls", "s in calls", "longest checkpoint, s", "MB", "share, %")
    lines = _head("Cost of checkpoints", note, columns)
    for name, run in found["runs"].items():
        numbers = (run["seconds_in_calls"], run["longest_checkpoint"], run["megabytes"])
        cells = [f"{run['seconds']:.0f}", f"{run['calls']:,}", *(f"{number:.2g}" for number in numbers[:2])]
        lines.append(f"| {name} | {' | '.join(cells)} | {numbers[2]:.1f} | {100 * run['share']:.3f} |")
    return "\n".join([*lines, ""])


def load(path: Path) -> str:
    """How long reports of long runs take."""
    found = json.loads(path.read_text(encoding="utf-8"))
    note = (
        f"`{found['command']}` ({_where(found)}). Each is made by a process of its own; its imports alone take "
        f"{min(report['imports_mb'] for report in found['reports'].values()):.0f} MB."
    )
    lines = _head("Reports of long runs", note, ("run", "records", "s", "peak, MB", "page, MB"))
    for name, report in found["reports"].items():
        sizes = f"{report['peak_mb']:.0f} | {report['page_mb']:.1f}"
        lines.append(f"| {name} | {report['records']:,} | {report['seconds']:.1f} | {sizes} |")
    return "\n".join([*lines, ""])


def _head(title: str, note: str, columns: tuple[str, ...]) -> list[str]:
    """A section up to the first row of its table."""
    return [f"## {title}", "", note, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _where(measured: dict[str, Any]) -> str:
    keys = ("cpu", "python", "torch", "threads")
    return ", ".join(f"{key} {measured['environment'][key]}" for key in keys)


def speed(path: Path) -> str:
    measured = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"## Speed: {measured['benchmark']}", ""]
    lines += [f"`{measured['command']}` (median of {measured['rounds']} interleaved rounds; {_where(measured)})", ""]
    for title, timings in measured["tables"].items():
        lines += [title, "", "| | ms | ratio | quartiles |", "|---|---|---|---|"]
        for t in timings:
            quartiles = f"{t['ratio_low']:.2f}–{t['ratio_high']:.2f}"
            lines.append(f"| {t['name']} | {1e3 * t['seconds']:.1f} | {t['ratio']:.2f} | {quartiles} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    parts = [INTRODUCTION]
    for name, title in TITLES.items():
        if (HERE / "two-model" / name).is_dir():
            parts.append(section(RunFolder(HERE / "two-model" / name), title))
    for name, title in SEARCHES.items():
        parts.append(section(RunFolder(HERE / "search" / name), title))
        if name == "ptb":
            parts.append(choices(HERE / "search" / "ptb-choices", HERE / "search" / name))
    for name, title in RIVALS.items():
        # One that is not complete can be gone on with: forgetless resume.
        if (HERE / "two-model" / name).is_dir() and is_complete(RunFolder(HERE / "two-model" / name)):
            parts.append(section(RunFolder(HERE / "two-model" / name), title))
    parts += [comparisons.strengths(path) for path in sorted((HERE / "strengths").glob("*.json"))]
    for name, title in COMPARISONS.items():
        if (HERE / "compare" / name).is_dir():
            parts.append(comparisons.comparison(RunFolder(HERE / "compare" / name), title))
        if name == "recurrent-3":
            parts.append(comparisons.ranking(HERE / "ranking.json"))
    parts += [comparisons.evaluation(HERE / "evaluate.json"), comparisons.fan_out(HERE / "fan-out.json")]
    parts += [instruction_sets.section(), reliability(HERE / "reliability.json")]
    parts += [checkpoints(HERE / "checkpoints.json"), load(HERE / "report-load.json")]
    parts += [speed(path) for path in sorted((HERE / "speed").glob("*.json"))]
    write_atomically(HERE / "README.md", "\n".join(parts))
