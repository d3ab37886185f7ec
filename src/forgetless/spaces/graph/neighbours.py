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
    """What a node has computed, as the input of another; or sums of it over neighbours.

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


class Summed(NamedTuple):
    """S X of features, which is not computed before it is multiplied: X W has fewer columns, and S X is less sparse.

    Attributes:
        matrix: S; None for rows of X as they are.
        transposed: Sᵀ.
        features: X.
        rows: Those of X if there is no S; all if None.
    """

    matrix: Sparse | None
    transposed: Sparse | None
    features: Input
    rows: Tensor | None = None

    def times(self, weight: Tensor) -> Tensor:
        """S (X W).

        Args:
            weight: W, (F, D).
        """
        found = self.features.times(weight)
        if self.matrix is not None and self.transposed is not None:
            return product(self.matrix, self.transposed, found)
        return found if self.rows is None else found[self.rows]


class Neighbours(nn.Module):
    """A graph for sums over neighbours, with d_i for the number of i's neighbours.

    Args:
        edges: (2, E) source and target, sorted by target; each edge in both directions, no loops.
        num_nodes: N.
    """

    sources: Tensor
    targets: Tensor
    offsets: Tensor
    counts: Tensor

    def __init__(self, edges: Tensor, num_nodes: int) -> None:
        super().__init__()
        self.num_nodes = num_nodes
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
            "counts": degree.long() + 1,
            "adjacent": is_edge,
            "adjacent_with_loops": torch.ones_like(is_edge),
            "mean": is_edge / alone[targets],
            "mean_transposed": is_edge / alone[sources],
            "symmetric": is_edge / (alone[sources] * alone[targets]).sqrt(),
            "with_loops": 1 / ((degree[sources] + 1) * (degree[targets] + 1)).sqrt(),
        }
        for name, tensor in constants.items():
            as_made = tensor if tensor.dtype == torch.long else tensor.float()
            self.register_buffer(name, as_made.contiguous(), persistent=False)

    def at(self, nodes: Tensor | None) -> "Sums":
        """Sums for some nodes only.

        Args:
            nodes: (B,) their numbers; all N in their order if None.
        """
        return Sums(self, nodes)


class Sums:
    """Weighted sums over the neighbours of some nodes; each is a matrix that is still to be multiplied by weights.

    Sums come before products with weights, which then are of the wanted nodes alone: S H W = (S H) W. Of features it is
    the other way round, see `Summed`.

    Args:
        graph: The whole graph.
        nodes: (B,) those that are wanted; all N if None.

    Attributes:
        nodes: As given.
        sources: (M,) all neighbours of these nodes, and they themselves.
        places: (M,) for each the place of the node whose neighbour it is, 0 … B − 1, ascending.
    """

    def __init__(self, graph: Neighbours, nodes: Tensor | None) -> None:
        self.nodes, self._graph = nodes, graph
        if nodes is None:
            self.sources, self.places = graph.sources, graph.targets
            return
        counts = graph.counts[nodes]
        self._offsets = counts.cumsum(0) - counts
        self.places = torch.arange(len(nodes), device=nodes.device).repeat_interleave(counts)
        within = torch.arange(len(self.places), device=nodes.device) - self._offsets[self.places]
        self._entries = graph.offsets[nodes][self.places] + within
        self.sources = graph.sources[self._entries]
        self._order = self.sources.argsort(stable=True)
        self._back = self.places[self._order], _offsets(self.sources[self._order], graph.num_nodes)

    def _matrices(self, name: str, transposed: str | None) -> tuple[Sparse, Sparse]:
        """S and Sᵀ."""
        graph = self._graph
        values: Tensor = getattr(graph, name)
        if self.nodes is None:  # edges lie both ways, so that only the values of Sᵀ differ, if any do
            back: Tensor = getattr(graph, transposed or name)
            return Sparse(graph.sources, graph.offsets, values), Sparse(graph.sources, graph.offsets, back)
        values = values[self._entries]
        return Sparse(self.sources, self._offsets, values), Sparse(*self._back, values[self._order])

    def _sum(self, name: str, inputs: Input | Hidden, transposed: str | None = None) -> Summed | Hidden:
        here, there = self._matrices(name, transposed)
        if isinstance(inputs, Hidden):
            return Hidden(product(here, there, inputs.values))
        return Summed(here, there, inputs)

    def own(self, inputs: Input | Hidden) -> Summed | Hidden:
        """H: the nodes themselves.

        Args:
            inputs: Of all nodes.
        """
        if isinstance(inputs, Hidden):
            return inputs if self.nodes is None else Hidden(inputs.values[self.nodes])
        return Summed(None, None, inputs, self.nodes)

    def sum(self, inputs: Input | Hidden) -> Summed | Hidden:
        """A H: Σ_j h_j over the neighbours j of i.

        Args:
            inputs: Of all nodes.
        """
        return self._sum("adjacent", inputs)

    def sum_with_own(self, inputs: Input | Hidden) -> Summed | Hidden:
        """(I + A) H: h_i + Σ_j h_j over the neighbours j of i.

        Args:
            inputs: Of all nodes.
        """
        return self._sum("adjacent_with_loops", inputs)

    def mean(self, inputs: Input | Hidden) -> Summed | Hidden:
        """D⁻¹ A H: Σ_j h_j / d_i; 0 for a node without neighbours.

        Args:
            inputs: Of all nodes.
        """
        return self._sum("mean", inputs, "mean_transposed")

    def symmetric(self, inputs: Input | Hidden) -> Summed | Hidden:
        """D^(-1/2) A D^(-1/2) H: Σ_j h_j / √(d_i d_j).

        Args:
            inputs: Of all nodes.
        """
        return self._sum("symmetric", inputs)

    def with_loops(self, inputs: Input | Hidden) -> Summed | Hidden:
        """The same of A + I: Σ_j h_j / √((d_i + 1)(d_j + 1)) over i and its neighbours.

        Args:
            inputs: Of all nodes.
        """
        return self._sum("with_loops", inputs)
