"""The runs of a two-model experiment, and their summary over seeds."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forgetless.experiments.two_model.config import TwoModelConfig
from forgetless.forgetting import Interval, mean_interval, reduction


@dataclass(frozen=True)
class TwoModelResult:
    """The runs made so far, and their summary over seeds.

    Attributes:
        config: What was asked.
        runs: One dict per arm, with the keys that docs/metrics.md explains.
    """

    config: TwoModelConfig
    runs: list[dict[str, Any]]

    def summary(self) -> list[dict[str, Any]]:
        """One dict per protection, strength, number of shared layers and convergence: means with 95 % intervals.

        `reduction` is None for the unprotected arm, and where that arm does not forget.

        Returns:
            Dicts in the order of the configuration.
        """
        return [
            _summarise(runs, self._unprotected(runs))
            for key in dict.fromkeys(_key(run) for run in self.runs)
            if (runs := [run for run in self.runs if _key(run) == key])
        ]

    def _unprotected(self, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The unprotected runs of the same seeds and the same A, or nothing if one is missing."""
        plain = {
            (run["seed"], run["shared"], run["convergence"]): run for run in self.runs if run["protection"] == "none"
        }
        keys = [(run["seed"], run["shared"], run["convergence"]) for run in runs]
        return [plain[key] for key in keys] if all(key in plain for key in keys) else []


def _key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("shared", "convergence", "protection", "alpha"))


def _summarise(runs: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def over_seeds(name: str) -> dict[str, float | None]:
        return dataclasses.asdict(mean_interval([run[name] for run in runs]))

    first = runs[0]
    prevented: Interval | None = None
    cost: Interval | None = None
    if plain and first["protection"] != "none":
        prevented = reduction([run["forgetting"] for run in runs], [run["forgetting"] for run in plain])
        cost = mean_interval([p["accuracy_b"] - run["accuracy_b"] for run, p in zip(runs, plain, strict=True)])
    return {
        **{name: first[name] for name in ("protection", "wiring", "shared", "convergence", "alpha")},
        "num_seeds": len(runs),
        **{
            name: over_seeds(name)
            for name in ("accuracy_a_before", "accuracy_a_after", "accuracy_a_min", "accuracy_b", "forgetting")
        },
        "reduction": None if prevented is None else dataclasses.asdict(prevented),
        "cost_b": None if cost is None else dataclasses.asdict(cost),
        "models": [
            {"model": first["models"][j]["model"], "forgetting": dataclasses.asdict(mean_interval(forgotten))}
            for j in range(len(first["models"]))
            if (forgotten := [run["models"][j]["forgetting"] for run in runs])
        ],
        "seconds": sum(run["seconds"] for run in runs),
    }
