"""Pages of `forgetless fine-tune`: old against new loss of every remedy, what it costs, and which strength to take.

Written after trials on seed 100, before any other:

1. On distant text, at equal training time, no other method dominates `budget` at 0.05, 0.2 or 0.5 nats.
2. On near text `wise-ft` has the least sum of both losses.
3. `wpl` with the Fisher of own samples is within 0.05 nats (sum) of `wpl` with that of old data, at every α and on both
   texts.
4. At no λ does plasticity add more than 0.05 nats (sum) to replay or to distillation.

A first run, on the seeds 0 to 4, was given up: on distant text 7 of the first 8 runs of `budget` at 0.05 and 0.2 lost
more than allowed, up to 1.13 times as much. On seed 100 the cause was that half of the own samples began with the first
token of a text, where 0.15 nats were lost, and none of the real windows does, where 0.22 were, as in the middle of own
texts (0.215). Since then own samples are windows from the middle. The seeds 5 to 9 are run with that; beside the above,

5. `budget` loses no more than it allows on near text in any run, and at most 1.1 times as much on distant text: own
   texts are still not the old ones.
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence

from page import HERE, Cells, Page, load, run_block, shown, table

from forgetless.experiments.fine_tune.records import FineTuneRecord, MethodSummary
from forgetless.experiments.fine_tune.result import FineTuneResult
from forgetless.protection import PROTECTIONS
from forgetless.report.formats import duration, listed

FOLDER = HERE / "fine-tune"
RUNS = ("frontier", "evidence")
"""The run of all remedies, and that of what the Fisher information is computed on."""

WITHIN = 0.05
"""Nats, sum of both losses: a strength so close to its protection's best on every text is a default."""

READING = (
    "Old: the rise of the loss on held-out old text that nothing has seen. New: the loss on held-out new text. Both in "
    "nats per token, mean (95 % interval) over seeds. *Time*: seconds in one thread, with own samples and the "
    "Fisher, which cost most of it here, on a machine with other work. *Passes*: what a step costs as declared; "
    "training takes that many times fewer steps. *Held*: numbers kept per weight. A bold method is dominated by none: "
    "no other loses less of the old text and learns more of the new."
)

TITLES = {"kjv-nt": "Near text: the New Testament", "ptb": "Distant text: the Penn Treebank"}

SUMS = (
    "From the runs of [the frontier](fine-tune-frontier.md). How much larger the sum of both losses is than at the "
    "protection's best strength, in nats per token, mean over seeds."
)

Method = tuple[str, str | None]
"""A protection, and what it saw of the past."""


def pages() -> list[Page]:
    return [frontier(), defaults()] if all((FOLDER / name).is_dir() for name in RUNS) else []


def result_of(name: str) -> FineTuneResult:
    result: FineTuneResult = load(FOLDER / name)
    return result


# ---- the frontier ------------------------------------------------------------------------------------------------


def frontier() -> Page:
    result = result_of("frontier")
    targets = result.config.texts.to
    best = {to: [told(s) for s in along_frontier(result, to)] for to in targets}
    lost = {to: next(s for s in result.summary() if s.to == to and s.protection == "none") for to in targets}
    plain = listed([f"{s.old_increase.mean:.2f} nats on {TITLES[to].partition(': ')[2]}" for to, s in lost.items()])
    fronts = " ".join(
        f"{TITLES[to].partition(':')[0]}, from the least lost to the best learnt: {', '.join(best[to])}."
        for to in reversed(targets)
    )
    return Page(
        name="fine-tune-frontier",
        title="Fine-tuning without the old data",
        question="A small Transformer knows the Old Testament and is fine-tuned on another text, at equal training "
        "time. What is lost of the old text, what is learnt of the new, and which remedy loses least for what it "
        "learns?",
        answer=f"Without protection the old loss rises by {plain}. The least sum of both losses have "
        + " and ".join(f"{best_sum(result, to)} on {TITLES[to].partition(': ')[2]}" for to in targets)
        + " (rise, new loss).",
        more=f"Not dominated, in means over seeds: {fronts}",
        parts=[
            *(run_block(FOLDER / name, time_of(result_of(name))) for name in RUNS),
            READING,
            *(part for to in targets for part in panel(result, to)),
            "## What the Fisher information is computed on",
            "The same seeds, `wpl` only. Real old data is what own samples stand in for.",
            *(table(rows(evidence(to))) for to in targets),
            "## Are budgets kept?",
            "On old text that nothing has seen. *Used*: the rise over the budget, mean over seeds; *most*: largest.",
            table([row for to in targets for row in kept(result, to)]),
            "## Hypotheses",
            "Written before these seeds, in the head of `results/frontiers.py`.",
            table(hypotheses(result)),
        ],
    )


