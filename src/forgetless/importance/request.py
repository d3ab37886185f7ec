"""What is asked of one batch, and what every way of answering needs: labels, losses of single examples, powers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from forgetless.choices import FisherKind

Batch = tuple[Any, Tensor]
LossFunction = Callable[[Any, Tensor], Tensor]
Power = Literal[1, 2]

# Per-example gradients are formed for at most this many numbers at a time (64 MiB in float32).
_CHUNK_NUMBERS = 2**24


class Request(NamedTuple):
    """One batch and what is asked of it: Σ_n |∂ℓ_n/∂θ|^power over its examples n.

    Attributes:
        model: In eval mode.
        named: The wanted weights by name.
        inputs: B examples along dim 0 of every tensor.
        targets: B examples along dim 0.
        loss_fn: As in `diagonal_fisher`.
        kind: Which labels ℓ_n is taken at.
        class_dim: Where the logits' classes lie in the output.
        generator: Draws the labels of `monte_carlo`.
        power: 2 for squares, 1 for absolute values.
    """

    model: nn.Module
    named: dict[str, nn.Parameter]
    inputs: Any
    targets: Tensor
    loss_fn: LossFunction
    kind: FisherKind
    class_dim: int
    generator: torch.Generator
    power: Power = 2

    def part(self, examples: slice) -> "Request":
        """The same request for some of the examples."""
        return self._replace(inputs=take(self.inputs, examples), targets=self.targets[examples])

    def forward(self, inputs: Any) -> Any:
        """The outputs of the model."""
        return call(self.model, inputs)

    def example_losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """ℓ_n for each example (B,), whatever the reduction of `loss_fn`."""

        def one(output: Any, target: Tensor) -> Tensor:
            return self.loss_fn(tree_map(lambda leaf: leaf.unsqueeze(0), output), target.unsqueeze(0)).sum()

        try:
            return torch.func.vmap(one)(outputs, targets)
        except (RuntimeError, ValueError):  # e.g. a loss that calls .item(), or a state among the outputs
            examples = (slice(n, n + 1) for n in range(len(targets)))
            return torch.stack([self.loss_fn(take(outputs, n), targets[n]).sum() for n in examples])

    def logits(self, outputs: Any) -> Tensor:
        """The logits among the outputs, detached.

        Raises:
            ValueError: If there are none, or the targets are no classes.
        """
        if not isinstance(outputs, Tensor):
            outputs = getattr(outputs, "logits", None)
        if not isinstance(outputs, Tensor) or self.targets.is_floating_point():
            raise ValueError(
                f"Expected class logits and integer targets for kind={self.kind!r}, but got another model output or "
                f"{self.targets.dtype} targets. Use kind='empirical'."
            )
        return outputs.detach()

    def labels(self, outputs: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The labels to take gradients at, and the weight (B,) of each example's power (None: 1).

        Raises:
            ValueError: If outputs or targets do not fit the kind.
        """
        targets = self.targets
        if self.kind in {"empirical", "batch"}:
            yield targets, None
            return
        logits = self.logits(outputs).movedim(self.class_dim, -1)
        if logits.shape[:-1] != targets.shape:
            raise ValueError(
                f"Expected logits with one row of classes per target of shape {tuple(targets.shape)}, but got "
                f"{tuple(logits.shape)}. Set class_dim to the dimension of the classes."
            )
        probabilities = logits.softmax(-1)
        if self.kind == "monte_carlo":
            draws = torch.multinomial(probabilities.flatten(0, -2), 1, generator=self.generator).view(targets.shape)
            yield targets.where(targets < 0, draws.to(targets.dtype)), None
            return
        if targets.ndim != 1:
            raise ValueError(
                f"Expected one label per example for kind='exact', but got targets of shape {tuple(targets.shape)}. "
                "Use kind='monte_carlo'."
            )
        for label in range(probabilities.shape[-1]):
            yield targets.where(targets < 0, label), probabilities[:, label]


# Maps a request to Σ_n |∂ℓ_n/∂θ|^power (for `batch`: B times the squared mean), by parameter name.
Method = Callable[[Request], dict[str, Tensor]]


def raised(gradients: Tensor, power: Power) -> Tensor:
    """|g|^power, elementwise.

    Args:
        gradients: g, of any shape.
        power: 1 or 2.
    """
    return gradients.square() if power == 2 else gradients.abs()


def zeros(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where powers are summed: at least float32, whose range the square of a half-precision gradient needs.

    Args:
        named: Weights by name.
    """
    return {name: torch.zeros_like(weight, dtype=wide_type(weight.dtype)) for name, weight in named.items()}


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type, or float32 if that holds more.

    Args:
        dtype: Of floating point.
    """
    return torch.promote_types(dtype, torch.float32)


def call(function: Callable[..., Any], inputs: Any) -> Any:
    """Call a function with one input, a tuple of positional ones, or a dict of keyword ones.

    Args:
        function: Such as a model.
        inputs: Of one batch.
    """
    if isinstance(inputs, tuple):
        return function(*inputs)
    if isinstance(inputs, Mapping):
        return function(**inputs)
    return function(inputs)


def take(tree: Any, examples: slice) -> Any:
    """Some examples of every tensor in a tree of tensors and other things.

    Args:
        tree: With examples along dim 0 of its tensors.
        examples: Which.
    """
    return tree_map(lambda leaf: leaf[examples] if isinstance(leaf, Tensor) else leaf, tree)


def chunks(num_examples: int, num_numbers: int) -> Iterator[slice]:
    """The examples, as many at a time as keep memory in bounds.

    Args:
        num_examples: How many there are.
        num_numbers: How many numbers one of them takes.
    """
    size = max(1, _CHUNK_NUMBERS // max(1, num_numbers))
    for start in range(0, num_examples, size):
        yield slice(start, start + size)
