"""Which runs of a two-model experiment are shown together: panels, and in each the arms at the strength chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forgetless.experiments.two_model import Arm, TwoModelResult, arms
from forgetless.forgetting import Interval, mean_interval
from forgetless.options import number
from forgetless.protection import BASELINE, PROTECTIONS
from forgetless.report.formats import arm_label, counted, listed, main_of

Run = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One state of A and one amount of sharing: what the arms of one picture have in common."""

    shared: int
    convergence: float

    def holds(self, run: Mapping[str, Any]) -> bool:
        """Whether a run or a summary belongs here."""
        return bool(run["shared"] == self.shared and run["convergence"] == self.convergence)


@dataclass(frozen=True)
class Group:
    """The runs of one protection at one strength in one panel, one per seed."""

    protection: str
    strength: float | None
    runs: list[Run]

    @property
    def label(self) -> str:
        """Name and strength."""
        return arm_label(self.protection, self.strength)

    def values(self, key: str) -> list[float]:
        """One quantity, one value per seed, in per cent or points."""
        return [100 * float(run[key]) for run in self.runs]

    def estimate(self, key: str) -> Interval:
        """Its mean over seeds, with the interval."""
        return mean_interval(self.values(key))

    def mean(self, key: str) -> float:
        """Its mean over seeds, as recorded."""
        return mean_interval([float(run[key]) for run in self.runs]).mean


def panels(result: TwoModelResult) -> list[Panel]:
    """The panels that have runs, in the order of the configuration."""
    config = result.config
    every = [Panel(shared, convergence) for shared in config.chain.shared for convergence in config.chain.convergence]
    return [panel for panel in every if any(panel.holds(run) for run in result.runs)]


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
        if run["protection"] == protection and run["strength"] is not None:
            where = (run["seed"], run["shared"], run["convergence"])
            scores.setdefault(run["strength"], {})[where] = run["validation_forgetting"] - run["validation_b"]
    common = set.intersection(*(set(found) for found in scores.values())) if scores else set()
    if not common:
        return min(scores, default=None)
    # Summed in a fixed order, so that equal scores are equal.
    return min(sorted(scores), key=lambda strength: sum(scores[strength][where] for where in sorted(common)))


def groups(result: TwoModelResult, panel: Panel) -> list[Group]:
    """What is shown in a panel: each protection once, at its chosen strength, in the order of the configuration."""
    found = (group_at(result, panel, name, chosen_strength(result, name)) for name in result.config.arms)
    return [group for group in found if group is not None]


def group_at(result: TwoModelResult, panel: Panel, protection: str, strength: float | None) -> Group | None:
    """The runs of a protection at a strength in a panel; None if there are none."""
    mine = (run for run in result.runs if run["protection"] == protection and run["strength"] in {None, strength})
    runs = [run for run in mine if panel.holds(run)]
    return Group(protection, strength, runs) if runs else None


def paired(result: TwoModelResult, panel: Panel) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Summaries of the unprotected arm and of the main protection's, over the seeds that both have.

    Args:
        result: The runs.
        panel: One of `panels(result)`.

    Returns:
        Two dicts as `TwoModelResult.summary` makes them, with the runs under `runs`; None if one arm is missing.
    """
    found = {group.protection: group.runs for group in groups(result, panel)}
    main = main_protection(result)
    if main is None or BASELINE not in found or main not in found:
        return None
    seeds = {run["seed"] for run in found[BASELINE]} & {run["seed"] for run in found[main]}
    free, held = ([run for run in found[name] if run["seed"] in seeds] for name in (BASELINE, main))
    return (summary_against(result, free, free), summary_against(result, held, free)) if seeds else None


def summary_against(result: TwoModelResult, runs: Sequence[Run], plain: Sequence[Run]) -> dict[str, Any]:
    """The summary of one group of runs against the unprotected runs of the same seeds, with the runs themselves."""
    key = (runs[0]["protection"], runs[0]["strength"])
    both = [*plain, *(run for run in runs if run["protection"] != BASELINE)]
    entries = TwoModelResult(result.config, both).summary()
    return {**next(e for e in entries if (e["protection"], e["strength"]) == key), "runs": list(runs)}


def main_protection(result: TwoModelResult) -> str | None:
    """The protection that sentences are about; None if there is none."""
    present = {run["protection"] for run in result.runs}
    return main_of([name for name in result.config.arms if name in present])


def mean_forgetting(runs: Sequence[Run]) -> float:
    """Mean forgetting over the models but the last, after which nothing is trained, and then over the runs."""
    lost = [[model["forgetting"] for model in run["models"][:-1]] for run in runs]
    return mean_interval([float(sum(values) / len(values)) for values in lost]).mean


def progress(result: TwoModelResult) -> tuple[int, int]:
    """How many runs are finished, and how many the configuration asks for."""
    wanted = arms(result.config)
    made = {_arm(run) for run in [*result.runs, *result.diverged]}
    return sum(arm in made for arm in wanted), len(wanted)


def diverged_arms(result: TwoModelResult) -> str:
    """Which arms diverged, in one sentence; empty if none did."""
    if not result.diverged:
        return ""
    several = len(panels(TwoModelResult(result.config, result.diverged))) > 1
    seeds: dict[str, list[str]] = {}
    for run in result.diverged:
        arm = _arm(run)
        where = f" ({arm.shared} shared, convergence {number(arm.convergence)})" if several else ""
        seeds.setdefault(arm.label + where, []).append(str(arm.seed))
    told = [f"{label} with seed{'s' * (len(found) > 1)} {listed(found)}" for label, found in seeds.items()]
    return f"Diverged, and in no mean: {'; '.join(told)}. A lower learning rate may help."


def _arm(run: Run) -> Arm:
    return Arm(*(run[key] for key in ("seed", "shared", "convergence", "protection", "strength")))


def letters(result: TwoModelResult) -> list[str]:
    """The letters of the models, in the order of training."""
    return [model["model"] for model in result.runs[0]["models"]]


def later(result: TwoModelResult) -> str:
    """Those of the models trained after A: `B`, `B to F`."""
    return listed(letters(result)[1:])
