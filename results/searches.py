"""Pages of `forgetless search`: searches with and without protection, and what smaller steps alone would do."""

import math
from collections.abc import Sequence
from pathlib import Path

from page import HERE, Cells, Page, known, load, percent, read, run_block, shown, table, time_taken

from forgetless.forgetting import Interval
from forgetless.options import command_line
from forgetless.protection.wpl import WPLOptions
from forgetless.report.formats import points
from forgetless.runs import INTERFERENCE, METRICS
from forgetless.search.records import EpochRecord
from forgetless.search.result import MULTI_MODEL, REDUCTIONS, REWARD, SearchResult, epochs_text

FORGETTING = {
    "mean": "forgetting_mean",
    "best 5": "forgetting_best",
    "maximum": "forgetting_max",
    "multi-model part": MULTI_MODEL,
}
"""Column → the key of what is in it."""

WHAT_CHOICES_DO = """- `sum` and a large α hold so much that the search learns less; `merge` averages the progress away.
- Holding the cell alone is as good as holding embedding and decoder, too.
- Importance from held-out examples is no better than from training batches, and far slower.
- Under SGD 10 with clip 0.25, the paper's optimizer, forgetting at these sizes was near 0 and mostly noise, in trials
  of one seed whose records are not kept; hence Adam."""


def pages() -> list[Page]:
    return [digits(), mnist(), cell(), ptb()]


def result_of(name: str) -> SearchResult:
    result: SearchResult = load(HERE / "search" / name)
    return result


def digits() -> Page:
    return page(
        "nas201-digits",
        title="NAS-Bench-201 cells on digits",
        question="How much do image cells that train on shared weights forget, on the embedded digits?",
    )


def mnist() -> Page:
    return page(
        "nas201-mnist",
        title="NAS-Bench-201 cells on MNIST",
        question="How much do image cells that train on shared weights forget, in a short search on MNIST?",
    )


def cell() -> Page:
    return page(
        "cell-mnist",
        title="ENAS cells on MNIST",
        question="How much do ENAS's normal and reduction cells forget, in a short search on MNIST?",
    )


def ptb() -> Page:
    return page(
        "ptb",
        title="Recurrent cells on the Penn Treebank",
        question="How much do recurrent cells that train on shared weights forget, on text?",
        parts=[interference(HERE / "search" / "ptb" / INTERFERENCE), choices()],
    )


def page(name: str, *, title: str, question: str, parts: Sequence[str] = ()) -> Page:
    """A page of one search, whose first sentence is about mean forgetting."""
    path, result = HERE / "search" / name, result_of(name)
    of = {s.protection: s for s in result.summary()}
    decimals, unit = (1, "points") if result.unit.scale == 100 else (3, "nats")
    lost = (result.unit.scale * known(of[arm].forgetting_mean).mean for arm in ("none", "wpl"))
    free, held = (f"{mean:.{decimals}f}" for mean in lost)
    prevented, slowed = (known(of[arm].reduction_mean).mean for arm in ("wpl", "matched-lr"))
    rewards = known(difference(result, "wpl"))
    assert rewards.low is not None
    assert rewards.high is not None
    verdict = "not significantly different" if rewards.low <= 0 <= rewards.high else "significantly different"
    return Page(
        name=f"search-{name}",
        title=title,
        question=question,
        answer=f"Weight plasticity lowers mean forgetting from {free} to {held.replace('-', '−')} {unit}.",
        # Where models gain instead, more than all is prevented.
        more=f"That prevents {points(min(prevented, 1.0), 0)} %; smaller steps alone (`matched-lr`) prevent "
        f"{points(slowed, 0)} %. The reward is {verdict} from that without protection: {shown(rewards, 1, 3)}. No "
        "derived architecture is significantly better than a random one.",
        parts=[run_block(path, time_taken(sum(s.seconds for s in of.values()))), *tables(result), *parts],
    )


def tables(result: SearchResult) -> list[str]:
    """Forgetting over the epochs in which unprotected models forget, reward over the last quarter."""
    scale, digits = result.unit.scale, 2 if result.unit.scale == 100 else 4
    lost: list[Cells] = []
    reduced: list[Cells] = []
    found: list[Cells] = []
    for s in result.summary():
        arm = {"protection": s.protection}
        lost.append(arm | {column: shown(getattr(s, key), scale, digits) for column, key in FORGETTING.items()})
        if s.protection != "none":
            reduced.append(
                arm | {reduction_of(c): percent(getattr(s, REDUCTIONS[key]), 1) for c, key in FORGETTING.items()}
            )
        more = None if s.protection == "none" else difference(result, s.protection)
        tests = [shown(getattr(s, key), scale, digits) for key in ("derived_test_error", "random_test_error")]
        gained = [shown(s.reward, 1, 3), shown(more, 1, 3)]
        columns = ("reward", "reward against none", "derived, test error", "random, test error")
        found.append(arm | dict(zip(columns, (*gained, *tests), strict=True)))
    forgetting = (
        f"In {result.unit.name}, over {epochs_text(result.forgetting_epochs)}: how much models' errors rise between "
        "the end of their training and the end of the epoch. The multi-model part is how much worse off a model is "
        "when another trains instead of itself."
    )
    rewards = (
        f"Rewards over {epochs_text(result.last_quarter)}. *Derived* is the best architecture of the search, trained "
        f"from scratch; *random* is one drawn uniformly. Errors in {result.unit.name}."
    )
    return [
        f"## Forgetting\n\n{forgetting}",
        table(lost),
        "Reduction against no protection, on the same seeds:",
        table(reduced),
        f"## Rewards and derived architectures\n\n{rewards}",
        table(found),
    ]


