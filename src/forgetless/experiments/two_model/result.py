"""The runs of a two-model experiment, and their summary over seeds."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from forgetless.experiments.two_model.config import TwoModelConfig
from forgetless.forgetting import Interval, mean_interval, reduction


@dataclass(frozen=True)
class TwoModelResult:
    """The runs made so far, and their summary over seeds.

    Attributes:
        config: What was asked.
        runs: One dict per arm, with the keys that docs/metrics.md explains.
        diverged: Those in which a model ended without finite outputs; they are in no mean.
    """

    config: TwoModelConfig
    runs: list[dict[str, Any]]
    diverged: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, config: TwoModelConfig, records: Sequence[dict[str, Any]]) -> Self:
        """The result that records tell of, those that diverged apart.

        Args:
            config: What was asked.
            records: Of finished arms.
        """
        return cls(config, [r for r in records if not _is_diverged(r)], [r for r in records if _is_diverged(r)])

    def summary(self) -> list[dict[str, Any]]:
        """One dict per protection, strength, number of shared layers and convergence: means with 95 % intervals.

        `reduction` is None for the unprotected arm, and where that arm does not forget; it is over the seeds in which
        neither arm diverged.

        Returns:
            Dicts in the order of the configuration; none for an arm whose every seed diverged.
        """
        return self._summary

    @cached_property
    def _summary(self) -> list[dict[str, Any]]:
        diverged = Counter(map(_key, self.diverged))
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for run in self.runs:
            groups.setdefault(_key(run), []).append(run)
        return [_summarise(runs, self._pairs(runs), diverged[key]) for key, runs in groups.items()]

    def _pairs(self, runs: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Runs with the unprotected ones of the same seeds and the same A; nothing if one of these is still missing."""
        found = [(run, self._unprotected.get(_origin(run))) for run in runs]
        pairs = [(run, plain) for run, plain in found if plain is not None]
        lost = {_origin(run) for run in self.diverged if run["protection"] == "none"}
        return pairs if all(plain is not None or _origin(run) in lost for run, plain in found) else []

    @cached_property
    def _unprotected(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        return {_origin(run): run for run in self.runs if run["protection"] == "none"}


def _is_diverged(run: Mapping[str, Any]) -> bool:
    accuracies = [run[name] for name in ("accuracy_a_before", "accuracy_a_after", "accuracy_b", "validation_b")]
    accuracies += [*run["curve"]["accuracy_a"], *run["curve"]["accuracy_b"], run["mean_step"]]
    accuracies += [model["forgetting"] for model in run["models"]]
    return None in accuracies


def _origin(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return run["seed"], run["shared"], run["convergence"]


def _key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("shared", "convergence", "protection", "strength"))


def _summarise(
    runs: Sequence[Mapping[str, Any]],
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    num_diverged: int,
) -> dict[str, Any]:
    def over_seeds(name: str) -> dict[str, float | None]:
        return dataclasses.asdict(mean_interval([run[name] for run in runs]))

    first = runs[0]
    prevented: Interval | None = None
    cost: Interval | None = None
    if pairs and first["protection"] != "none":
        prevented = reduction([run["forgetting"] for run, _ in pairs], [plain["forgetting"] for _, plain in pairs])
        cost = mean_interval([plain["accuracy_b"] - run["accuracy_b"] for run, plain in pairs])
    return {
        **{name: first[name] for name in ("protection", "wiring", "shared", "convergence", "strength")},
        "num_seeds": len(runs),
        "num_diverged": num_diverged,
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
