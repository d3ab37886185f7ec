"""Sums over neighbours on a graph, and products with its sparse features, in plain PyTorch.

Both are products of a constant sparse matrix with a dense one, Y = S X with y_i = Σ_j S_ij x_j. A sum of weighted rows
is what `embedding_bag` computes, on two cores three times as fast as a sparse tensor. Its gradient is Sᵀ ∂Y, the
same again.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sparse(NamedTuple):
    """A sparse matrix by rows.

    Attributes:
        columns: (M,) of its entries, row after row.
        offsets: (rows,) where each row begins.
        values: (M,).
    """

    columns: Tensor
    offsets: Tensor
    values: Tensor


class _Product(torch.autograd.Function):
    """Y = S X, with the gradient Sᵀ ∂Y. Examples that are mapped over go through as more columns of X."""

    @staticmethod
    def forward(x: Tensor, *matrices: Tensor) -> Tensor:
        columns, offsets, values, *_ = matrices
        return F.embedding_bag(columns, x.contiguous(), offsets, mode="sum", per_sample_weights=values.to(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        matrices = ctx.saved_tensors
        return (_Product.apply(gradient, *matrices[3:], *matrices[:3]), *(None for _ in matrices))  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], x: Tensor, *matrices: Tensor) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 1)  # (columns of S, examples, columns of X)
        found: Tensor = _Product.apply(x.flatten(1), *matrices)  # type: ignore[no-untyped-call]
        return found.view(len(found), info.batch_size, -1), 1


def product(matrix: Sparse, transposed: Sparse, x: Tensor) -> Tensor:
    """S X, differentiable in X.

    Args:
        matrix: S, by rows.
        transposed: Sᵀ, by rows.
        x: (columns of S, D).

    Returns:
        (rows of S, D).
    """
    found: Tensor = _Product.apply(x, *matrix, *transposed)  # type: ignore[no-untyped-call]
    return found


def _offsets(sorted_rows: Tensor, num_rows: int) -> Tensor:
    """Where each row begins."""
    counts = torch.bincount(sorted_rows, minlength=num_rows)
    return counts.cumsum(0) - counts


class Features(nn.Module):
    """The binary features X of all nodes, (N, F), of which few are 1.

    Args:
        features: (2, M) node and number of each that is 1, sorted by node.
        num_nodes: N.
        num_features: F.
    """

    columns: Tensor
    offsets: Tensor
    order: Tensor
    rows: Tensor
    back_offsets: Tensor
    ones: Tensor

    def __init__(self, features: Tensor, num_nodes: int, num_features: int) -> None:
        super().__init__()
        rows, columns = features
        order = columns.argsort(stable=True)  # of the entries of Xᵀ, row after row
        constants = {
            "columns": columns,
            "offsets": _offsets(rows, num_nodes),
            "order": order,
            "rows": rows[order],
            "back_offsets": _offsets(columns[order], num_features),
            "ones": torch.ones(len(rows)),
        }
        for name, tensor in constants.items():
            self.register_buffer(name, tensor.contiguous(), persistent=False)

    def dropped(self, share: float) -> "Input":
        """The features, of which a share is 0 and the others are divided by what is left, as `F.dropout` has it.

        Args:
            share: In [0, 1). Features that are 0 stay 0, so that those that are 1 are drawn alone.
        """
        values = F.dropout(self.ones, share) if share else self.ones
        return Input(
            Sparse(self.columns, self.offsets, values),
            Sparse(self.rows, self.back_offsets, values[self.order]),
        )


class Input(NamedTuple):
    """Features as a sparse matrix.

    Attributes:
        matrix: X.
        transposed: Xᵀ.
    """

    matrix: Sparse
    transposed: Sparse

    def times(self, weight: Tensor) -> Tensor:
        """X W.

        Args:
            weight: W, (F, D).
        """
        return product(self.matrix, self.transposed, weight)


class Hidden(NamedTuple):
    """What a node has computed, as the input of another.

    Attributes:
        values: H, (N, D).
    """

    values: Tensor

    def times(self, weight: Tensor) -> Tensor:
        """H W.

        Args:
            weight: W, (D, D').
        """
        return self.values @ weight


class Neighbours(nn.Module):
    """Weighted sums over neighbours: A for edges, d_i for the number of i's neighbours.

    Args:
        edges: (2, E) source and target, sorted by target; each edge in both directions, no loops.
        num_nodes: N.

    Attributes:
        sources: (E + N,) of all edges and a loop at each node, sorted by target.
        targets: (E + N,).
    """

    sources: Tensor
    targets: Tensor
    offsets: Tensor

    def __init__(self, edges: Tensor, num_nodes: int) -> None:
        super().__init__()
        loops = torch.arange(num_nodes)
        sources, targets = torch.cat([edges, loops.expand(2, -1)], dim=1)
        order = targets.argsort(stable=True)
        sources, targets = sources[order], targets[order]
        degree = torch.bincount(edges[1], minlength=num_nodes).double()
        is_edge = (sources != targets).double()
        # A node without neighbours has a sum of 0, whatever it is divided by.
        alone = degree.clamp(min=1)
        constants = {
            "sources": sources,
            "targets": targets,
            "offsets": _offsets(targets, num_nodes),
            "adjacent_values": is_edge,
            "mean_values": is_edge / alone[targets],
            "mean_back_values": is_edge / alone[sources],
            "symmetric_values": is_edge / (alone[sources] * alone[targets]).sqrt(),
            "looped_values": 1 / ((degree[sources] + 1) * (degree[targets] + 1)).sqrt(),
        }
        for name, tensor in constants.items():
            as_made = tensor if tensor.dtype == torch.long else tensor.float()
            self.register_buffer(name, as_made.contiguous(), persistent=False)

    def _product(self, values: str, x: Tensor, back: str | None = None) -> Tensor:
        """The edges lie both ways, so that only the values of the transposed matrix differ, if any do."""
        here, there = (Sparse(self.sources, self.offsets, getattr(self, name)) for name in (values, back or values))
        return product(here, there, x)

    def sum(self, x: Tensor) -> Tensor:
        """A X: y_i = Σ_j x_j over the neighbours j of i.

        Args:
            x: (N, D).
        """
        return self._product("adjacent_values", x)

    def mean(self, x: Tensor) -> Tensor:
        """D⁻¹ A X: y_i = Σ_j x_j / d_i; 0 for a node without neighbours.

        Args:
            x: (N, D).
        """
        return self._product("mean_values", x, "mean_back_values")

    def symmetric(self, x: Tensor) -> Tensor:
        """D^(-1/2) A D^(-1/2) X: y_i = Σ_j x_j / √(d_i d_j).

        Args:
            x: (N, D).
        """
        return self._product("symmetric_values", x)

    def with_loops(self, x: Tensor) -> Tensor:
        """The same of A + I: y_i = Σ_j x_j / √((d_i + 1)(d_j + 1)) over i and its neighbours.

        Args:
            x: (N, D).
        """
        return self._product("looped_values", x)
