"""The names, formats and choices that figures, page and terminal share."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forgetless.experiments.two_model import Arm, TwoModelResult, arms
from forgetless.options import number
from forgetless.protection import BASELINE, PROTECTIONS, Protection

Run = dict[str, Any]


def label(protection: str) -> str:
    """What figures and tables call a protection; one that is not there any more goes by its name."""
    kind = PROTECTIONS.get(protection)
    return protection if kind is None else kind.label


def with_protection(protection: str) -> str:
    """How sentences say that something is under a protection: `with the L2 anchor`, `without protection`."""
    if protection == BASELINE:
        return "without protection"
    kind = PROTECTIONS.get(protection)
    return f"with {(kind.in_sentence or kind.label) if kind else protection}"


def is_control(protection: str) -> bool:
    """Whether an arm is a control: matched to another, without protection."""
    kind = PROTECTIONS.get(protection)
    return kind is not None and kind.matches is not None


def control_of(protection: str) -> str | None:
    """The control arm that is matched to a protection; None if there is none."""
    return next((kind.name for kind in PROTECTIONS.values() if kind.matches == protection), None)


def main_of(present: Sequence[str]) -> str | None:
    """The protection that sentences are about: one that has a control arm, or else the first; None without any.

    Args:
        present: Those with results, in the order of the configuration.
    """
    held = [name for name in present if name != BASELINE and not is_control(name)]
    return next((name for name in held if control_of(name)), next(iter(held), None))


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
        """Name and strength, such as `weight plasticity, α = 1e5`; for the control arm, that it is one."""
        name = label(self.protection)
        if is_control(self.protection):
            return f"{name} (control)"
        # The strength stays in one piece where a line is broken.
        return name if self.strength is None else f"{name}, {_kind(self.protection).told(number(self.strength))}"

    def values(self, key: str) -> list[float]:
        """One quantity, one value per seed."""
        return [float(run[key]) for run in self.runs]


def _kind(protection: str) -> type[Protection]:
    """The class of a protection, of a control arm that of what it is matched to."""
    kind = PROTECTIONS[protection]
    return PROTECTIONS[kind.matches] if kind.matches is not None else kind


def symbol_of(protection: str) -> str:
    """What a protection's strength is called: α, tolerance, directions."""
    return _kind(protection).symbol


def strength_axis(protection: str) -> str:
    """What an axis of its strengths is of, such as `strength α`."""
    kind = _kind(protection)
    if kind.symbol == Protection.symbol:
        return f"strength {kind.symbol}"
    return f"{kind.symbol} ({kind.unit})" if kind.unit else kind.symbol


def strength_heading(protections: Iterable[str]) -> str:
    """Heads a column of strengths: what they are called, or `strength` where that differs.

    Args:
        protections: In the column; those without a strength do not count.

    >>> strength_heading(["none", "wpl"]), strength_heading(["wpl", "wpl-tolerance"])
    ('α', 'strength')
    """
    kinds = [PROTECTIONS[name] for name in protections if name in PROTECTIONS]
    symbols = {kind.symbol for kind in kinds if kind.has_strength()}
    return "strength" if len(symbols) > 1 else next(iter(symbols), Protection.symbol)


def panels(result: TwoModelResult) -> list[Panel]:
    """The panels that have runs, in the order of the configuration."""
    config = result.config
    every = [Panel(shared, convergence) for shared in config.chain.shared for convergence in config.chain.convergence]
    return [panel for panel in every if any(panel.holds(run) for run in result.runs)]


def panel_name(panel: Panel, among: Sequence[Panel]) -> str:
    """What distinguishes a panel from the others; everything, if it is the only one.

    Args:
        panel: The panel.
        among: All panels.

    Returns:
        Such as `A stopped at 43 %`.

    >>> panel_name(Panel(3, 0.43), [Panel(3, 1.0), Panel(3, 0.43)])
    'A stopped at 43 %'
    >>> panel_name(Panel(1, 1.0), [Panel(1, 1.0)])
    '1 shared layer, A trained to convergence'
    """
    shared = f"{panel.shared} shared layer{'' if panel.shared == 1 else 's'}"
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
    found = []
    for protection in result.config.arms:
        strength = chosen_strength(result, protection)
        runs = [
            run
            for run in result.runs
            if panel.holds(run) and run["protection"] == protection and run["strength"] in {None, strength}
        ]
        if runs:
            found.append(Group(protection, strength, runs))
    return found


