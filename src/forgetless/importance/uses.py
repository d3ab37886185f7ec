"""How a weight was used by the examples of a batch, and the sums of powers of their gradients that follow from it.

A weight that is used several times per example (a token at a time, a convolution's positions, tied weights) needs the
sum over its uses *before* the power. Where an example uses it once, the sum of squares needs no gradient of an
example at all: Σ_n (g_n a_nᵀ)² = (g²)ᵀ(a²).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from forgetless.importance.request import Power, chunks, raised


class Outer(NamedTuple):
    """Per-example gradient Σ_t g_t a_tᵀ, in `groups` blocks: (B, G, T, in) and (B, G, T, out) → (B, G·out, in)."""

    inputs: Tensor
    gradients: Tensor


class Lookup(NamedTuple):
    """Per-example gradient with rows Σ_{t: rows_t = row} g_t: (B, T) and (B, T, width) → (B, rows, width)."""

    rows: Tensor
    gradients: Tensor


class Direct(NamedTuple):
    """The per-example gradient itself: (B, *shape)."""

    gradients: Tensor


Use = Outer | Lookup | Direct

# A processor's cache holds the gradient of so many weights for one example (1 MiB in float32). Of larger matrices, such
# as those of a vocabulary, a few rows at a time are formed: half the time.
_CACHED_NUMBERS = 2**18


def add_powers(total: Tensor, uses: Sequence[Use], power: Power, limit: int | None = None) -> None:
    """Add Σ_n |Σ_uses gradient_n|^power to a total, in place.

    Args:
        total: In the weight's shape.
        uses: All uses of the weight by the examples n, in one batch.
        power: 1 or 2.
        limit: Gradients of examples are formed for so many numbers at a time at most; None: as in `chunks`.
    """
    shape = total.shape
    if all(isinstance(use, Outer) for use in uses):
        outer = _joined(cast("Sequence[Outer]", uses))
        if outer.gradients.shape[1] == outer.gradients.shape[2] == 1:  # one use per example
            inputs, gradients = outer.inputs[:, 0, 0], outer.gradients[:, 0, 0]
            total += (raised(gradients, power).T @ raised(inputs, power)).reshape(shape)
            return
        uses = [outer]
    if all(isinstance(use, Lookup) for use in uses):
        total += _powers_of_lookups(cast("Sequence[Lookup]", uses), shape, power)
        return
    num_numbers = math.prod(shape)
    in_blocks = num_numbers > _CACHED_NUMBERS and total.ndim == 2 and all(_has_rows(use) for use in uses)
    num_rows = max(1, _CACHED_NUMBERS // shape[1]) if in_blocks and not total.is_cuda else math.inf
    for chunk in chunks(len(uses[0].gradients), num_numbers, limit):
        some = [_of_examples(use, chunk) for use in uses]
        if num_rows == math.inf:
            total += _power(_gradients(some, shape), power).sum(0)
            continue
        for start in range(0, shape[0], int(num_rows)):
            part = total[start : start + int(num_rows)]
            for n in range(len(some[0].gradients)):
                one = [_of_rows(_of_examples(use, slice(n, n + 1)), start, len(part)) for use in some]
                _add_power(part, _gradients(one, part.shape)[0], power)


def _power(gradients: Tensor, power: Power) -> Tensor:
    return gradients.square_() if power == 2 else gradients.abs_()


def _add_power(total: Tensor, gradient: Tensor, power: Power) -> None:
    if power == 2:
        total.addcmul_(gradient, gradient)
    else:
        total += gradient.abs_()


def _joined(uses: Sequence[Outer]) -> Outer:
    """Several uses of one weight are more positions of one use."""
    if len(uses) == 1:
        return uses[0]
    return Outer(torch.cat([use.inputs for use in uses], 2), torch.cat([use.gradients for use in uses], 2))


def _has_rows(use: Use) -> bool:
    return isinstance(use, Lookup) or (isinstance(use, Outer) and use.gradients.shape[1] == 1)


def _of_examples(use: Use, chunk: slice) -> Use:
    match use:
        case Outer(inputs, gradients):
            return Outer(inputs[chunk], gradients[chunk])
        case Lookup(index, gradients):
            return Lookup(index[chunk], gradients[chunk])
        case Direct(gradients):
            return Direct(gradients[chunk])


def _of_rows(use: Use, start: int, num: int) -> Use:
    """The uses by one example of `num` rows of a matrix."""
    match use:
        case Outer(inputs, gradients):
            return Outer(inputs, gradients[..., start : start + num])
        case Lookup(index, gradients):
            inside = ((index >= start) & (index < start + num))[0]
            return Lookup(index[:, inside] - start, gradients[:, inside])
        case Direct():
            raise AssertionError("Expected a use of rows.")


def _gradients(uses: Sequence[Use], shape: torch.Size) -> Tensor:
    """Gradients of examples, (B, *shape), in memory of their own."""
    first = next((use for use in uses if isinstance(use, Outer)), uses[0])
    total = _gradient(first, shape)
    for use in uses:
        match use:
            case _ if use is first:
                continue
            case Lookup(index, gradients):  # without a table of zeros for it
                total.scatter_add_(1, index.unsqueeze(-1).expand_as(gradients), gradients)
            case _:
                total += _gradient(use, shape)
    return total


def _gradient(use: Use, shape: torch.Size) -> Tensor:
    match use:
        case Outer(inputs, gradients):
            return (gradients.mT @ inputs).reshape(-1, *shape)
        case Lookup(index, gradients):
            dense = gradients.new_zeros(len(index), *shape)
            return dense.scatter_add_(1, index.unsqueeze(-1).expand_as(gradients), gradients)
        case Direct(gradients):
            return gradients.reshape(-1, *shape).clone()


def _powers_of_lookups(uses: Sequence[Lookup], shape: torch.Size, power: Power) -> Tensor:
    """Σ_n |Σ_{t: rows_t = row} g_nt|^power without a (B, rows, width) table: equal (example, row) pairs come first."""
    index = torch.cat([use.rows for use in uses], 1)
    gradients = torch.cat([use.gradients for use in uses], 1)
    example = torch.arange(len(index), device=index.device).unsqueeze(1)
    pairs, place = torch.unique(example * shape[0] + index, return_inverse=True)
    sums = gradients.new_zeros(len(pairs), shape[1]).index_add_(0, place.flatten(), gradients.flatten(0, 1))
    return gradients.new_zeros(shape).index_add_(0, pairs % shape[0], raised(sums, power))
