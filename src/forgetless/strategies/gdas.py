"""GDAS: a softmax over the operations of each edge, moved by the gradient of the loss itself.

Source: Dong and Yang, *Searching for a Robust Neural Architecture in Four GPU Hours*, CVPR 2019, arXiv:1910.04465,
section 3.2. With logits A_e,k of operation k on edge e and Gumbel noise o,

    h_e = one_hot(argmax_k (A_e,k + o_e,k)),    h̃_e = softmax_k((A_e,k + o_e,k) / τ)

the cell computes the operation of h_e alone, and multiplies its output by h_e − detach(h̃_e) + h̃_e at that operation:
a factor of exactly 1 that hands the gradient of the loss on to the logits.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.configuration import fitting
from forgetless.errors import InputError
from forgetless.spaces.base import A, Space
from forgetless.strategies.base import STRATEGIES, Strategy, StrategyOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Adam


@dataclass(frozen=True, kw_only=True)
class GdasOptions(StrategyOptions):
    """Hyper-parameters of GDAS.

    Attributes:
        learning_rate: Of Adam. Paper: 0.0003, for some hundred thousand steps; the default is for some fifty, each
            the mean over several architectures.
        weight_decay: Of Adam; paper: 0.001.
        initial_temperature: τ of the first call of `learn`. Paper: 10.
        final_temperature: τ of the call number `num_steps`, and of all later ones. Paper: 0.1; below about 1, of a
            small number of architectures most have a gradient near 0.
        num_steps: Calls of `learn` over which τ falls, linearly; by default as many as there are.

    Raises:
        InputError: If a value is outside of its range.

    >>> GdasOptions(final_temperature=0)
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected final_temperature to be finite and above 0, but got 0. The paper uses 0.1.
    """

    learning_rate: float = 0.1
    weight_decay: float = 0.001
    initial_temperature: float = 10.0
    final_temperature: float = 0.1
    num_steps: int = fitting()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, paper in (("learning_rate", 0.0003), ("initial_temperature", 10), ("final_temperature", 0.1)):
            if not 0 < getattr(self, name) < math.inf:
                self._refuse(name, "finite and above 0", f"The paper uses {paper}.")
        if not 0 <= self.weight_decay < math.inf:
            self._refuse("weight_decay", "finite and at least 0", "The paper uses 0.001.")
        if self.num_steps is not None and self.num_steps < 1:
            self._refuse("num_steps", "at least 1", "Give the number of calls of `learn`.")

    def _refuse(self, name: str, condition: str, hint: str) -> None:
        raise InputError(f"Expected {name} to be {condition}, but got {getattr(self, name)}. {hint}")

    def temperature(self, step: int) -> float:
        """τ, falling linearly.

        Args:
            step: From 0.

        >>> [GdasOptions(num_steps=3).temperature(step) for step in (0, 1, 2, 100)]
        [10.0, 5.05, 0.1, 0.1]
        """
        share = min(1.0, step / max(1, self.num_steps - 1))
        return (1 - share) * self.initial_temperature + share * self.final_temperature


@STRATEGIES.register
class GdasStrategy(Strategy[A]):
    """Draws each edge's operation from a softmax, which follows the gradient of the loss on held-out data.

    One Adam step per `learn`, on the mean over its architectures of the gradient of `loss` with respect to the logits.
    The Gumbel noise of an architecture is drawn given that its operations win (`winning_noise`), so that it has the
    distribution that it would have had if the architecture had been drawn with it, and nothing need be kept between
    `propose` and `learn`. The shared weights get no gradient.

    Differences: the paper takes a step per architecture, and adds to an edge the factors of the other operations,
    which are 0 but whose gradients are those of a constant; here an edge that did not win has none. Rewards are only
    reported. So a search with it makes as many evaluations as any other, and as many gradients in addition, each of
    one batch of the reward data in training mode. The paper selects the most probable operation of each edge:
    `propose_final` gives that one first, then draws from the softmax.

    The rule for a diverged architecture: where the reward or the gradient is not finite it is left out of the mean;
    without any left no step is taken, but τ falls all the same.

    Args:
        space: Cells of NAS-Bench-201.
        seed: Of the generator.
        options: Hyper-parameters.

    Attributes:
        logits: A, (edges, operations).
        num_steps: Calls of `learn` so far.

    Raises:
        InputError: If the space is another one.

    >>> from forgetless.spaces.nas201 import Nas201Space
    >>> import torch
    >>> strategy = GdasStrategy(Nas201Space(("skip_connect", "nor_conv_3x3")), options=GdasOptions(num_steps=20))
    >>> def loss(cell, weights):
    ...     return (weights * torch.tensor([operation == "skip_connect" for operation in cell.operations])).sum()
    >>> strategy.loss = loss
    >>> for _ in range(20):
    ...     cells = strategy.propose(5)
    ...     metrics = strategy.learn(cells, [0.0] * 5)
    >>> print(strategy.propose_final(1)[0])
    |nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|
    """

    uses_gradients: ClassVar[bool] = True

    name: ClassVar[str] = "gdas"
    Options: ClassVar[type[StrategyOptions]] = GdasOptions
    measured: ClassVar[Mapping[str, str]] = {
        "temperature": "(number) τ.",
        "entropy": "(nats) The sum over edges of the entropies of the softmax before a call's step.",
        "loss": "(nats) Mean loss on the batches of the reward split that a call differentiates.",
        "gradient_norm": "(Euclidean length) Of the mean gradient with respect to the logits.",
    }
    options: GdasOptions

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        import torch

        if self.options.num_steps is None:
            self.options = dataclasses.replace(self.options, num_steps=max(1, self.num_learning_steps))
        shape = (len(self.space.num_choices), self.space.num_choices[0])
        self.logits = (0.001 * torch.randn(shape, generator=self.generator)).requires_grad_()
        self.num_steps = 0
        self._optimizer = self._make_optimizer()

    @classmethod
    def expect_space(cls, space: Space[Any]) -> None:
        """Refuse a space whose decisions are not one operation for each edge.

        Args:
            space: What to choose from.

        Raises:
            InputError: If it is another one.
        """
        if not space.decides_edges:
            raise InputError(
                f"Expected a space of operations on edges for the strategy gdas, such as nas201, but got {space}. "
                "Choose another one."
            )

    def _make_optimizer(self) -> Adam:
        from torch.optim import Adam

        # β as in the released code: gradients of single architectures are noisy.
        rate, decay = self.options.learning_rate, self.options.weight_decay
        return Adam([self.logits], lr=rate, betas=(0.5, 0.999), weight_decay=decay)

    def _propose(self, n: int) -> list[A]:
        noise = _gumbel((n, *self.logits.shape), self.generator)
        return [self.space.decode(decisions) for decisions in (self.logits.detach() + noise).argmax(-1).tolist()]

    def _propose_final(self, n: int) -> list[A]:
        return [self.space.decode(self.logits.argmax(-1).tolist()), *self._propose(n)][:n]

    def _learn(self, architectures: Sequence[A], rewards: list[float]) -> dict[str, float]:
        """One step; returns the metrics.

        `temperature` is τ, `entropy` (nats per architecture) that of the softmax before the step, and `loss` and
        `gradient_norm` are those of the mean over architectures.
        """
        import torch

        if self.loss is None:
            raise InputError("Expected a loss to differentiate for the strategy gdas, but got none. Set `loss` first.")
        temperature = self.options.temperature(self.num_steps)
        log_p = self.logits.detach().log_softmax(-1)
        metrics = {"temperature": temperature, "entropy": -float((log_p.exp() * log_p).sum())}
        found = [
            self.gradient(architecture, temperature)
            for architecture, reward in zip(architectures, rewards, strict=True)
            if math.isfinite(reward)
        ]
        found = [(loss, gradient) for loss, gradient in found if math.isfinite(loss) and gradient.isfinite().all()]
        self.num_steps += 1
        if not found:
            return metrics
        self.logits.grad = torch.stack([gradient for _, gradient in found]).mean(0)
        self._optimizer.step()
        norm, self.logits.grad = float(torch.linalg.vector_norm(self.logits.grad)), None
        return metrics | {"loss": math.fsum(loss for loss, _ in found) / len(found), "gradient_norm": norm}

    def gradient(self, architecture: A, temperature: float) -> tuple[float, Tensor]:
        """The loss of an architecture and its gradient with respect to the logits, for noise with which it wins.

        Args:
            architecture: A member of the space.
            temperature: τ.

        Returns:
            The loss, and (edges, operations).
        """
        import torch

        assert self.loss is not None
        decisions = torch.tensor(self.space.encode(architecture)).unsqueeze(1)  # (E, 1)
        noise = winning_noise(self.logits.detach(), decisions, self.generator)
        soft = ((self.logits + noise) / temperature).softmax(-1).gather(1, decisions).squeeze(1)  # (E,)
        loss = self.loss(architecture, 1 - soft.detach() + soft)
        # Of the logits only: shared weights that the loss depends on are not to get a gradient. A cell without a path
        # from its input to its output does not depend on them at all.
        (gradient,) = torch.autograd.grad(loss, [self.logits], allow_unused=True, materialize_grads=True)
        return loss.item(), gradient

    def state_dict(self) -> dict[str, Any]:
        """Space, generator, options, logits, optimizer and number of steps, copied."""
        return super().state_dict() | {
            "logits": self.logits.detach().clone(),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """
        import torch

        super().load_state_dict(state)
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self._optimizer = self._make_optimizer()
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.num_steps = state["num_steps"]


