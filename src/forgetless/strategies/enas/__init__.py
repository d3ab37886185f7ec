"""ENAS: an LSTM that emits an architecture decision by decision, trained by REINFORCE.

Source: Pham, Guan, Zoph, Le, Dean, *Efficient Neural Architecture Search via Parameter Sharing*, ICML 2018,
arXiv:1802.03268, section 2; REINFORCE is Williams 1992. With decisions a_1 … a_D of an architecture a and the
controller's probabilities π,

    log p(a) = Σ_t log π(a_t | a_<t),    J = E_a[R(a)] + w · H,    H = −Σ_a p(a) log p(a)

and the gradient of J is estimated from n architectures drawn from p.

`EnasStrategy` is the strategy; `forgetless.strategies.enas.controller` has the network and what it maximises.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.errors import InputError
from forgetless.spaces.base import A
from forgetless.strategies.base import STRATEGIES, Strategy, StrategyOptions

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EnasOptions(StrategyOptions):
    """Hyper-parameters of the ENAS controller.

    "Text" and "images" below are the authors' released commands `ptb_search.sh` and `cifar10_micro_search.sh`
    (github.com/melodyguan/enas), where they differ from the paper.

    Attributes:
        num_units: Hidden units of the LSTM and length of its embeddings. Paper, text: 100; images: 64.
        learning_rate: Of Adam. Paper: 0.00035, for 2,000 steps an epoch; text: 0.001; images: 0.0035. A search on two
            cores has some hundred steps: on a noisy toy reward, of which uniform draws have 0.25, 200 steps of 10
            architectures reached 0.53, 0.85 and 0.83 … 0.92 with the three, the last with half of 0.001's entropy.
        temperature: T > 0 in logits = c · tanh(z / T). Paper, text: 5; images: 1. Larger explores longer.
        tanh_constant: c > 0, which bounds the logits to ±c: of K options none is ever drawn with a probability above
            1 / (1 + (K − 1) e^(−2c)), which for c = 2.5 is 0.98 of 4 options. Paper, text: 2.5; images: 1.1.
        entropy_weight: w ≥ 0, in units of reward per nat. Paper, images: 0.0001 (0.1 in the paper's image search);
            text: 0.001.
        baseline_decay: d in [0, 1) of the moving average b ← d · b + (1 − d) · R̄, once per call of `learn`, R̄ the
            mean of its finite rewards. Text and images: 0.99, once per architecture.
        max_gradient_norm: Gradients with a larger norm, over all weights, are scaled down to it; math.inf never
            does. The released code does not clip. With rewards up to 1 the norm stays far below the default.

    Raises:
        InputError: If a value is outside of its range.

    >>> EnasOptions(temperature=0)
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected the controller's temperature to be finite and above 0, but got 0. The paper \
uses 5.
    """

    num_units: int = 100
    learning_rate: float = 0.001
    temperature: float = 5.0
    tanh_constant: float = 2.5
    entropy_weight: float = 0.0001
    baseline_decay: float = 0.95
    max_gradient_norm: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_units < 1:
            self._refuse("num_units", "at least 1", "The paper uses 100.")
        for name, hint in (
            ("learning_rate", "The paper uses 0.00035."),
            ("temperature", "The paper uses 5."),
            ("tanh_constant", "The paper uses 2.5."),
        ):
            if not 0 < getattr(self, name) < math.inf:
                self._refuse(name, "finite and above 0", hint)
        if not 0 <= self.entropy_weight < math.inf:
            self._refuse("entropy_weight", "finite and at least 0", "0 gives no bonus for entropy.")
        if not 0 <= self.baseline_decay < 1:
            self._refuse("baseline_decay", "in [0, 1)", "0 takes the previous batch's mean as the baseline.")
        if not self.max_gradient_norm > 0:
            self._refuse("max_gradient_norm", "above 0", "inf never clips.")

    def _refuse(self, name: str, condition: str, hint: str) -> None:
        raise InputError(f"Expected the controller's {name} to be {condition}, but got {getattr(self, name)}. {hint}")


@STRATEGIES.register
class EnasStrategy(Strategy[A]):
    """Draws architectures from a controller, and trains it to give good ones a higher probability.

    One Adam step per `learn`, on the negative mean of `surrogate` with advantages R − b. The baseline b is the
    moving average of earlier batches' mean rewards; for the first batch it is that batch's own mean (so a first batch
    of one architecture teaches nothing but entropy). Any architectures can be learnt from, but only those that the
    controller as it is has drawn give an unbiased gradient.

    The rule for a diverged architecture, whose reward is not finite: it counts as the lowest finite reward seen so
    far, which is never above b, and moves neither b nor any average. While no finite reward has been seen, there is
    nothing to compare with, and `learn` changes nothing.

    Differences: n architectures are drawn, and learnt from, in one pass; see `controller.surrogate` for the entropy
    and `controller.Controller` for the layers. The controller stays on the CPU: it is small, and so draws the same
    architectures wherever the shared weights are.

    Args:
        space: What to choose from.
        seed: Of the generator that draws the initial weights and all architectures.
        options: Hyper-parameters.

    Attributes:
        controller: The network.
        baseline: b, None before the first finite reward.

    >>> from forgetless.spaces.recurrent import RecurrentSpace
    >>> strategy = EnasStrategy(RecurrentSpace(2), options=EnasOptions(num_units=16, learning_rate=0.02))
    >>> for _ in range(40):  # cells with a ReLU in them are the good ones
    ...     cells = strategy.propose(10)
    ...     metrics = strategy.learn(cells, [float("relu" in str(cell)) for cell in cells])
    >>> metrics["mean_reward"] > 0.9
    True
    """

    name: ClassVar[str] = "enas"
    Options: ClassVar[type[StrategyOptions]] = EnasOptions
    measured: ClassVar[Mapping[str, str]] = {
        "entropy": "(nats) Mean over a call's proposals of Σ_t H_t, the entropies of the controller's decisions.",
        "baseline": "(reward) The moving average b that a call subtracted from its rewards.",
        "gradient_norm": "(Euclidean length) Of the controller's gradient before it is scaled down.",
    }
    options: EnasOptions

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        from torch.optim import Adam

        from forgetless.strategies.enas.controller import Controller

        options = self.options
        self.controller = Controller(
            self.space.num_choices,
            options.num_units,
            temperature=options.temperature,
            tanh_constant=options.tanh_constant,
            generator=self.generator,
        )
        self.baseline: float | None = None
        self._lowest_reward = math.inf
        self._optimizer = Adam(self.controller.parameters(), lr=options.learning_rate)

    def log_probability(self, architectures: Sequence[A]) -> Tensor:
        """Of whole architectures: log p(a) = Σ_t log π(a_t | a_<t), differentiable in the controller's weights.

        Args:
            architectures: n members of the space, proposed or not.

        Returns:
            (n,), in nats.
        """
        return self.per_decision(architectures)[0].sum(1)

    def entropy(self, architectures: Sequence[A]) -> Tensor:
        """Σ_t H(π(· | a_<t)), the entropy of each decision given the ones before it.

        Over architectures drawn from the controller its mean is an unbiased estimate of the controller's entropy
        H = −Σ_a p(a) log p(a), of lower variance than that of −log p(a).

        Args:
            architectures: n members of the space.

        Returns:
            (n,), in nats per architecture; at most the log of the space's size.
        """
        return self.per_decision(architectures)[1].sum(1)

    def per_decision(self, architectures: Sequence[A]) -> tuple[Tensor, Tensor]:
        """The log π(a_t | a_<t) of the decisions made, and the entropies H(π(· | a_<t)).

        Args:
            architectures: n members of the space.

        Returns:
            Two tensors (n, D), in nats.

        Raises:
            InputError: If an architecture is not in the space, or there is none.
        """
        if not architectures:
            raise InputError("Expected at least 1 architecture, but got none. Propose some first.")
        import torch

        decisions = torch.tensor([self.space.encode(architecture) for architecture in architectures])
        log_probabilities = self.controller(decisions)  # (n, D, K)
        # 0 · log 0 = 0, in value and in gradient.
        finite = log_probabilities.masked_fill(log_probabilities == -math.inf, 0)
        entropy = -(log_probabilities.exp() * finite).sum(-1)
        return log_probabilities.gather(-1, decisions.unsqueeze(-1)).squeeze(-1), entropy

    def _propose(self, n: int) -> list[A]:
        return [self.space.decode(decisions) for decisions in self.controller.sample(n, self.generator).tolist()]

    def _learn(self, architectures: Sequence[A], rewards: list[float]) -> dict[str, float]:
        """One step; returns the metrics.

        `baseline` is b as it was subtracted, `entropy` (nats per architecture) the estimate of H before the step, and
        `gradient_norm` is taken before clipping. Without a finite reward so far, `entropy` is the only one.
        """
        from torch import nn

        from forgetless.strategies.enas.controller import surrogate

        log_probability, entropy = self.per_decision(architectures)
        metrics = {"entropy": entropy.sum(1).mean().item()}
        finite = [reward for reward in rewards if math.isfinite(reward)]
        mean = math.fsum(finite) / len(finite) if finite else None
        lowest = min([*finite, self._lowest_reward])
        baseline = mean if self.baseline is None else self.baseline
        if baseline is None:
            return metrics

        advantages = [(reward if math.isfinite(reward) else lowest) - baseline for reward in rewards]
        objective = surrogate(
            log_probability,
            entropy,
            log_probability.new_tensor(advantages),
            num_choices=self.space.num_choices,
            entropy_weight=self.options.entropy_weight,
        )
        self._optimizer.zero_grad()
        (-objective.mean()).backward()  # type: ignore[no-untyped-call]
        gradient_norm = nn.utils.clip_grad_norm_(
            self.controller.parameters(), self.options.max_gradient_norm, error_if_nonfinite=True
        )
        self._optimizer.step()

        decay = self.options.baseline_decay
        self.baseline = baseline if mean is None else decay * baseline + (1 - decay) * mean
        self._lowest_reward = lowest
        return metrics | {"baseline": baseline, "gradient_norm": gradient_norm.item()}

    def state_dict(self) -> dict[str, Any]:
        """Space, options, weights, optimizer, baseline, lowest reward and generator, copied."""
        return super().state_dict() | {
            "controller": copy.deepcopy(self.controller.state_dict()),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "baseline": self.baseline,
            "lowest_reward": self._lowest_reward,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.

        Raises:
            InputError: If it was saved for another space or with other options; the message says which.
        """
        super().load_state_dict(state)
        self.controller.load_state_dict(state["controller"])
        # The optimizer would go on to write into the tensors that it is given.
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.baseline, self._lowest_reward = state["baseline"], state["lowest_reward"]
