"""Pages of `forgetless two-model`: two models on MNIST, or a chain; later ones reuse layers of earlier ones."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from page import HERE, Cells, Page, known, load, only, percent, run_block, shown, table, varying

from forgetless.experiments.two_model import TwoModelResult
from forgetless.experiments.two_model.records import RunRecord
from forgetless.forgetting import mean_interval
from forgetless.report.formats import duration, listed, points, span

ARM = ("shared", "A stopped at", "protection", "strength")
TEST = ("A before", "A after", "forgetting, points", "reduction, %", "B", "B against unprotected, points")
VALIDATION = ("validation: forgetting, points", "validation: B")
CONSTANT: dict[str, Callable[[str], str]] = {
    "shared": lambda number: f"{number} shared layer{'s' * (number != '1')}",
    "A stopped at": lambda where: "A trained to convergence" if where == "convergence" else f"A stopped at {where}",
}
READING = "Test accuracy in %, mean over seeds (95 % interval)."


def pages() -> list[Page]:
    return [
        *(adam(), sgd(), damping(), undamped(), sigmoid(), relu(), alpha(), chain()),
        *(*crossed_rivals(), *prefix_rivals()),
    ]


def result_of(name: str) -> TwoModelResult:
    result: TwoModelResult = load(HERE / "two-model" / name)
    return result


def adam() -> Page:
    lost, slowed = lost_by("mnist-crossed-adam"), means("mnist-crossed-adam", "reduction", "matched-lr")
    return Page(
        name="two-model-adam",
        title="Two models, Adam",
        question="A is trained to 100, 55, 43 or 38 % of the accuracy that it would reach. Then B trains on three of "
        "A's four hidden layers (crossed wiring, Adam 0.005, the defaults). How much does A forget?",
        answer=f"A loses {lost['none']} points without protection and none with weight plasticity.",
        more="B is not significantly worse for it. Freezing and L2 keep A equally well. Smaller steps alone "
        f"(`matched-lr`) prevent {span(slowed, 0)} %.",
        parts=[block_of("mnist-crossed-adam"), *tables(rows_of("mnist-crossed-adam"))],
    )


def sgd() -> Page:
    lost, kept = lost_by("mnist-crossed-sgd"), means("mnist-crossed-sgd", "forgetting", "wpl")
    return Page(
        name="two-model-sgd",
        title="Two models, SGD",
        question="Is it the same under SGD 0.1 with momentum 0.9 as [under Adam](two-model-adam.md)?",
        answer=f"A loses {lost['none']} points without protection, at most {points(max(kept), 2)} with weight "
        "plasticity.",
        more="B is not worse for it: its mean accuracy is higher in every row.",
        parts=[block_of("mnist-crossed-sgd"), *tables(rows_of("mnist-crossed-sgd"))],
    )


def damping() -> Page:
    runs = {"0": "mnist-damping-0", "10⁻³ (default)": "mnist-damping-1e-3", "10⁻²": "mnist-damping-1e-2"}
    rows = [{"damping": value, **row} for value, name in runs.items() for row in rows_of(name)]
    undamped, default = (means(runs[value], "forgetting", "wpl") for value in list(runs)[:2])
    (plain,) = means(runs["0"], "forgetting", "none")
    return Page(
        name="two-model-damping",
        title="Damping",
        question="Damping adds a share of the mean importance to every weight's importance. The paper has none. Does "
        "it help?",
        answer=f"A stopped at 43 % loses {span(undamped)} points without damping, {span(default)} with it.",
        more=f"Without protection it loses {points(plain)} points. How much the paper's penalty prevents where A is "
        "stopped elsewhere is on [another page](two-model-undamped.md).",
        parts=[*(block_of(name) for name in runs.values()), *tables(rows, ("damping", *ARM))],
    )


def undamped() -> Page:
    prevented = means("mnist-crossed-adam-undamped", "reduction", "wpl")
    return Page(
        name="two-model-undamped",
        title="The paper's penalty",
        question="How much forgetting does the paper's penalty, which has no damping, prevent at each stop of A?",
        answer=f"It prevents {span(prevented)} % at α = 10⁵.",
        more="In the paper it stops helping below 40 % of convergence.",
        parts=[block_of("mnist-crossed-adam-undamped"), *tables(rows_of("mnist-crossed-adam-undamped"))],
    )


def sigmoid() -> Page:
    lost = lost_by("mnist-prefix-sigmoid")
    better = [-cost for cost in means("mnist-prefix-sigmoid", "cost_b", "wpl")]
    return Page(
        name="two-model-prefix-sigmoid",
        title="Prefix wiring, narrow sigmoid layers",
        question="B takes its first one, two or three layers of 20 sigmoid units from A, and has the rest to itself. "
        "How much does A forget?",
        answer=f"A loses {lost['none']} points without protection and none with weight plasticity.",
        more="Freezing and L2 also prevent all of it. Some seeds of unprotected B fail to train through six narrow "
        f"layers, so B's gain of {span(better)} points says little about protection.",
        parts=[block_of("mnist-prefix-sigmoid"), *tables(rows_of("mnist-prefix-sigmoid"))],
    )


def relu() -> Page:
    gained = [-lost for lost in means("mnist-prefix-sgd", "forgetting", "none")]
    return Page(
        name="two-model-prefix-relu",
        title="Prefix wiring, ReLU",
        question="B takes its first one, two or three layers from A, and has the rest to itself, under SGD 0.05. How "
        "much does A forget?",
        answer=f"Nothing; A gains {span(gained)} points from B's training.",
        more="Protection forgoes that. If your models are like this, you need none.",
        parts=[block_of("mnist-prefix-sgd"), *tables(rows_of("mnist-prefix-sgd"))],
    )


def alpha() -> Page:
    arms = [s for s in result_of("mnist-alpha-adam").summary() if s.protection == "wpl"]
    least = next(s for s in arms if s.strength == 1)
    more = [s for s in arms if s.strength is not None and s.strength >= 10]
    worst = max(abs(known(s.cost_b).mean) for s in arms)
    return Page(
        name="two-model-alpha",
        title="Strength α",
        question="How does the strength of weight plasticity, α from 0 to 10¹², change what A and B reach? A is "
        "trained to convergence.",
        answer=f"A loses {points(least.forgetting.mean)} points at α = 1 and none from 10 to 10¹².",
        more=f"There A's forgetting is {span([s.forgetting.mean for s in more], 2)} points. B's mean accuracy is "
        f"within {points(worst)} points of unprotected B's at every α. α = 0 is plain training, bit for bit.",
        parts=[block_of("mnist-alpha-adam"), *tables(rows_of("mnist-alpha-adam"))],
    )


def chain() -> Page:
    result = result_of("mnist-chain")
    lost = {s.protection: [m.forgetting.mean for m in s.models[:-1]] for s in result.summary()}
    each = [
        {"protection": s.protection, **{m.model: percent(m.forgetting) for m in s.models}} for s in result.summary()
    ]
    return Page(
        name="two-model-chain",
        title="A chain of five models",
        question="Five models, A to E, train one after the other on the same three layers. How much does each lose?",
        answer=f"Earlier models lose {span(lost['none'], 0)} points without protection, none with weight plasticity.",
        more=f"Under `l2` they lose {span(lost['l2'], 2)} points. E is last and cannot lose anything.",
        parts=[
            block_of("mnist-chain"),
            "## Forgetting per model, points",
            table(each),
            "## A and B",
            "A after is measured at the end of the chain.",
            *tables(rows_of("mnist-chain"), heading="#"),
        ],
    )


def crossed_rivals() -> list[Page]:
    best = at_best("mnist-rivals-crossed")
    converged = {name: mean(runs, "forgetting") for (stop, name), runs in best.items() if stop == 1}
    held = [lost for name, lost in converged.items() if name not in {"none", "ogl"}]
    return rivals(
        "mnist-rivals-crossed",
        name="two-model-protections-crossed",
        title="All protections, crossed wiring",
        question="Which protection keeps A best while B trains on three of A's four hidden layers, and what does it "
        "cost B?",
        answer=f"Converged A loses at most {points(max(held))} points under all but `ogl`, and "
        f"{points(converged['none'])} without protection.",
        more=f"`ogl` loses {points(converged['ogl'])}. `nsas`, which replays A, ends {points(-converged['nsas'])} "
        f"points above where A was, and {points(-mean(best[0.38, 'nsas'], 'forgetting'))} above where A was "
        "stopped at 38 %: it goes on training A. Freezing is simplest; only replay is clearly better, where A was "
        "stopped.",
    )


def prefix_rivals() -> list[Page]:
    best = at_best("mnist-rivals-prefix")
    frozen = mean(best[0.38, "freeze"], "accuracy_b") - mean(best[0.38, "none"], "accuracy_b")
    lost = mean(best[0.38, "none"], "forgetting")
    return rivals(
        "mnist-rivals-prefix",
        name="two-model-protections-prefix",
        title="All protections, prefix wiring",
        question="Which protection is best where B takes its first two layers from A and has the rest to itself?",
        answer="Converged A loses nothing; for A stopped at 38 % only replay (`nsas`) helps.",
        more=f"That A loses {points(lost)} points without protection; freezing keeps them, and B is {points(-frozen)} "
        "points worse. No other protection is significantly better than none for A and B together.",
    )


def rivals(run: str, **page: Any) -> list[Page]:
    """A page with each protection at its best strength, and one with every strength."""
    name = page["name"]
    note = (
        "Each protection has the strength, of those in the command, with the largest mean validation accuracy of A "
        "after and B. The numbers are of the test images. *A's loss* is its change in nats while B trains. *Together* "
        "is (A after + B)/2 against no protection, on the same seeds, in points. Five seeds cannot make any of these "
        "differences significant after Holm's correction for so many rows."
    )
    strengths = Page(
        name=f"{name}-strengths",
        title=f"{page['title']}: every strength",
        question="What did every strength that was tried do?",
        answer=f"This is the full table behind [{page['title'].lower()}]({name}.md).",
        parts=[block_of(run), *tables(rows_of(run))],
        is_listed=False,
    )
    more = [note, *best_tables(run), f"[Every strength]({name}-strengths.md) that was tried."]
    return [Page(**page, parts=[block_of(run), *more]), strengths]


def best_tables(name: str) -> list[str]:
    """Per stop of A a table of the protections at their best, by what A and B gain together."""
    parts, best = [], at_best(name)
    for convergence in result_of(name).config.chain.convergence:
        plain = best[convergence, "none"]
        rows = []
        for (stop, protection), runs in best.items():
            if stop != convergence:
                continue
            gains = [together(run) - together(free) for run, free in zip(runs, plain, strict=True)]
            loss = mean_interval([run.loss_a_after - run.loss_a_before for run in runs])
            row = {
                "protection": protection,
                "strength": strength_of(runs[0]),
                "A before": points(mean(runs, "accuracy_a_before"), 2),
                "A after": points(mean(runs, "accuracy_a_after"), 2),
                "forgetting, points": percent(mean_interval([run.forgetting for run in runs])),
                "A's loss": shown(loss, 1, 3),
                "B": points(mean(runs, "accuracy_b"), 2),
                "together": "–" if protection == "none" else percent(mean_interval(gains)),
            }
            rows.append((-statistics.fmean(gains), row))
        stopped = "trained to convergence" if convergence == 1 else f"stopped at {convergence:.0%}"
        parts += [f"## A {stopped}", table([row for _, row in sorted(rows, key=lambda pair: pair[0])])]
    return parts


def at_best(name: str) -> dict[tuple[float, str], list[RunRecord]]:
    """Stop of A and protection → the runs of the strength that is best on the validation images."""
    groups: dict[tuple[float, str], dict[float | None, list[RunRecord]]] = {}
    for run in result_of(name).runs:
        strengths = groups.setdefault((run.convergence, run.protection), {})
        strengths.setdefault(run.strength, []).append(run)
    return {
        key: max(strengths.values(), key=lambda runs: statistics.fmean(map(kept_and_learnt, runs)))
        for key, strengths in groups.items()
    }


def kept_and_learnt(run: RunRecord) -> float:
    """By which a strength is selected: what A and B reach together on the validation images, up to a constant."""
    return float(run.validation_b - run.validation_forgetting)


def together(run: RunRecord) -> float:
    return float(run.accuracy_a_after + run.accuracy_b) / 2


def mean(runs: Sequence[RunRecord], key: str) -> float:
    return statistics.fmean(getattr(run, key) for run in runs)


def means(name: str, key: str, protection: str) -> list[float]:
    """Of every arm under a protection."""
    return [getattr(s, key).mean for s in result_of(name).summary() if s.protection == protection]


def lost_by(name: str) -> dict[str, str]:
    """Protection → the span of what A loses over its arms, in points."""
    protections = {s.protection for s in result_of(name).summary()}
    return {protection: span(means(name, "forgetting", protection)) for protection in protections}


def block_of(name: str) -> str:
    result = result_of(name)
    seconds = duration(sum(run.seconds for run in result.runs))
    later = listed([model.model for model in result.runs[0].models[1:]])
    trained = f"Training {later} took {seconds} in all; A's time was not recorded."
    return run_block(HERE / "two-model" / name, trained)


def strength_of(run: Any) -> str:
    return "" if run.strength is None else f"{run.strength:g}"


def rows_of(name: str) -> list[Cells]:
    """Every arm, with all of its numbers."""
    result = result_of(name)
    rows = []
    for s in sorted(result.summary(), key=lambda s: (s.shared, -s.convergence)):
        same = ("shared", "convergence", "protection", "strength")
        runs = [run for run in result.runs if all(getattr(run, key) == getattr(s, key) for key in same)]
        stopped = "convergence" if s.convergence == 1 else f"{s.convergence:.0%}"
        arm = dict(zip(ARM, (str(s.shared), stopped, s.protection, strength_of(s)), strict=True))
        test = (
            f"{100 * s.accuracy_a_before.mean:.2f}",
            f"{100 * s.accuracy_a_after.mean:.2f}",
            percent(s.forgetting),
            percent(s.reduction),
            f"{100 * s.accuracy_b.mean:.2f}",
            shown(s.cost_b, -100, 2),
        )
        selected_by = [
            sum(getattr(run, key) for run in runs) / len(runs) for key in ("validation_forgetting", "validation_b")
        ]
        validation = [f"{round(100 * value, 2) + 0:.2f}" for value in selected_by]
        rows.append(arm | dict(zip(TEST + VALIDATION, (*test, *validation), strict=True)))
    return rows


def tables(rows: Sequence[Cells], arm: Sequence[str] = ARM, heading: str = "") -> list[str]:
    """What the arms reach on the test images, and below it on the validation images."""
    kept, agreed = varying(rows, CONSTANT)
    names = [column for column in arm if column in kept[0]]
    return [
        f"#{heading}# Test\n\n" + " ".join(filter(None, [READING, agreed])),
        table(only(kept, *names, *TEST)),
        f"#{heading}# Validation\n\nThe same arms on the validation images, on which settings were selected.",
        table(only(kept, *names, *VALIDATION)),
    ]