def winning_noise(logits: Tensor, winners: Tensor, generator: torch.Generator) -> Tensor:
    r"""Standard Gumbel noise o, given that `winners` are the argmax of logits + o in each row.

    The maximum of logits + o is Gumbel with location log Σ_k exp(A_k), whoever wins; the others are Gumbels with
    location A_k, truncated there (Maddison, Tarlow, Minka, *A\* Sampling*, 2014, arXiv:1411.0030, section 3):

        m = log Σ_k exp(A_k) + g,    A_k + o_k = −log(exp(−m) + exp(−A_k − g_k))

    Args:
        logits: A, (E, K).
        winners: (E, 1), integers.
        generator: The source of randomness.

    Returns:
        (E, K).

    >>> import torch
    >>> noise = winning_noise(torch.tensor([[5.0, 0.0]]), torch.tensor([[1]]), torch.Generator())
    >>> (torch.tensor([[5.0, 0.0]]) + noise).argmax().item()
    1
    """
    import torch

    greatest = logits.logsumexp(-1, keepdim=True) + _gumbel((len(logits), 1), generator, logits.dtype)
    others = logits + _gumbel(tuple(logits.shape), generator, logits.dtype)
    perturbed = -torch.logaddexp(-greatest, -others)
    return perturbed.scatter(-1, winners, greatest) - logits


def _gumbel(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
    """Standard Gumbel numbers, −log E with E exponential."""
    import torch

    return -torch.empty(shape, dtype=dtype).exponential_(generator=generator).log()
