"""The labels that a gradient is taken at: the true ones, or those of the model's own prediction.

The prediction is a distribution p(y | x) that the outputs o stand for. Which one it is has a name, the *likelihood*:

| likelihood | y | labels drawn | all labels, for `exact` |
|---|---|---|---|
| `categorical` | one class per target | softmax(o), or o | every class c, weighted by p_c |
| `bernoulli` | 0 or 1 per output | sigmoid(o), or o | per output, both labels |
| `gaussian` | a number per output | N(o, 1/h), h = ∂²ℓ/∂o² of the loss | per output, o + 1/√h |

Labels are drawn from o itself where the loss reads probabilities. The variance of `gaussian` is that of the
distribution exp(−ℓ) which the loss stands for: 1 for half the squared error, ½ for the squared error, D/2 for its mean
over D outputs. Kunstner et al. 2019 (arXiv:1905.12558), section 2.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from forgetless.choices import FisherKind, Likelihood
from forgetless.errors import InputError

Labelled = Iterator[tuple[Any, Tensor | None]]
Slopes = Callable[[Any, Any], Tensor]
"""∂ℓ/∂o of every example, by outputs and targets."""


@dataclass(frozen=True)
class Labels:
    """Where the labels of a computation come from.

    Attributes:
        kind: Which labels ℓ_n is taken at.
        generator: Draws those of `monte_carlo`.
        class_dim: Where the logits' classes lie in the output.
        likelihood: The distribution that the outputs stand for; None until it is known.
        of_logits: Whether outputs of classes are logits and no probabilities.
        shift: Where the loss reads the label of output t: at target t + shift.
    """

    kind: FisherKind
    generator: torch.Generator
    class_dim: int = -1
    likelihood: Likelihood | None = None
    of_logits: bool = True
    shift: int = 0

    @property
    def drawn(self) -> bool:
        """Whether the labels are those of the model's prediction."""
        return self.kind in {"monte_carlo", "exact"}

    def true(self) -> "Labels":
        """The same with the true labels."""
        return replace(self, kind="empirical")

    def at(self, outputs: Any, targets: Any, slopes: Slopes) -> Labelled:
        """The labels to take gradients at, and the weight (B,) of each example's power (None: 1).

        Args:
            outputs: Of B examples.
            targets: The true ones.
            slopes: Of the loss.

        Raises:
            InputError: If outputs or targets do not fit the kind.
        """
        if not self.drawn:
            yield targets, None
            return
        logits = logits_of(outputs, self.kind).detach()
        match self.likelihood:
            case "bernoulli":
                yield from self._bernoulli(logits, targets)
            case "gaussian":
                yield from self._gaussian(logits, targets, slopes)
            case _:
                yield from self._categorical(logits, targets)

    def _categorical(self, logits: Tensor, targets: Tensor) -> Labelled:
        logits = logits.movedim(self.class_dim, -1)
        if targets.is_floating_point():
            raise InputError(_expected_classes(self.kind, f"{targets.dtype} targets"))
        if logits.shape[:-1] != targets.shape:
            raise InputError(
                f"Expected logits with one row of classes per target of shape {tuple(targets.shape)}, but got "
                f"{tuple(logits.shape)}. Set class_dim to the dimension of the classes."
            )
        probabilities = logits.softmax(-1) if self.of_logits else logits
        if self.kind == "monte_carlo":
            draws = torch.multinomial(probabilities.flatten(0, -2), 1, generator=self.generator).view(targets.shape)
            yield targets.where(targets < 0, self.placed(draws.to(targets.dtype), targets)), None
            return
        if targets.ndim != 1:
            raise InputError(
                f"Expected one label per example for kind='exact', but got targets of shape {tuple(targets.shape)}. "
                "Use kind='monte_carlo'."
            )
        for label in range(probabilities.shape[-1]):
            yield targets.where(targets < 0, label), probabilities[:, label]

    def placed(self, draws: Tensor, targets: Tensor) -> Tensor:
        """The labels of each output, at the place where the loss reads them.

        Args:
            draws: Labels, output by output.
            targets: The true ones, which stay where no output is compared with them.
        """
        if self.shift == 0:
            return draws
        placed, length = targets.clone(), targets.shape[1]
        to = slice(max(0, self.shift), length + min(0, self.shift))
        of = slice(max(0, -self.shift), length - max(0, self.shift))
        placed[:, to] = draws[:, of]
        return placed

    def _bernoulli(self, logits: Tensor, targets: Tensor) -> Labelled:
        p = _shaped_as(targets, logits, self.kind)
        if self.of_logits:
            p = p.sigmoid()
        kept = targets < 0

        def labelled(values: Tensor) -> Tensor:
            return targets.to(values.dtype).where(kept, values)

        if self.kind == "monte_carlo":
            yield labelled(torch.bernoulli(p, generator=self.generator)).to(targets.dtype), None
        elif p[:1].numel() <= 1:
            for label in (0, 1):
                share = p if label else 1 - p
                yield targets.where(kept, label), share.flatten()
        else:
            # The score y − p is linear in y and outputs are independent: E[(Σ_d s_d)²] = Σ_d var(y_d) (∂s_d/∂y_d)².
            for unit in _units(p):
                yield labelled(p + unit * (p * (1 - p)).sqrt()), None

    def _gaussian(self, outputs: Tensor, targets: Tensor, slopes: Slopes) -> Labelled:
        if not targets.is_floating_point():
            raise InputError(
                f"Expected targets of floating point for likelihood='gaussian', but got {targets.dtype}. "
                "Convert them with float()."
            )
        mean = _shaped_as(targets, outputs, self.kind)
        h = slopes(outputs, mean - 1).reshape(targets.shape)
        deviation = h.clamp_min(0).rsqrt().where(h > 0, 0)  # a target that the loss does not read has no gradient
        if self.kind == "monte_carlo":
            noise = torch.randn(mean.shape, generator=self.generator, dtype=mean.dtype, device=mean.device)
            yield mean + deviation * noise, None
        else:
            for unit in _units(mean):
                yield mean + unit * deviation, None


def logits_of(outputs: Any, kind: str) -> Tensor:
    """The logits among the outputs of a model: its one tensor, or what it calls `logits`.

    Args:
        outputs: Of a model.
        kind: For the message.

    Raises:
        InputError: If there are none.
    """
    if not isinstance(outputs, Tensor):
        outputs = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    if not isinstance(outputs, Tensor):
        raise InputError(_expected_classes(kind, "another model output"))
    return outputs


def _expected_classes(kind: str, found: str) -> str:
    return f"Expected class logits and integer targets for kind={kind!r}, but got {found}. Use kind='empirical'."


def _shaped_as(targets: Tensor, outputs: Tensor, kind: str) -> Tensor:
    if outputs.numel() != targets.numel():
        raise InputError(
            f"Expected an output per target of shape {tuple(targets.shape)} for kind={kind!r} and this likelihood, but "
            f"got outputs of shape {tuple(outputs.shape)}. Use kind='empirical'."
        )
    return outputs.reshape(targets.shape)


def _units(values: Tensor) -> Iterator[Tensor]:
    """The unit vectors of one example's values."""
    for index in range(values[:1].numel()):
        unit = values.new_zeros(values[:1].numel())
        unit[index] = 1
        yield unit.view(values.shape[1:])
