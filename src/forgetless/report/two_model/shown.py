"""What is shown of a two-model run: panels, and in each the arms at the strength that is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from forgetless.experiments.two_model import TwoModelResult, arms
from forgetless.experiments.two_model.records import ArmSummary, RunRecord
from forgetless.forgetting import Interval, mean_interval
from forgetless.options import number
from forgetless.protection import BASELINE, PROTECTIONS
from forgetless.report.formats import arm_label, counted, listed, main_of
from forgetless.report.sentences import diverged


@dataclass(frozen=True)
class Panel:
    """One state of A and one amount of sharing: what the arms of one picture have in common."""

    shared: int
    convergence: float

    def holds(self, run: RunRecord | ArmSummary) -> bool:
        """Whether a run or a summary belongs here."""
        return run.shared == self.shared and run.convergence == self.convergence


class Side(NamedTuple):
    """One of two arms that are compared over the same seeds: its summary, and its runs."""

    summary: ArmSummary
    runs: list[RunRecord]

    @property
    def cost(self) -> float:
        """What B pays on average; there is one, since the unprotected runs are there."""
        assert self.summary.cost_b is not None
        return self.summary.cost_b.mean


@dataclass(frozen=True)
class Group:
    """The runs of one protection at one strength in one panel, one per seed."""

    protection: str
    strength: float | None
    runs: list[RunRecord]

    @property
    def label(self) -> str:
        """Name and strength."""
        return arm_label(self.protection, self.strength)

    def values(self, key: str) -> list[float]:
        """One quantity, one value per seed, in per cent or points."""
        return [100 * float(getattr(run, key)) for run in self.runs]

    def estimate(self, key: str) -> Interval:
        """Its mean over seeds, with the interval."""
        return mean_interval(self.values(key))

    def mean(self, key: str) -> float:
        """Its mean over seeds, as recorded."""
        return mean_interval([float(getattr(run, key)) for run in self.runs]).mean


@dataclass(frozen=True)
class Shown:
    """A result, as figures, tables and sentences show it."""

    result: TwoModelResult

    @cached_property
    def names(self) -> dict[Panel, str]:
        """The panels that have runs, in the order of the configuration, and what distinguishes each from the others."""
        panels = _panels(self.result, self.result.runs)
        return {panel: panel_name(panel, panels) for panel in panels}

    @cached_property
    def panels(self) -> list[Panel]:
        """The panels that have runs."""
        return list(self.names)

    @property
    def letters(self) -> list[str]:
        """The letters of the models, in the order of training."""
        return [model.model for model in self.result.runs[0].models]

    @property
    def later(self) -> str:
        """Those of the models trained after A: `B`, `B to F`."""
        return listed(self.letters[1:])

    @property
    def is_chain(self) -> bool:
        """Whether there are more than two models."""
        return self.result.config.chain.models > 2

    @cached_property
    def ran(self) -> list[str]:
        """The protections that have runs, in the order of the configuration."""
        present = {run.protection for run in self.result.runs}
        return [name for name in self.result.config.arms if name in present]

    @cached_property
    def main(self) -> str | None:
        """The protection that sentences are about; None if there is none."""
        return main_of(self.ran)

    @cached_property
    def strengths(self) -> dict[str, list[float]]:
        """Protection → the strengths that it ran at; none for one without."""
        found: dict[str, set[float]] = {name: set() for name in self.result.config.arms}
        for run in self.result.runs:
            found.setdefault(run.protection, set()).update(set() if run.strength is None else {run.strength})
        return {name: sorted(strengths) for name, strengths in found.items()}

    @cached_property
    def chosen(self) -> dict[str, float | None]:
        """Protection → the strength that is shown."""
        return {name: chosen_strength(self.result, name) for name in self.result.config.arms}

    @cached_property
    def _groups(self) -> dict[Panel, list[Group]]:
        found = {p: [self.group(p, name, strength) for name, strength in self.chosen.items()] for p in self.panels}
        return {panel: [group for group in each if group.runs] for panel, each in found.items()}

    def groups(self, panel: Panel | None = None) -> list[Group]:
        """Each protection once, at its chosen strength, in the order of the configuration; of one panel or of all."""
        return [group for p in self.panels if panel in {None, p} for group in self._groups[p]]

    def group(self, panel: Panel, protection: str, strength: float | None) -> Group:
        """The runs of a protection at a strength in a panel, if there are any."""
        mine = (r for r in self.result.runs if r.protection == protection and r.strength in {None, strength})
        return Group(protection, strength, [run for run in mine if panel.holds(run)])

    def paired(self, panel: Panel) -> tuple[Side, Side] | None:
        """Summaries of the unprotected and the main arm, over the seeds that both have.

        None if one arm is missing.
        """
        return self._pairs[panel]

    @cached_property
    def _pairs(self) -> dict[Panel, tuple[Side, Side] | None]:
        pairs = {}
        for panel in self.panels:
            found = {group.protection: {run.seed: run for run in group.runs} for group in self.groups(panel)}
            free, held = found.get(BASELINE, {}), found.get(self.main or "", {})
            plain = [run for seed, run in free.items() if seed in held]
            runs = [run for seed, run in held.items() if seed in free]
            pairs[panel] = (self.against(plain, plain), self.against(runs, plain)) if runs else None
        return pairs

    def against(self, runs: Sequence[RunRecord], plain: Sequence[RunRecord]) -> Side:
        """The summary of runs of one group against the unprotected ones of the same seeds, with the runs themselves."""
        key = (runs[0].protection, runs[0].strength)
        both = [*plain, *(run for run in runs if run.protection != BASELINE)]
        entries = TwoModelResult(self.result.config, both).summary()
        return Side(next(e for e in entries if (e.protection, e.strength) == key), list(runs))

    @property
    def progress(self) -> tuple[int, int]:
        """How many runs are finished, and how many the configuration asks for."""
        wanted = arms(self.result.config)
        made = {run.arm for run in [*self.result.runs, *self.result.diverged]}
        return sum(arm in made for arm in wanted), len(wanted)

    @property
    def diverged(self) -> list[str]:
        """Which arms diverged, in one sentence; none if none did."""
        lost = self.result.diverged
        several = len(_panels(self.result, lost)) > 1
        where = " ({0.shared} shared, convergence {1})" if several else ""
        return diverged(
            [(run.arm.label + where.format(run.arm, number(run.arm.convergence)), run.arm.seed) for run in lost]
        )


def _panels(result: TwoModelResult, runs: Sequence[RunRecord]) -> list[Panel]:
    chain = result.config.chain
    every = [Panel(shared, convergence) for shared in chain.shared for convergence in chain.convergence]
    return [panel for panel in every if any(panel.holds(run) for run in runs)]


def panel_name(panel: Panel, among: Sequence[Panel]) -> str:
    """What distinguishes a panel from the others, such as `A stopped at 43 %`; everything, if it is the only one.

    >>> panel_name(Panel(3, 0.43), [Panel(3, 1.0), Panel(3, 0.43)])
    'A stopped at 43 %'
    >>> panel_name(Panel(1, 1.0), [Panel(1, 1.0)])
    '1 shared layer, A trained to convergence'
    """
    shared = counted(panel.shared, "shared layer")
    percent = number(round(100 * panel.convergence, 6))
    trained = "A trained to convergence" if panel.convergence == 1 else f"A stopped at {percent} %"
    varies_shared = len({other.shared for other in among}) > 1
    varies_convergence = len({other.convergence for other in among}) > 1
    if varies_shared == varies_convergence:
        return f"{shared}, {trained}"
    return shared if varies_shared else trained


def chosen_strength(result: TwoModelResult, protection: str) -> float | None:
    """The strength to show where several were run, chosen on validation data only.

    It is the strength under which A and B together end with the highest mean validation accuracy, over the seeds and
    panels that every strength has; the lowest such one. One is chosen for all panels. With validation forgetting f and
    B's validation accuracy b, it minimises mean(f − b): A's accuracy before is the same for every strength. A control
    arm goes with the strength of what it is matched to.

    Args:
        result: The runs.
        protection: Whose strength.

    Returns:
        The strength; None if the protection has none, or no run.
    """
    matched = PROTECTIONS[protection].matches if protection in PROTECTIONS else None
    if matched is not None:
        return chosen_strength(result, matched)
    scores: dict[float, dict[tuple[Any, ...], float]] = {}
    for run in result.runs:
        if run.protection == protection and run.strength is not None:
            where = (run.seed, run.shared, run.convergence)
            scores.setdefault(run.strength, {})[where] = run.validation_forgetting - run.validation_b
    common = set.intersection(*(set(found) for found in scores.values())) if scores else set()
    if not common:
        return min(scores, default=None)
    # Summed in a fixed order, so that equal scores are equal.
    return min(sorted(scores), key=lambda strength: sum(scores[strength][where] for where in sorted(common)))


def mean_forgetting(runs: Sequence[RunRecord]) -> float:
    """Mean forgetting over the models but the last, after which nothing is trained, and then over the runs."""
    lost = [[model.forgetting for model in run.models[:-1]] for run in runs]
    return mean_interval([float(sum(values) / len(values)) for values in lost]).mean