def main_protection(result: TwoModelResult) -> str | None:
    """The protection that sentences are about; None if there is none."""
    present = {run["protection"] for run in result.runs}
    return main_of([name for name in result.config.arms if name in present])


def mean_forgetting(run: Mapping[str, Any]) -> float:
    """Mean forgetting over a run's models but the last, after which nothing is trained; for two models that of A."""
    lost = [model["forgetting"] for model in run["models"][:-1]]
    return float(sum(lost) / len(lost))


def progress(result: TwoModelResult) -> tuple[int, int]:
    """How many runs are finished, and how many the configuration asks for."""
    wanted = arms(result.config)
    keys = ("seed", "shared", "convergence", "protection", "strength")
    made = {tuple(run[name] for name in keys) for run in [*result.runs, *result.diverged]}
    return sum(dataclasses.astuple(arm) in made for arm in wanted), len(wanted)


def diverged_arms(result: TwoModelResult) -> str:
    """Which arms diverged, in one sentence; empty if none did."""
    if not result.diverged:
        return ""
    keys = ("seed", "shared", "convergence", "protection", "strength")
    several = len(panels(TwoModelResult(result.config, result.diverged))) > 1
    seeds: dict[str, list[str]] = {}
    for run in result.diverged:
        arm = Arm(*(run[key] for key in keys))
        where = f" ({arm.shared} shared, convergence {number(arm.convergence)})" if several else ""
        seeds.setdefault(arm.label + where, []).append(str(arm.seed))
    told = [f"{label} with seed{'s' * (len(found) > 1)} {listed(found)}" for label, found in seeds.items()]
    return f"Diverged, and in no mean: {'; '.join(told)}. A lower learning rate may help."


# Formats


def points(fraction: float, decimals: int = 1) -> str:
    """A fraction in per cent or points, with a real minus sign and never a negative zero.

    Args:
        fraction: 0.142 is 14.2 points.
        decimals: Digits after the point.

    Returns:
        The number alone.

    >>> points(0.1423), points(-0.0001), points(-0.02)
    ('14.2', '0.0', '−2.0')
    """
    text = f"{100 * fraction:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def span(fractions: Iterable[float], decimals: int = 1) -> str:
    """The least and the greatest in points, or the one number if they read the same."""
    values = sorted(fractions)
    low, high = points(values[0], decimals), points(values[-1], decimals)
    return low if low == high else f"{low} to {high}"


def listed(names: Sequence[str]) -> str:
    """`B`, `B and C`, `B to F`."""
    if len(names) > 3:
        return f"{names[0]} to {names[-1]}"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def share(interval: Mapping[str, float | None]) -> str:
    """A reduction in per cent, with as many digits as tell it from 100.

    >>> share({"mean": 0.99986, "low": None, "high": None}), share({"mean": 0.6, "low": None, "high": None})
    ('99.99 %', '60 %')
    """
    mean = interval["mean"] or 0.0
    return f"{share_number(mean)} %"


def share_number(value: float) -> str:
    """`share` without the sign."""
    decimals = next((d for d in (0, 1, 2) if f"{100 * value:.{d}f}" != f"{100:.{d}f}"), 0)
    return points(value, 0 if value > 1 else decimals)


def share_interval(interval: Mapping[str, float | None]) -> str:
    """The ends of a reduction's interval, such as `98 to 100 %`; an end without bound is said to be so."""
    low, high = (None if end is None else share_number(end) for end in (interval["low"], interval["high"]))
    if low is None or high is None:
        return " and ".join(
            [
                "no lower bound" if low is None else f"from {low} %",
                "no upper bound" if high is None else f"at most {high} %",
            ]
        )
    return f"{high} %" if low == high else f"{low} to {high} %"


def duration(seconds: float) -> str:
    """Such as `1 h 20 min`, `3 min 5 s`, `4.2 s`.

    >>> duration(4.21), duration(185.2), duration(4800)
    ('4.2 s', '3 min 5 s', '1 h 20 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def later_models(result: TwoModelResult) -> list[str]:
    """The letters of the models trained after A."""
    return [model["model"] for model in result.runs[0]["models"][1:]]
