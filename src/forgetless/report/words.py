"""The names, formats and choices that figures, page and terminal share."""

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from forgetless.comparison import ComparisonConfig
from forgetless.experiments.two_model import Arm, TwoModelConfig, TwoModelResult, arms
from forgetless.protection import MATCHED, PROTECTIONS, WPL
from forgetless.runs import COMPARE, SEARCH, TWO_MODEL
from forgetless.search import SearchConfig

Run = dict[str, Any]

NAMES: Mapping[str, str] = {
    "none": "no protection",
    MATCHED: "lower learning rate",
    "freeze": "freeze",
    "l2": "L2 anchor",
    "wpl": "weight plasticity",
    "wpl-tolerance": "limited weight plasticity",
    "coupling": "coupled curvature",
    "ewc": "elastic weights (EWC)",
    "mas": "memory aware (MAS)",
    "si": "path integral (SI)",
    "nsas": "archive (NSAS)",
    "ogl": "orthogonal gradients",
}
"""Protection → label in figures and tables; another protection goes by its own name."""


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
    alpha: float | None
    runs: list[Run]

    @property
    def label(self) -> str:
        """Name and strength, such as `weight plasticity, α = 1e5`; for the control arm, that it is one."""
        name = NAMES.get(self.protection, self.protection)
        if self.protection == MATCHED:
            return f"{name} (control)"
        if self.alpha is None:
            return name
        symbol = symbol_of(self.protection)
        # The strength stays in one piece where a line is broken.
        if symbol == "directions":
            return f"{name}, {number(self.alpha)}\N{NO-BREAK SPACE}directions"
        return f"{name}, {symbol}\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{number(self.alpha)}"

    def values(self, key: str) -> list[float]:
        """One quantity, one value per seed."""
        return [float(run[key]) for run in self.runs]


def symbol_of(protection: str) -> str:
    """What a protection's strength is called: α, tolerance, directions."""
    return PROTECTIONS[protection].symbol if protection in PROTECTIONS else WPL.symbol


def strength_axis(protection: str) -> str:
    """What an axis of its strengths is of, such as `strength α`."""
    symbol = symbol_of(protection)
    return {"α": "strength α", "tolerance": "tolerance (nats)"}.get(symbol, symbol)


def strength_heading(protections: Iterable[str]) -> str:
    """Heads a column of strengths: what they are called, or `strength` where that differs.

    Args:
        protections: In the column; those without a strength do not count.

    >>> strength_heading(["none", "wpl"]), strength_heading(["wpl", "wpl-tolerance"])
    ('α', 'strength')
    """
    kinds = [PROTECTIONS[name] for name in protections if name in PROTECTIONS]
    symbols = {kind.symbol for kind in kinds if kind.strength is not None}
    return "strength" if len(symbols) > 1 else next(iter(symbols), WPL.symbol)


def panels(result: TwoModelResult) -> list[Panel]:
    """The panels that have runs, in the order of the configuration."""
    config = result.config
    every = [Panel(shared, convergence) for shared in config.shared for convergence in config.convergence]
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


def chosen_alpha(result: TwoModelResult, protection: str) -> float | None:
    """The strength to show where several were run, chosen on validation data only.

    It is the α, or the tolerance, under which A and B together end with the highest mean validation accuracy, over the
    seeds and panels that every α has; the lowest such α. One α is chosen for all panels. With validation forgetting f
    and B's validation accuracy b, it minimises mean(f − b): A's accuracy before is the same for every α. The control
    arm is matched to `wpl` and goes with its α.

    Args:
        result: The runs.
        protection: Whose strength.

    Returns:
        The strength; None if the protection has none, or no run.
    """
    if protection == MATCHED:
        return chosen_alpha(result, "wpl")
    scores: dict[float, dict[tuple[Any, ...], float]] = {}
    for run in result.runs:
        if run["protection"] == protection and run["alpha"] is not None:
            where = (run["seed"], run["shared"], run["convergence"])
            scores.setdefault(run["alpha"], {})[where] = run["validation_forgetting"] - run["validation_b"]
    common = set.intersection(*(set(found) for found in scores.values())) if scores else set()
    if not common:
        return min(scores, default=None)
    # Summed in a fixed order, so that equal scores are equal.
    return min(sorted(scores), key=lambda alpha: sum(scores[alpha][where] for where in sorted(common)))


