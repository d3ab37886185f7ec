"""What is asked of one batch, and what every way of answering needs: labels, losses of single examples, powers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from forgetless.choices import FisherKind
from forgetless.importance.batches import num_examples
from forgetless.importance.labels import Labelled, Labels, logits_of

Batch = tuple[Any, Any]
LossFunction = Callable[[Any, Any], Tensor]
Power = Literal[1, 2]

# Per-example gradients are formed for at most this many numbers at a time (64 MiB in float32).
_CHUNK_NUMBERS = 2**24


class Request(NamedTuple):
    """One batch and what is asked of it: Σ_n |∂ℓ_n/∂θ|^power over its examples n.

    Attributes:
        model: In eval mode.
        named: The wanted weights by name.
        inputs: B examples along dim 0 of every tensor.
        targets: A tensor, or a tree of tensors, with B examples along dim 0; or None.
        loss_fn: As in `diagonal_fisher`.
        labels: Which ones ℓ_n is taken at.
        power: 2 for squares, 1 for absolute values.
        in_pairs: Whether one example goes through the model twice, because a batch of one loses its dimension there.
        may_move_rows: Whether the fast way has to check that examples stay in their rows.
        shared: Names of embeddings whose vectors of indices are of all examples (positions), not one index for each;
            None: those that are not as long as the batch.
        totals: What is added to, in place, and returned; None: zeros.
        chunk_numbers: Per-example gradients are formed for at most this many numbers at a time.
    """

    model: nn.Module
    named: dict[str, nn.Parameter]
    inputs: Any
    targets: Any
    loss_fn: LossFunction
    labels: Labels
    power: Power = 2
    in_pairs: bool = False
    may_move_rows: bool = False
    shared: frozenset[str] | None = None
    totals: dict[str, Tensor] | None = None
    chunk_numbers: int | None = None

    @property
    def kind(self) -> FisherKind:
        """Which labels ℓ_n is taken at."""
        return self.labels.kind

    @property
    def num_examples(self) -> int:
        """B."""
        return num_examples(self.targets, self.inputs)

    def sums(self) -> dict[str, Tensor]:
        """Where powers are summed, by name."""
        return zeros(self.named) if self.totals is None else self.totals

    def chunks(self, num_numbers: int) -> Iterator[slice]:
        """The examples, as many at a time as keep memory in bounds where one of them takes so many numbers."""
        return chunks(self.num_examples, num_numbers, self.chunk_numbers)

    def part(self, examples: slice | Tensor) -> "Request":
        """The same request for some of the examples."""
        return self._replace(inputs=take(self.inputs, examples), targets=take(self.targets, examples))

    def forward(self, inputs: Any) -> Any:
        """The outputs of the model."""
        if self.in_pairs and num_examples(inputs) == 1:
            return take(call(self.model, twice(inputs)), slice(0, 1))
        return call(self.model, inputs)

    def example_losses(self, outputs: Any, targets: Any) -> Tensor:
        """ℓ_n for each example (B,), whatever the reduction of `loss_fn`."""
        leaves, structure = tree_flatten(outputs)

        def one(tensors: list[Tensor], target: Any) -> Tensor:
            found = iter(tensors)
            output = [next(found).unsqueeze(0) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            return self.loss_fn(tree_unflatten(output, structure), with_batch(target)).sum()

        try:  # a cache, say, is among the outputs of many models, and stays what it is
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            return torch.func.vmap(one, (0, batch_dims(targets)))(tensors, targets)
        except (RuntimeError, ValueError):  # e.g. a loss that calls .item(), or a tensor of the batch among the outputs
            examples = (slice(n, n + 1) for n in range(self.num_examples))
            return torch.stack([self.loss_fn(take(outputs, n), take(targets, n)).sum() for n in examples])

    def slopes(self, outputs: Any, targets: Any) -> Tensor:
        """∂ℓ_n/∂o for each example, in the shape of the logits among the outputs."""
        logits = logits_of(outputs, self.kind).detach().requires_grad_()
        return torch.autograd.grad(self.example_losses(logits, targets).sum(), logits)[0]

    def labelled(self, outputs: Any) -> Labelled:
        """The labels to take gradients at, and the weight (B,) of each example's power (None: 1).

        Raises:
            InputError: If outputs or targets do not fit the kind.
        """
        return self.labels.at(outputs, self.targets, self.slopes)


# Maps a request to Σ_n |∂ℓ_n/∂θ|^power (for `batch`: B times the squared mean), by parameter name.
Method = Callable[[Request], dict[str, Tensor]]


def raised(gradients: Tensor, power: Power, dtype: torch.dtype | None = None) -> Tensor:
    """|g|^power, elementwise. Of a complex weight g = ∂ℓ/∂Re θ + i ∂ℓ/∂Im θ.

    Args:
        gradients: g, of any shape.
        power: 1 or 2.
        dtype: Of the result, and of the computation; None is that of g.
    """
    if gradients.is_complex():
        parts = torch.view_as_real(gradients.resolve_conj())
        squares = (parts if dtype is None else parts.to(dtype)).square().sum(-1)
        return squares if power == 2 else squares.sqrt()
    if dtype is not None:
        gradients = gradients.to(dtype)
    return gradients.square() if power == 2 else gradients.abs()


def zeros(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where powers are summed: at least float32, whose range the square of a half-precision gradient needs.

    Args:
        named: Weights by name.
    """
    return {name: torch.zeros_like(weight, dtype=wide_type(weight.dtype)) for name, weight in named.items()}


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type, or float32 if that holds more; of a complex type that of its parts.

    Args:
        dtype: Of floating point, or complex.
    """
    return torch.promote_types(dtype.to_real() if dtype.is_complex else dtype, torch.float32)


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


def take(tree: Any, examples: slice | Tensor) -> Any:
    """Some examples of every tensor in a tree of tensors and other things.

    Args:
        tree: With examples along dim 0 of its tensors. Those without dims, as a loss of the whole batch, stay.
        examples: Which.
    """
    return tree_map(lambda leaf: leaf[examples] if isinstance(leaf, Tensor) and leaf.ndim else leaf, tree)


def twice(inputs: Any) -> Any:
    """A batch of two equal examples.

    Args:
        inputs: A batch of one.
    """
    return tree_map(lambda leaf: torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) else leaf, inputs)


def with_batch(tree: Any) -> Any:
    """The tensors of one example with the dim of a batch.

    Args:
        tree: Of tensors and other things.
    """
    return tree_map(lambda leaf: leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf, tree)


def batch_dims(tree: Any) -> Any:
    """Where `torch.func.vmap` finds the examples: dim 0 of tensors, nowhere in other things.

    Args:
        tree: Of tensors and other things.
    """
    if tree_leaves(tree) == [None]:
        return None
    return tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, tree)


def chunks(num_examples: int, num_numbers: int, limit: int | None = None) -> Iterator[slice]:
    """The examples, as many at a time as keep memory in bounds.

    Args:
        num_examples: How many there are.
        num_numbers: How many numbers one of them takes.
        limit: So many numbers at a time at most; None: 2²⁴.
    """
    limit = _CHUNK_NUMBERS if limit is None else min(limit, _CHUNK_NUMBERS)
    size = max(1, limit // max(1, num_numbers))
    for start in range(0, num_examples, size):
        yield slice(start, start + size)