def panel(result: FineTuneResult, to: str) -> Iterator[str]:
    found = [s for s in result.summary() if s.to == to]
    start = statistics.fmean(run.new_before for run in result.runs if run.to == to)
    old = statistics.fmean(run.old_before for run in result.runs if run.to == to)
    yield f"## {TITLES[to]}"
    yield f"Before fine-tuning the old loss is {old:.2f} and the new {start:.2f}."
    yield table(rows(found))


def rows(found: Iterable[MethodSummary]) -> list[Cells]:
    return [
        {
            "protection": s.protection if s.is_dominated else f"**{s.protection}**",
            "on": s.on or "",
            "strength": "" if s.strength is None else f"{s.strength:g}",
            "old +": shown(s.old_increase, 1, 3),
            "new": shown(s.new, 1, 3),
            "time, s": f"{s.seconds:.0f}",
            "passes": f"{s.passes:g}",
            "held": f"{s.held:g}",
        }
        for s in found
    ]


def evidence(to: str) -> list[MethodSummary]:
    """`wpl` on each source of its Fisher."""
    found = [s for name in RUNS for s in result_of(name).summary() if s.to == to and s.protection == "wpl"]
    return sorted(found, key=lambda s: (s.strength or 0, s.on or ""))


def along_frontier(result: FineTuneResult, to: str) -> list[MethodSummary]:
    found = [s for s in result.summary() if s.to == to and not s.is_dominated]
    return sorted(found, key=lambda s: s.old_increase.mean)


def told(s: MethodSummary) -> str:
    strength = "" if s.strength is None else f" {s.strength:g}"
    rise = f"{s.old_increase.mean:+.2f}".replace("-", "−")
    return f"`{s.protection}`{strength} ({rise}, {s.new.mean:.2f})"


def time_of(result: FineTuneResult) -> str:
    return f"Fine-tuning took {duration(sum(run.seconds for run in result.runs))} in all."


def kept(result: FineTuneResult, to: str) -> Iterator[Cells]:
    """How many runs kept their budget."""
    runs = [run for run in runs_on(result, to) if PROTECTIONS[run.protection].unit == "nats"]
    for name, nats in sorted({(run.protection, run.strength or 0.0) for run in runs}):
        used = [run.increase / nats for run in runs if (run.protection, run.strength) == (name, nats)]
        yield {
            "new text": TITLES[to].partition(":")[0],
            "protection": f"`{name}`",
            "budget": f"{nats:g}",
            "kept": f"{sum(share <= 1 for share in used)} of {len(used)}",
            "used": f"{statistics.fmean(used):.0%}",
            "most": f"{max(used):.0%}",
        }


def total(s: MethodSummary) -> float:
    return s.old_increase.mean + s.new.mean


def hypotheses(result: FineTuneResult) -> list[Cells]:
    near, distant = "kjv-nt", "ptb"
    found = [s for s in result.summary() if s.to == distant]
    budgets = [s for s in found if s.protection == "budget"]
    beaten = [s for s in budgets if any(dominates(other, s) for other in found if other.protection != "budget")]
    best = min((s for s in result.summary() if s.to == near), key=total)
    apart = [gap for to in result.config.texts.to for gap in own_against_old(to)]
    added = [gap for to in result.config.texts.to for gap in plasticity_adds(result, to)]
    shares = {
        to: [r.increase / (r.strength or 1) for r in runs_on(result, to) if r.protection == "budget"] for to in TITLES
    }
    most = {to: max(each) for to, each in shares.items()}
    return [
        {
            "hypothesis": "Distant text: no other method dominates `budget`",
            "holds": yes(not beaten),
            "found": f"of {listed([f'{s.strength:g}' for s in budgets])}, dominated: "
            + (listed([f"{s.strength:g}" for s in beaten]) or "none"),
        },
        {
            "hypothesis": "Near text: `wise-ft` has the least sum",
            "holds": yes(best.protection == "wise-ft"),
            "found": told(best),
        },
        {
            "hypothesis": "`wpl`: Fisher of own samples within 0.05 (sum) of that of old data",
            "holds": yes(max(map(abs, apart)) <= WITHIN),
            "found": f"{min(apart):+.3f} to {max(apart):+.3f}",
        },
        {
            "hypothesis": "Plasticity adds at most 0.05 (sum) to replay or distillation",
            "holds": yes(max(added) <= WITHIN),
            "found": f"{max(added):.3f} at most",
        },
        {
            "hypothesis": "`budget` is kept on near text, and to 1.1 times on distant text",
            "holds": yes(most[near] <= 1 and most[distant] <= 1.1),
            "found": f"at most {most[near]:.0%} and {most[distant]:.0%} used",
        },
    ]


