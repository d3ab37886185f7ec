"""NAO: architectures in a continuous space, in which a predicted reward is climbed by its gradient.

Source: Luo, Tian, Qin, Chen, Liu, *Neural Architecture Optimization*, NeurIPS 2018, arXiv:1808.07233. An encoder takes
the decisions of an architecture to a latent z, a predictor f takes z to its reward, a decoder takes z back to
decisions. All three are trained together on architectures of known reward, on

    λ · (f(z) − r)² − (1 − λ) · log p(a | z) / D        (the paper's equation 1; D decisions)

and a new architecture is decoded from where the gradient of f leads from a good one.

`NaoStrategy` is the strategy; `forgetless.strategies.nao.latent` has the three networks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from forgetless.errors import InputError
from forgetless.spaces.base import A
from forgetless.strategies.base import STRATEGIES, Strategy, StrategyOptions


@dataclass(frozen=True, kw_only=True)
class NaoOptions(StrategyOptions):
    """Hyper-parameters of NAO.

    Attributes:
        num_units: Hidden units of both LSTMs, which is the length of z. Paper: 96.
        learning_rate: Of Adam. Paper: 0.001, for a thousand epochs over what is known.
        predictor_weight: λ in (0, 1). Paper: 0.8.
        memory_size: How many different architectures are remembered, each with its newest reward.
        min_observations: How many rewards are needed before anything is trained or climbed.
        num_seeds: How many of the best are climbed from.
        training_steps: Of Adam in a call of `learn`.
        batch_size: Architectures of such a step.
        step_size: Length of a step in the latent space, as a share of the length that all of its points have.
        ascent_steps: Steps climbed from each seed; each place on the way is decoded.

    Raises:
        InputError: If a value is outside of its range.

    >>> NaoOptions(step_size=0)
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected step_size to be finite and above 0, but got 0. 0.1 is a tenth of a latent.
    """

    num_units: int = 64
    learning_rate: float = 0.005
    predictor_weight: float = 0.8
    memory_size: int = 200
    min_observations: int = 30
    num_seeds: int = 20
    training_steps: int = 10
    batch_size: int = 64
    step_size: float = 0.1
    ascent_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("num_units", "memory_size", "num_seeds", "training_steps", "batch_size", "ascent_steps")
        for name in counts:
            if getattr(self, name) < 1:
                self._refuse(name, "at least 1", "Choose a positive number.")
        if not 2 <= self.min_observations <= self.memory_size:
            self._refuse(
                "min_observations", f"in 2 … {self.memory_size}, memory_size", "Remember more, or ask for less."
            )
        for name, hint in (("learning_rate", "The paper uses 0.001."), ("step_size", "0.1 is a tenth of a latent.")):
            if not 0 < getattr(self, name) < math.inf:
                self._refuse(name, "finite and above 0", hint)
        if not 0 < self.predictor_weight < 1:
            self._refuse("predictor_weight", "in (0, 1)", "The paper uses 0.8.")

    def _refuse(self, name: str, condition: str, hint: str) -> None:
        raise InputError(f"Expected {name} to be {condition}, but got {getattr(self, name)}. {hint}")


@STRATEGIES.register
class NaoStrategy(Strategy[A]):
    """Remembers architectures and rewards, learns a latent space of them, and climbs from the best.

    `propose` is uniform until there are `min_observations` rewards. Then it climbs from all of the `num_seeds` best
    remembered ones, decodes every place on the way by the most probable decisions, and takes those that are not
    remembered, the places of few steps first and seeds in random order. What is missing to n is decoded from the same
    places by decisions drawn from the decoder, and if that is not enough, drawn uniformly. The paper lets the step grow
    until there are enough new architectures; in small spaces that leads back to the same few.

    `propose_final` gives the best remembered for one half, for the search to measure once more, and proposals for the
    other: the paper selects the best of all.

    `learn` remembers rewards and takes some steps of Adam on the loss above, on random batches of what is remembered.
    Rewards are normalised to mean 0 and standard deviation 1 of the memory. The memory holds the newest; one that is
    measured again counts as new.

    The rule for a diverged architecture, whose reward is not finite: it is remembered as the worst finite reward in
    the memory, and never climbed from.

    Differences: see `latent.LatentModel`; networks are trained on from call to call instead of anew; gradients are
    scaled down to norm 5.

    Args:
        space: What to choose from.
        seed: Of the generator that draws initial weights, batches and architectures.
        options: Hyper-parameters.

    Attributes:
        model: The networks.
        memory: Decisions → reward, the newest last; NaN where it diverged.

    >>> from forgetless.spaces.recurrent import RecurrentSpace
    >>> strategy = NaoStrategy(RecurrentSpace(4), options=NaoOptions(num_units=16))
    >>> for _ in range(12):  # the more ReLUs, the better
    ...     cells = strategy.propose(10)
    ...     metrics = strategy.learn(cells, [float(str(cell).count("relu")) for cell in cells])
    >>> max(str(cell).count("relu") for cell in strategy.propose_final(10))
    4
    """

    name: ClassVar[str] = "nao"
    Options: ClassVar[type[StrategyOptions]] = NaoOptions
    measured: ClassVar[Mapping[str, str]] = {
        "predictor_error": "(reward) Root of the mean squared error of the predicted rewards on the last batch of a "
        "call's training, which it was trained on. Missing before there are enough rewards.",
        "reconstruction": "(share) Of the decisions of that batch, those that the decoder finds most probable given "
        "the latent and the decisions before.",
    }
    options: NaoOptions

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        from torch.optim import Adam

        from forgetless.strategies.nao.latent import LatentModel

        self.model = LatentModel(self.space.num_choices, self.options.num_units, self.generator)
        self.memory: dict[tuple[int, ...], float] = {}
        self._optimizer = Adam(self.model.parameters(), lr=self.options.learning_rate)

    def best(self, number: int) -> list[tuple[int, ...]]:
        """The decisions of the best remembered architectures, best first; of equals the older.

        Args:
            number: How many at most.
        """
        finite = [decisions for decisions, reward in self.memory.items() if math.isfinite(reward)]
        return sorted(finite, key=lambda decisions: -self.memory[decisions])[:number]

    @property
    def _is_ready(self) -> bool:
        return sum(map(math.isfinite, self.memory.values())) >= self.options.min_observations

    def _propose(self, n: int) -> list[A]:
        new = self._climbed()[:n] if n and self._is_ready else []
        proposed = [self.space.decode(decisions) for decisions in new]
        return proposed + [self.space.sample(self.generator) for _ in range(n - len(proposed))]

    def _climbed(self) -> list[tuple[int, ...]]:
        """What ascents from the best lead to and is not remembered, in the order in which it is to be tried."""
        import torch

        seeds = torch.tensor(self.best(self.options.num_seeds))
        seeds = seeds[torch.randperm(len(seeds), generator=self.generator)]
        with torch.no_grad():
            latent = self.model.encode(seeds)
        places = []
        for _ in range(self.options.ascent_steps):
            latent = self.model.climb(latent, self.options.step_size)
            places.append(latent)
        way = torch.cat(places)
        likely, drawn = self.model.decoder.decode(way), self.model.decoder.sample(len(way), self.generator, way)
        found = dict.fromkeys(map(tuple, torch.cat([likely, drawn]).tolist()))
        return [decisions for decisions in found if decisions not in self.memory]

    def _propose_final(self, n: int) -> list[A]:
        best = [self.space.decode(decisions) for decisions in self.best((n + 1) // 2)]
        return best + self._propose(n - len(best))

    def _learn(self, architectures: Sequence[A], rewards: list[float]) -> dict[str, float]:
        """Remember and train; returns the metrics, none before there are enough rewards.

        Of the last step's batch: `predictor_error`, the root of the mean squared error in units of reward, and
        `reconstruction`, the share of decisions that the decoder finds most probable given those before.
        """
        for architecture, reward in zip(architectures, rewards, strict=True):
            decisions = tuple(self.space.encode(architecture))
            self.memory.pop(decisions, None)
            self.memory[decisions] = reward if math.isfinite(reward) else math.nan
        for decisions in list(self.memory)[: -self.options.memory_size]:
            del self.memory[decisions]
        return self._train() if self._is_ready else {}

    def _train(self) -> dict[str, float]:
        import torch
        import torch.nn.functional as F
        from torch import nn

        decisions = torch.tensor(list(self.memory))  # (m, D)
        known = torch.tensor(list(self.memory.values()), dtype=torch.float64)
        known = known.where(known.isfinite(), known[known.isfinite()].min())
        scale = float(known.std(correction=0))
        targets = ((known - known.mean()) / (scale or 1.0)).float()
        for _ in range(self.options.training_steps):
            drawn = torch.randperm(len(decisions), generator=self.generator)[: self.options.batch_size]
            batch = decisions[drawn]
            latent = self.model.encode(batch)
            error = F.mse_loss(self.model.predict(latent), targets[drawn])
            log_p = self.model.decoder(batch, latent)  # (n, D, K)
            surprise = F.nll_loss(log_p.flatten(0, 1), batch.flatten())
            share = self.options.predictor_weight
            self._optimizer.zero_grad()
            (share * error + (1 - share) * surprise).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self._optimizer.step()
        reconstructed = (log_p.argmax(-1) == batch).float().mean()
        return {"predictor_error": scale * math.sqrt(error.item()), "reconstruction": reconstructed.item()}

    def state_dict(self) -> dict[str, Any]:
        """Space, generator, options, memory, weights and optimizer, copied."""
        return super().state_dict() | {
            "memory": [[list(decisions), reward] for decisions, reward in self.memory.items()],
            "model": copy.deepcopy(self.model.state_dict()),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """
        super().load_state_dict(state)
        self.memory = {tuple(decisions): reward for decisions, reward in state["memory"]}
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