def groups(result: TwoModelResult, panel: Panel) -> list[Group]:
    """What is shown in a panel: each protection once, at its chosen α, in the order of the configuration."""
    found = []
    for protection in result.config.protection:
        alpha = chosen_alpha(result, protection)
        runs = [
            run
            for run in result.runs
            if panel.holds(run) and run["protection"] == protection and run["alpha"] in {None, alpha}
        ]
        if runs:
            found.append(Group(protection, alpha, runs))
    return found


def main_protection(result: TwoModelResult) -> str | None:
    """The protection that sentences are about: wpl, or else the first other one with runs; None if there is none."""
    present = {run["protection"] for run in result.runs} - {"none", MATCHED}
    order = ("wpl", *result.config.protection)
    return next((protection for protection in order if protection in present), None)


def mean_forgetting(run: Mapping[str, Any]) -> float:
    """Mean forgetting over a run's models but the last, after which nothing is trained; for two models that of A."""
    lost = [model["forgetting"] for model in run["models"][:-1]]
    return float(sum(lost) / len(lost))


def progress(result: TwoModelResult) -> tuple[int, int]:
    """How many runs are finished, and how many the configuration asks for."""
    wanted = arms(result.config)
    keys = ("seed", "shared", "convergence", "protection", "alpha")
    made = {tuple(run[name] for name in keys) for run in [*result.runs, *result.diverged]}
    return sum(dataclasses.astuple(arm) in made for arm in wanted), len(wanted)


def diverged_arms(result: TwoModelResult) -> str:
    """Which arms diverged, in one sentence; empty if none did."""
    if not result.diverged:
        return ""
    keys = ("seed", "shared", "convergence", "protection", "alpha")
    several = len(panels(TwoModelResult(result.config, result.diverged))) > 1
    seeds: dict[str, list[str]] = {}
    for run in result.diverged:
        arm = Arm(*(run[key] for key in keys))
        where = f" ({arm.shared} shared, convergence {number(arm.convergence)})" if several else ""
        seeds.setdefault(arm.label + where, []).append(str(arm.seed))
    told = [f"{label} with seed{'s' * (len(found) > 1)} {listed(found)}" for label, found in seeds.items()]
    return f"Diverged, and in no mean: {'; '.join(told)}. A lower learning rate may help."


# Formats


def number(value: float) -> str:
    """The shortest exact way to write a number, such as 1e5, 3e-5, 0.43 and 100.

    Args:
        value: A finite number.

    Returns:
        Digits that read back as the same number.

    >>> number(100000.0), number(0.005), number(2.5e-7), number(3)
    ('1e5', '0.005', '2.5e-7', '3')
    """
    exact = Decimal(repr(float(value))).normalize()
    plain = f"{exact:f}"
    sign, digits, _ = exact.as_tuple()
    rest = "".join(map(str, digits[1:]))
    scientific = f"{'-' if sign else ''}{digits[0]}{'.' if rest else ''}{rest}e{exact.adjusted()}"
    ordinary = value == 0 or 1e-3 <= abs(value) < 1e3
    return plain if ordinary or len(plain) <= len(scientific) else scientific


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


def command_line(config: TwoModelConfig | SearchConfig | ComparisonConfig, **changes: object) -> str:
    """The command that makes the same runs: only what differs from the defaults.

    Args:
        config: The configuration.
        **changes: Options with another value than the configuration's.

    Returns:
        One line for a POSIX shell.

    >>> command_line(TwoModelConfig(data="mnist", convergence=(1.0, 0.43)))
    'forgetless two-model --data mnist --convergence 1 0.43'
    >>> command_line(SearchConfig(data="ptb", single=True, learning_rate=20.0))
    'forgetless search --data ptb --single --learning-rate 20'
    """
    is_comparison, is_search = isinstance(config, ComparisonConfig), isinstance(config, SearchConfig)
    words = ["forgetless", COMPARE if is_comparison else SEARCH if is_search else TWO_MODEL]
    defaults = config.defaults if isinstance(config, SearchConfig) else dataclasses.asdict(TwoModelConfig())
    for field in dataclasses.fields(config):
        value = changes.get(field.name, getattr(config, field.name))
        if value == defaults[field.name]:
            continue
        # A switch is off by default and takes no value.
        several = value if isinstance(value, tuple) else () if isinstance(value, bool) else (value,)
        words += ["--" + field.name.replace("_", "-"), *(_word(item) for item in several)]
    return shlex.join(words)


def _word(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)