def yes(holds: bool) -> str:
    return "yes" if holds else "no"


def dominates(one: MethodSummary, other: MethodSummary) -> bool:
    return one.old_increase.mean < other.old_increase.mean and one.new.mean < other.new.mean


def own_against_old(to: str) -> Iterator[float]:
    """Of each strength of `wpl`, its sum with own samples minus that with old data."""
    sums = {(s.strength, s.on): total(s) for s in evidence(to)}
    return (sums[strength, "own-samples"] - value for (strength, on), value in sums.items() if on == "old-data")


def plasticity_adds(result: FineTuneResult, to: str) -> Iterator[float]:
    """Of each λ, the sum of replay or distillation alone minus that with plasticity."""
    sums = {(s.protection, s.strength): total(s) for s in result.summary() if s.to == to}
    return (
        sums[name, strength] - sums[f"wpl-{name}", strength] for name, strength in sums if name in {"replay", "lwf"}
    )


# ---- defaults ----------------------------------------------------------------------------------------------------


def defaults() -> Page:
    result = result_of("frontier")
    methods = methods_of(result)
    safe = {method: safe_strengths(result, method) for method in methods}
    named = [f"`{name}` {' or '.join(f'{s:g}' for s in found)}" for (name, _), found in safe.items() if found]
    without = [f"`{name}`" for (name, _), found in safe.items() if not found]
    answer = (
        f"Within {WITHIN} nats of their best on both texts: {', '.join(named)}." if named else "No protection has one."
    )
    more = f"There is no such strength of {', '.join(without)}." if named and without else ""
    return Page(
        name="fine-tune-defaults",
        title="One strength for every text",
        question=f"Which strength of a protection is within {WITHIN} nats of its best, by the sum of old and new loss, "
        "on the near and the distant text?",
        answer=answer,
        more=more,
        parts=[
            SUMS,
            table([row for method in methods for row in distances(result, method)]),
            "## How far the new text is",
            "The old model's loss on the new text, measured before training, says how far it is.",
            table(far(result)),
        ],
    )


def methods_of(result: FineTuneResult) -> list[Method]:
    """Those with several strengths that are no budgets: what a budget or a tolerance is, its user decides."""
    found: dict[Method, set[float]] = {}
    for s in result.summary():
        if s.strength is not None and not PROTECTIONS[s.protection].unit:
            found.setdefault((s.protection, s.on), set()).add(s.strength)
    return [method for method, strengths in found.items() if len(strengths) > 1]


def gaps(result: FineTuneResult, method: Method, to: str) -> dict[float, float]:
    """Strength → what the sum of both losses is above that of the best strength."""
    sums = {
        s.strength: total(s)
        for s in result.summary()
        if (s.protection, s.on) == method and s.to == to and s.strength is not None
    }
    return {strength: value - min(sums.values()) for strength, value in sorted(sums.items())}


def safe_strengths(result: FineTuneResult, method: Method) -> list[float]:
    found = [gaps(result, method, to) for to in result.config.texts.to]
    return [strength for strength in found[0] if all(gap[strength] <= WITHIN for gap in found)]


def distances(result: FineTuneResult, method: Method) -> list[Cells]:
    by_text = {to: gaps(result, method, to) for to in result.config.texts.to}
    strengths = list(next(iter(by_text.values())))
    return [
        {"protection": method[0], "strength": f"{strength:g}"}
        | {TITLES[to].partition(":")[0].lower(): f"{gap[strength]:.3f}" for to, gap in by_text.items()}
        for strength in strengths
    ]


def far(result: FineTuneResult) -> list[Cells]:
    def of(to: str, value: str) -> str:
        return f"{statistics.fmean(getattr(run, value) for run in runs_on(result, to)):.2f}"

    return [
        {
            "new text": TITLES[to].partition(": ")[2],
            "old loss": of(to, "old_before"),
            "new loss before": of(to, "new_before"),
            "least sum, by": best_sum(result, to),
        }
        for to in result.config.texts.to
    ]


def best_sum(result: FineTuneResult, to: str) -> str:
    found = [s for s in result.summary() if s.to == to]
    best = min(found, key=total)
    return told(best)


def runs_on(result: FineTuneResult, to: str) -> Sequence[FineTuneRecord]:
    return [run for run in result.runs if run.to == to]
