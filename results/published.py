"""Pages of protocols that others published, run with this library."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import split_mnist
from page import Cells, Page, command_block, environment, read, table, time_taken

PUBLISHED = {
    "EXACT": (99.12, 0.16),
    "EXACT (n = 500)": (98.93, 0.15),
    "SAMPLE": (99.12, 0.12),
    "EMPIRICAL": (99.12, 0.12),
    "BATCHED (b = 128)": (99.11, 0.16),
}
"""Fisher → its best mean accuracy and the standard error over 30 seeds, in %, in the order of the published table."""
PUBLISHED_NONE = (85.41, 0.88)

HOW_TO_READ = """Accuracies are means over the five tasks at the end, in %, ± standard error over seeds; without one, of
one seed. α is the published λ, without a factor: both multiply ½ Σ F v², with F and loss as means over
examples. As in the publication, the best strength is that of the best test accuracy. The penalty is a proximal step
after Adam's where nothing else is said. The head of the script says what else differs, and has the hypotheses as they
were before the first seed."""

Row = Mapping[str, Any]
Curve = dict[float, list[float]]
"""Strength → accuracies of seeds, in %."""


def pages() -> list[Page]:
    return [split_mnist_page(read(split_mnist.PATH), read(split_mnist.WEIGHED))]


def accuracy(row: Row) -> float:
    """Mean over tasks, in %; NaN where a run has none."""
    values = [math.nan if value is None else value for value in row["accuracy"]]
    return 100 * statistics.fmean(values) if row["finite"] else math.nan


def curve(rows: Iterable[Row], fisher: str, form: str) -> Curve:
    """In the order of strengths."""
    found: Curve = {}
    for row in sorted(rows, key=lambda row: (row["strength"], row["seed"])):
        if (row["fisher"], row["form"]) == (fisher, form):
            found.setdefault(row["strength"], []).append(accuracy(row))
    return found


def best(of: Curve) -> float:
    """The strength of the best mean."""
    return max(of, key=lambda strength: statistics.fmean(of[strength]))


def shown(values: list[float] | None) -> str:
    """Mean ± standard error."""
    if not values:
        return "–"
    if any(math.isnan(value) for value in values):
        return "NaN"
    error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{error}"


def shown_published(pair: tuple[float, float]) -> str:
    return f"{pair[0]} ± {pair[1]}"


def power(strength: float) -> str:
    exponent = round(math.log10(strength))
    return "1" if exponent == 0 else f"10{str(exponent).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def whole_seeds(rows: Iterable[Row]) -> list[int]:
    """The seeds of which every run is there."""
    made: dict[int, set[tuple[str, str, float]]] = {}
    for row in rows:
        made.setdefault(row["seed"], set()).add((row["fisher"], row["form"], row["strength"]))
    needed = {seed: {(arm.fisher, arm.form, arm.strength) for arm in split_mnist.arms(seed)} for seed in made}
    return sorted(seed for seed in made if needed[seed] <= made[seed])


def split_mnist_page(found: Mapping[str, Any], weighed: Mapping[str, Any]) -> Page:
    rows = found["rows"]
    curves = {fisher: curve(rows, fisher, "proximal") for fisher in PUBLISHED}
    tops = {fisher: statistics.fmean(of[best(of)]) for fisher, of in curves.items()}
    ones = [statistics.fmean(of[1.0]) for of in curves.values()]
    published = [top for top, _ in PUBLISHED.values()]
    return Page(
        name="split-mnist",
        title="Five Fishers on Split MNIST",
        question="The protocol of van de Ven 2025 (arXiv:2502.11756): five tasks of two digits, each with outputs of "
        "its own. Which strength does each Fisher need, and how near does one come without choosing?",
        answer=f"{extent(rows)}: the exact Fisher reaches {tops['EXACT']:.1f} %, and the least strength is enough "
        f"for it, {power(best(curves['EXACT']))}; α = 1 is not enough for any ({min(ones):.1f} to {max(ones):.1f} %, "
        f"unprotected {unprotected(rows)}).",
        more=f"The publication has {min(published)} to {max(published)} % at the best strengths.",
        parts=[
            command_block(
                "python results/split_mnist.py --seeds 1 31\npython results/split_mnist.py --weigh --seeds 1 4",
                f"One thread, {environment(found['environment'])}, on a machine with other work. "
                f"{time_taken(sum(row['seconds'] for row in rows))} The first command goes on where it was stopped. "
                f"{HOW_TO_READ}",
            ),
            "## Best strengths",
            table([summary(fisher, of, rows) for fisher, of in curves.items()]),
            f"Without protection: {unprotected(rows)}; published {shown_published(PUBLISHED_NONE)}.",
            "## Curves",
            table([strength_row(strength, curves, rows) for strength in strengths(rows)]),
            in_loss(rows),
            "## Why they need such strengths",
            sizes(weighed["rows"]),
            "## Without choosing",
            tolerances(rows),
            "## Hypotheses",
            hypotheses(rows, curves),
        ],
    )


def unprotected(rows: list[Row]) -> str:
    return shown(curve(rows, "none", "none").get(0.0))


def extent(rows: list[Row]) -> str:
    """How many seeds there are of how many."""
    whole, seeds = whole_seeds(rows), sorted({row["seed"] for row in rows})
    counts = [f"{len(whole)} of 30 seeds"] if whole else []
    for seed in (seed for seed in seeds if seed not in whole):
        done = sum(row["seed"] == seed and row["form"] != "tolerance before" for row in rows)
        counts.append(f"{done} of {len(list(split_mnist.arms(seed)))} runs of seed {seed}")
    return f"So far, with {' and '.join(counts)}"


def strengths(rows: Iterable[Row]) -> list[float]:
    return sorted({row["strength"] for row in rows if row["form"] == "proximal"})


def summary(fisher: str, of: Curve, rows: list[Row]) -> Cells:
    top = best(of)
    return {
        "Fisher": fisher,
        "published best": shown_published(PUBLISHED[fisher]),
        "best": shown(of[top]),
        "at α": power(top) + (" (the largest tried)" if top == max(of) < max(split_mnist.STRENGTHS) else ""),
        "α = 1": shown(of.get(1.0)),
        f"tolerance of {split_mnist.TOLERANCE}": shown(tolerated(rows, fisher)),
    }


def tolerated(rows: list[Row], fisher: str, form: str = "tolerance") -> list[float] | None:
    return curve(rows, fisher, form).get(split_mnist.TOLERANCE)


def strength_row(strength: float, curves: Mapping[str, Curve], rows: Iterable[Row]) -> Cells:
    loss = curve(rows, "EXACT", "loss")
    cells = {"α": power(strength)} | {fisher: shown(of.get(strength)) for fisher, of in curves.items()}
    return cells | ({"EXACT, penalty in the loss": shown(loss.get(strength))} if loss else {})


def in_loss(rows: list[Row]) -> str:
    """What becomes of the penalty in the loss, where it was tried."""
    protected = [row for row in rows if row["form"] == "proximal"]
    text = f"{sum(row['finite'] for row in protected)} of {len(protected)} runs with the proximal step are finite. "
    loss, near = curve(rows, "EXACT", "loss"), curve(rows, "EXACT", "proximal")
    shared = [strength for strength in loss if strength in near]
    if not shared:
        return f"{text}The penalty in the loss, by autograd, was not tried yet."
    finite = [row["finite"] for row in rows if row["form"] == "loss"]
    largest = max(shared)
    return (
        f"{text}Of those with the penalty in the loss {sum(finite)} of {len(finite)} are. At α = {power(largest)} it "
        f"gives {shown(loss[largest])}, the proximal step {shown(near[largest])}."
    )


def sizes(rows: list[Row]) -> str:
    """How large the Fishers of the first task are, over its exact one."""
    seeds = len(rows)
    ratios = {fisher: [row["sums"][fisher] / row["sums"]["EXACT"] for row in rows] for fisher in PUBLISHED}
    wrong = max(row["wrong_labels"] for row in rows)
    cells = [{"Fisher": f, "over EXACT": f"{statistics.geometric_mean(r):.1e}"} for f, r in ratios.items()]
    return (
        "The sum of each Fisher over all weights after the first task, over that of EXACT: geometric means of "
        f"{seeds} seeds. The network fits its images so well that wrong labels have next to no probability, but large "
        "gradients, which make up most of EXACT. EMPIRICAL has the true labels only. SAMPLE is unbiased, but it draws "
        f"the true labels: of some 12,000 at most {wrong:.2f} are expected to be wrong. It was EMPIRICAL to the last "
        "bit here. In the publication, too, the two have the same best accuracy and error.\n\n" + table(cells)
    )


def tolerances(rows: list[Row]) -> str:
    before = {fisher: tolerated(rows, fisher, "tolerance before") for fisher in PUBLISHED}
    told = ", ".join(f"{fisher} {shown(values)}" for fisher, values in before.items() if values)
    after = {fisher: tolerated(rows, fisher) for fisher in PUBLISHED}
    text = (
        f"A tolerance of {split_mnist.TOLERANCE} nats, measured on images held out, first gave {told}. That showed a "
        "fault. The quadratic form of a small Fisher is far below a millionth of what is lost; the budget stopped "
        "shrinking there, and nothing was held. Now it shrinks as far as is needed "
        "(`test_a_budget_holds_however_small_the_importance`)."
    )
    made = ", ".join(f"{fisher} {shown(values)}" for fisher, values in after.items() if values)
    return f"{text} Since then: {made or 'not run again yet'}."


def hypotheses(rows: list[Row], curves: Mapping[str, Curve]) -> str:
    """Each with what was found; open where runs are missing that could change the verdict."""
    tops = {fisher: statistics.fmean(of[best(of)]) for fisher, of in curves.items()}
    is_whole = all(len(of) == len(split_mnist.STRENGTHS) for of in curves.values())
    apart = max(abs(top - PUBLISHED[fisher][0]) for fisher, top in tops.items())
    none = abs(statistics.fmean(curve(rows, "none", "none")[0.0]) - PUBLISHED_NONE[0])
    ratio = best(curves["BATCHED (b = 128)"]) / best(curves["EXACT"])
    fall = max(tops[fisher] - min(means_from_best(of)) for fisher, of in curves.items())
    ones = {fisher: tops[fisher] - statistics.fmean(of[1.0]) for fisher, of in curves.items()}
    limited = {fisher: tolerated(rows, fisher) for fisher in curves}
    missed = {fisher: tops[fisher] - statistics.fmean(values) for fisher, values in limited.items() if values}
    finite = all(row["finite"] for row in rows if row["form"] == "proximal")
    found = (
        ("Best accuracies are within 0.5 points of the published ones, unprotected within 3", is_whole,
         apart <= 0.5 and none <= 3, f"{apart:.2f} at most; {none:.2f}"),
        ("BATCHED needs at least 100 times the strength of EXACT", is_whole or ratio >= 100, ratio >= 100,
         f"{power(ratio)} times{'' if is_whole else ' or more'}"),
        ("With the proximal step every run is finite, and stays within 3 points from the best strength on", is_whole,
         finite and fall <= 3, f"{'all' if finite else 'not all'} finite; it falls by {fall:.2f} at most"),
        ("α = 1 is more than 1 point below each best", True, min(ones.values()) > 1, span_of(ones)),
        ("The tolerance is within 1 point of each best", len(missed) == len(curves) and is_whole,
         max(missed.values(), default=9) <= 1, span_of(missed) if missed else "–"),
    )  # fmt: skip
    return table(
        [
            {"hypothesis": text, "holds": ("yes" if holds else "no") if is_known else "open", "found so far": what}
            for text, is_known, holds, what in found
        ]
    )


def means_from_best(of: Curve) -> list[float]:
    return [statistics.fmean(values) for strength, values in of.items() if strength >= best(of)]


def span_of(apart: Mapping[str, float]) -> str:
    return f"{min(apart.values()):.2f} to {max(apart.values()):.2f} points below"