def reduction_of(column: str) -> str:
    return f"reduction of {column.removeprefix('multi-model ')}, %"


def difference(result: SearchResult, protection: str) -> Interval | None:
    return result.difference(protection, "none", REWARD, result.last_quarter)


def interference(path: Path) -> str:
    """What the multi-model part is made of: what others do to a model, and what its own training does."""
    arms, unit = read(path)["arms"], result_of(path.parent.name).unit
    models, epochs, batches = len(arms[0]["architectures"]), arms[0]["epochs"], arms[0]["num_batches"]
    rows = []
    for arm in arms:
        own = sum(arm["change"][i][i] for i in range(models)) / models
        others = sum(arm["change"][i][j] for i in range(models) for j in range(models) if i != j) / (models**2 - models)
        rows.append(
            {
                "protection": arm["protection"],
                "by another": f"{unit.scale * others:.4f}",
                "by itself": f"{unit.scale * own:.4f}",
                "multi-model part": shown(arm["multi_model_part"], unit.scale, 4),
            }
        )
    note = (
        f"`forgetless interference RUN --models {models}`, seed {arms[0]['seed']}, after {epochs} epochs. Change of a "
        f"model's error, in {unit.name}, by {batches} batches of training another model, and of training itself on the "
        "same batches; the multi-model part is the difference. Nearly all of it is what a model gains by its own "
        "training."
    )
    return f"## Who overwrites whom\n\n{note}\n\n{table(rows)}"


def choices() -> str:
    """One line per choice: the same seed, epochs and batches as an unprotected and a protected search."""
    reference = result_of("ptb")
    folder = HERE / "search" / "ptb-choices"
    results: list[SearchResult] = [load(path) for path in sorted(folder.iterdir()) if (path / METRICS).exists()]
    shortest = min(result.config.schedule.epochs for result in results)
    epochs = range(reference.forgetting_epochs.start, shortest)
    rewards = range(shortest - math.ceil(shortest / 4), shortest)
    searched = [("no protection", reference, "none"), (f"`{differences(reference, reference)}`", reference, "wpl")]
    searched += [(f"`{differences(result, reference)}`", result, "wpl") for result in results]
    rows = [choice(name, result.epochs(arm, 0), epochs, rewards) for name, result, arm in searched]
    note = (
        f"`{command_line(results[0].config, 'search')}` and the like, seed 0, against seed 0 of the search above; in "
        f"{reference.unit.name}; forgetting over {epochs_text(epochs)}, reward over {epochs_text(rewards)}. One seed "
        "has no interval."
    )
    return f"## Choices of protection, one seed\n\n{note}\n\n{table(rows)}\n\n{WHAT_CHOICES_DO}"


def choice(name: str, records: list[EpochRecord], epochs: range, rewards: range) -> Cells:
    def mean(key: str, span: range) -> float:
        values = [value for record in records if record.epoch in span and (value := record.number(key)) is not None]
        return math.fsum(values) / len(values)

    seconds = [record.seconds["consolidate"] for record in records if record.epoch in epochs]
    return {
        "protection": name,
        **{column: f"{mean(key, epochs):.4f}" for column, key in FORGETTING.items()},
        "reward": f"{mean(REWARD, rewards):.3f}",
        "s to consolidate, an epoch": f"{sum(seconds) / len(seconds):.1f}",
    }


def differences(result: SearchResult, reference: SearchResult) -> str:
    """The strength of a search, and the options in which it differs from its reference, as they are typed."""
    mine, other = result.config, reference.config
    one, usual_one = (config.options_of("wpl") for config in (mine, other))
    assert isinstance(one, WPLOptions)
    assert isinstance(usual_one, WPLOptions)
    pairs = {
        "--strength-decay": (mine.protect.strength_decay, other.protect.strength_decay),
        "--wpl.rule": (one.rule, usual_one.rule),
        "--wpl.decay": (one.decay, usual_one.decay),
        "--protect": (mine.protect.scope, other.protect.scope),
        "--importance": (mine.importance.source, other.importance.source),
    }
    changes = [f"{flag} {value}" for flag, (value, usual) in pairs.items() if value != usual]
    return " ".join([f"--wpl.strength {one.strength:g}", *changes])
