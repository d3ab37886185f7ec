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
    return [split_mnist_page(read(split_mnist.PATH))]


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


def split_mnist_page(found: Mapping[str, Any]) -> Page:
    rows = found["rows"]
    curves = {fisher: curve(rows, fisher, "proximal") for fisher in PUBLISHED}
    curves = {fisher: of for fisher, of in curves.items() if of}
    limited = {fisher: curve(rows, fisher, "tolerance").get(split_mnist.TOLERANCE) for fisher in curves}
    tops = {fisher: statistics.fmean(of[best(of)]) for fisher, of in curves.items()}
    missed = [tops[fisher] - statistics.fmean(values) for fisher, values in limited.items() if values]
    ones = [tops[fisher] - statistics.fmean(of[1.0]) for fisher, of in curves.items() if 1.0 in of]
    seconds = sum(row["seconds"] for row in rows)
    low, high = min(tops.values()), max(tops.values())
    published = [top for top, _ in PUBLISHED.values()]
    return Page(
        name="split-mnist",
        title="Five Fishers on Split MNIST",
        question="The protocol of van de Ven 2025 (arXiv:2502.11756): five tasks of two digits, each with outputs of "
        "its own. Which strength does each Fisher need, and how near does one come without choosing?",
        answer=f"Best strengths give {low:.1f} to {high:.1f} % (published: {min(published)} to {max(published)}); a "
        f"tolerance of {split_mnist.TOLERANCE} nats, which nobody chose, is at most {max(missed):.1f} points below, "
        f"α = 1 up to {max(ones):.1f}.",
        more=extent(rows),
        parts=[
            command_block(
                "python results/split_mnist.py --seeds 1 31",
                f"One thread, {environment(found['environment'])}, on a machine with other work. "
                f"{time_taken(seconds)} {HOW_TO_READ}",
            ),
            "## Best strengths",
            table([summary(fisher, of, limited[fisher]) for fisher, of in curves.items()]),
            unprotected(rows),
            "## Curves",
            table([strength_row(strength, curves, rows) for strength in strengths(rows)]),
            in_loss(rows),
            "## Hypotheses",
            hypotheses(rows, curves, limited),
        ],
    )


def unprotected(rows: list[Row]) -> str:
    own = shown(curve(rows, "none", "none").get(0.0))
    return f"Without protection: {own}; published {shown_published(PUBLISHED_NONE)}."


def extent(rows: list[Row]) -> str:
    """How many seeds there are of how many."""
    whole, seeds = whole_seeds(rows), sorted({row["seed"] for row in rows})
    part = [seed for seed in seeds if seed not in whole]
    text = f"{len(whole)} of the 30 seeds are whole"
    return f"{text}, {len(part)} in part." if part else f"{text}."


def strengths(rows: Iterable[Row]) -> list[float]:
    return sorted({row["strength"] for row in rows if row["form"] == "proximal"})


def summary(fisher: str, of: Curve, limited: list[float] | None) -> Cells:
    top = best(of)
    return {
        "Fisher": fisher,
        "published best": shown_published(PUBLISHED[fisher]),
        "best": shown(of[top]),
        "at α": power(top),
        "α = 1": shown(of.get(1.0)),
        f"tolerance of {split_mnist.TOLERANCE}": shown(limited),
    }


def strength_row(strength: float, curves: Mapping[str, Curve], rows: Iterable[Row]) -> Cells:
    loss = curve(rows, "EXACT", "loss")
    cells = {"α": power(strength)} | {fisher: shown(of.get(strength)) for fisher, of in curves.items()}
    return cells | {"EXACT, penalty in the loss": shown(loss.get(strength))}


def in_loss(rows: list[Row]) -> str:
    """What becomes of the penalty in the loss, where it was tried."""
    loss, near = curve(rows, "EXACT", "loss"), curve(rows, "EXACT", "proximal")
    shared = [strength for strength in loss if strength in near]
    if not shared:
        return "The penalty in the loss was not tried yet."
    protected = [row for row in rows if row["form"] == "proximal"]
    text = f"{sum(row['finite'] for row in protected)} of {len(protected)} runs with the proximal step are finite. "
    if all(row["finite"] for row in rows if row["form"] == "loss"):
        text += "So are those with the penalty in the loss: Adam divides by the size of gradients. "
    else:
        text += "Not all with the penalty in the loss are. "
    largest = max(shared)
    return (
        f"{text}At α = {power(largest)} the penalty in the loss gives {shown(loss[largest])}, the proximal step "
        f"{shown(near[largest])}."
    )


def hypotheses(rows: list[Row], curves: Mapping[str, Curve], limited: Mapping[str, list[float] | None]) -> str:
    """Each with what was found."""
    tops = {fisher: statistics.fmean(of[best(of)]) for fisher, of in curves.items()}
    apart = {fisher: abs(top - PUBLISHED[fisher][0]) for fisher, top in tops.items()}
    none = statistics.fmean(curve(rows, "none", "none")[0.0])
    ratio = best(curves["BATCHED (b = 128)"]) / best(curves["EXACT"])
    falls = {fisher: tops[fisher] - min(means_from_best(of)) for fisher, of in curves.items()}
    ones = {fisher: tops[fisher] - statistics.fmean(of[1.0]) for fisher, of in curves.items()}
    missed = {fisher: tops[fisher] - statistics.fmean(values) for fisher, values in limited.items() if values}
    finite = all(row["finite"] for row in rows if row["form"] == "proximal")
    found = (
        ("Best accuracies are within 0.5 points of the published ones, unprotected within 3",
         max(apart.values()) <= 0.5 and abs(none - PUBLISHED_NONE[0]) <= 3,
         f"{max(apart.values()):.2f} at most; {abs(none - PUBLISHED_NONE[0]):.2f}"),
        ("BATCHED needs at least 100 times the strength of EXACT", ratio >= 100, f"{ratio:g} times"),
        ("With the proximal step every run is finite, and stays within 3 points from the best strength on",
         finite and max(falls.values()) <= 3, f"it falls by {max(falls.values()):.2f} at most"),
        ("α = 1 is more than 1 point below each best", min(ones.values()) > 1, span_of(ones)),
        ("The tolerance is within 1 point of each best", max(missed.values()) <= 1, span_of(missed)),
    )  # fmt: skip
    return table(
        [{"hypothesis": text, "holds": "yes" if holds else "no", "found": what} for text, holds, what in found]
    )


def means_from_best(of: Curve) -> list[float]:
    return [statistics.fmean(values) for strength, values in of.items() if strength >= best(of)]


def span_of(apart: Mapping[str, float]) -> str:
    return f"{min(apart.values()):.2f} to {max(apart.values()):.2f} points below"
