"""What a two-model run has to show: panels, in each the arms at the strength that is chosen, and how these compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from forgetless.experiments.two_model.records import ArmSummary, RunRecord
from forgetless.experiments.two_model.result import TwoModelResult
from forgetless.forgetting import Interval, mean_interval
from forgetless.protection import BASELINE, PROTECTIONS, control_of, is_control, main_of


@dataclass(frozen=True)
class Panel:
    """One state of A and one amount of sharing: what the arms of one picture have in common."""

    shared: int
    convergence: float

    def holds(self, run: RunRecord | ArmSummary) -> bool:
        """Whether a run or a summary belongs here."""
        return run.shared == self.shared and run.convergence == self.convergence


@dataclass(frozen=True)
class Group:
    """The runs of one protection at one strength in one panel, one per seed."""

    protection: str
    strength: float | None
    runs: list[RunRecord]

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
class Side(Group):
    """One of several arms that are compared over the same seeds, with its summary over these."""

    summary: ArmSummary

    @property
    def cost(self) -> float:
        """What B pays on average; there is one, since the unprotected runs are there."""
        assert self.summary.cost_b is not None
        return self.summary.cost_b.mean


@dataclass(frozen=True)
class Selection:
    """What is selected of a result."""

    result: TwoModelResult

    @cached_property
    def panels(self) -> list[Panel]:
        """Those that have runs, in the order of the configuration."""
        return panels_of(self.result, self.result.runs)

    @cached_property
    def ran(self) -> list[str]:
        """The protections that have runs, in the order of the configuration."""
        present = {run.protection for run in self.result.runs}
        return [name for name in self.result.config.arms if name in present]

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

    def compared(self, panel: Panel, *protections: str) -> list[Side]:
        """Arms over the seeds that all of them have; nothing if there is no such seed."""
        groups = {group.protection: group for group in self.groups(panel) if group.protection in protections}
        found = [{run.seed: run for run in groups[name].runs} if name in groups else {} for name in protections]
        seeds = [seed for seed in found[0] if all(seed in each for each in found)]
        runs = [[each[seed] for seed in seeds] for each in found]
        summary = TwoModelResult(self.result.config, [run for each in runs for run in each]).summary()
        return [Side(e.protection, e.strength, each, e) for e, each in zip(summary, runs, strict=False)]

    def along(self, panel: Panel, protection: str | None, strengths: Sequence[float]) -> list[Group]:
        """The groups of a protection in a panel, by strength; the one group of an arm without."""
        if protection is None or protection not in self.ran:
            return []
        found = (self.group(panel, protection, s) for s in (strengths if self.strengths[protection] else [None]))
        return [group for group in found if group.runs]

    @cached_property
    def main(self) -> str | None:
        """The protection that findings are about; None if there is none."""
        return main_of(self.ran)

    @cached_property
    def pairs(self) -> dict[Panel, list[Side]]:
        """The unprotected and the main arm of each panel, over the seeds that both have; nothing if one is missing."""
        return {panel: self.compared(panel, BASELINE, self.main or "") for panel in self.panels}

    @property
    def several(self) -> dict[str, list[float]]:
        """The protections that ran at several strengths, which are chosen among; those with a control arm first."""
        found = {name: values for name, values in self.strengths.items() if len(values) > 1 and not is_control(name)}
        return dict(sorted(found.items(), key=lambda item: control_of(item[0]) is None))

    @property
    def letters(self) -> list[str]:
        """The letters of the models, in the order of training."""
        return [model.model for model in self.result.runs[0].models]


def panels_of(result: TwoModelResult, runs: list[RunRecord]) -> list[Panel]:
    """The panels that hold some of these runs, in the order of the configuration."""
    chain = result.config.chain
    every = [Panel(shared, convergence) for shared in chain.shared for convergence in chain.convergence]
    return [panel for panel in every if any(panel.holds(run) for run in runs)]


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
