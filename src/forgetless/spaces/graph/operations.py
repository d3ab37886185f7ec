"""The operations of NAS-Bench-Graph, each of the features or units of all nodes, H with rows h_i.

The benchmark takes them from PyTorch Geometric with its defaults; here they are written anew. Initial weights are drawn
as there: `glorot` is uniform in ±√(6 / (in + out)), `uniform` in ±1/√in.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless.spaces.graph.neighbours import Hidden, Input, Sums

HEADS = 4
"""Attention heads of `gat`, which share the units: as many as the benchmark's training code has.

A comment in its package says two. The number of weights does not tell, nor does one training: on Cora
`0123|skip,skip,gat,gat` has 80.1 % test accuracy with two heads and 80.4 % with four; the table has 81.0 %.
"""

Drawn = Literal["glorot", "uniform", "zero"]


class GraphOperation(nn.Module, ABC):
    """Base of an operation with weights W, V, … of shape (in, out) and a bias b.

    Args:
        num_inputs: F or D, of each node.
        units: D, what it gives for each node.

    Attributes:
        weights: Initial distribution of each matrix, by name.
        bias_drawn: That of the bias.
    """

    weights: ClassVar[dict[str, Drawn]]
    bias_drawn: ClassVar[Drawn]

    def __init__(self, num_inputs: int, units: int) -> None:
        super().__init__()
        for name, how in self.weights.items():
            self.register_parameter(name, nn.Parameter(drawn((num_inputs, units), how)))
        self.bias = nn.Parameter(drawn((units,), self.bias_drawn, num_inputs))

    @abstractmethod
    def forward(self, inputs: Input | Hidden, sums: Sums) -> Tensor:
        """What some nodes get.

        Args:
            inputs: H, of all nodes.
            sums: Over the neighbours of the B nodes that are wanted.

        Returns:
            (B, D).
        """


def drawn(shape: tuple[int, ...], how: Drawn, num_inputs: int | None = None) -> Tensor:
    """Initial weights, from the global random state.

    Args:
        shape: (in, out), or (out,) of a bias.
        how: The distribution; see the module.
        num_inputs: In; the first of the shape if None.
    """
    if how == "zero":
        return torch.zeros(shape)
    bound = math.sqrt(6 / sum(shape)) if how == "glorot" else 1 / math.sqrt(num_inputs or shape[0])
    return torch.empty(shape).uniform_(-bound, bound)


class FullyConnected(GraphOperation):
    """Y = H W + b: a node alone."""

    weights: ClassVar[dict[str, Drawn]] = {"weight": "uniform"}
    bias_drawn: ClassVar[Drawn] = "uniform"
    weight: Tensor

    def forward(self, inputs: Input | Hidden, sums: Sums) -> Tensor:
        """See the class."""
        return sums.own(inputs).times(self.weight) + self.bias


class Convolution(GraphOperation):
    """Y = D̃^(-1/2) (A + I) D̃^(-1/2) H W + b (GCN, Kipf and Welling 2017, arXiv:1609.02907)."""

    weights: ClassVar[dict[str, Drawn]] = {"weight": "glorot"}
    bias_drawn: ClassVar[Drawn] = "zero"
    weight: Tensor

    def forward(self, inputs: Input | Hidden, sums: Sums) -> Tensor:
        """See the class."""
        return sums.with_loops(inputs).times(self.weight) + self.bias


class Isomorphism(GraphOperation):
    """Y = (H + A H) W + b (GIN, Xu et al. 2019, arXiv:1810.00826, with ε = 0 and one layer)."""

    weights: ClassVar[dict[str, Drawn]] = {"weight": "uniform"}
    bias_drawn: ClassVar[Drawn] = "uniform"
    weight: Tensor

    def forward(self, inputs: Input | Hidden, sums: Sums) -> Tensor:
        """See the class."""
        return sums.sum_with_own(inputs).times(self.weight) + self.bias


class Chebyshev(GraphOperation):
    """Y = H W + L̂ H V + b with L̂ = −D^(-1/2) A D^(-1/2) (Defferrard et al. 2016, arXiv:1606.09375, of order 2).

    L̂ is the normalised Laplacian scaled by its largest eigenvalue, taken as 2: 2 (I − D^(-1/2) A D^(-1/2)) / 2 − I.
    """

    weights: ClassVar[dict[str, Drawn]] = {"weight": "glorot", "first_order": "glorot"}
    bias_drawn: ClassVar[Drawn] = "zero"
    weight: Tensor
    first_order: Tensor

    def forward(self, inputs: Input | Hidden, sums: Sums) -> Tensor:
        """See the class."""
        first_order = sums.symmetric(inputs).times(self.first_order)
        return sums.own(inputs).times(self.weight) - first_order + self.bias


class Sage(GraphOperation):
    """Y = D⁻¹ A H W + H V + b (GraphSAGE with means, Hamilton et al. 2017, arXiv:1706.02216)."""

    weights: ClassVar[dict[str, Drawn]] = {"weight": "uniform", "root": "uniform"}
    bias_drawn: ClassVar[Drawn] = "uniform"
    weight: Tensor
    root: Tensor

    def forward(self, inputs: Input | Hidden, sums: Sums) -> Tensor:
        """See the class."""
        return sums.mean(inputs).times(self.weight) + sums.own(inputs).times(self.root) + self.bias


class Arma(GraphOperation):
    """Y = max(0, D^(-1/2) A D^(-1/2) H W + H V + b) (Bianchi et al. 2019, arXiv:1901.01343, one stack, one layer)."""

    weights: ClassVar[dict[str, Drawn]] = {"weight": "glorot", "root": "glorot"}
    bias_drawn: ClassVar[Drawn] = "zero"
    weight: Tensor
    root: Tensor

    def forward(self, inputs: Input | Hidden, sums: Sums) -> Tensor:
        """See the class."""
        near = sums.symmetric(inputs).times(self.weight)
        return F.relu(near + sums.own(inputs).times(self.root) + self.bias)


class HigherOrder(GraphOperation):
    """Y = A H W + H V + b (k-GNN with k = 1, Morris et al. 2019, arXiv:1810.02244)."""

    weights: ClassVar[dict[str, Drawn]] = {"weight": "uniform", "root": "uniform"}
    bias_drawn: ClassVar[Drawn] = "uniform"
    weight: Tensor
    root: Tensor

    def forward(self, inputs: Input | Hidden, sums: Sums) -> Tensor:
        """See the class."""
        return sums.sum(inputs).times(self.weight) + sums.own(inputs).times(self.root) + self.bias


class Attention(GraphOperation):
    """Y_i = Σ_j a_ij g_j + b over i and its neighbours, for each head (GAT, Veličković et al. 2018, arXiv:1710.10903).

    g = H W, and a_i· is the softmax of LeakyReLU(s·g_j + t·g_i) with slope 0.2. `HEADS` heads, each with a part of the
    units and its own s and t, are concatenated; one head where the units cannot be shared out.
    """

    weights: ClassVar[dict[str, Drawn]] = {"weight": "glorot"}
    bias_drawn: ClassVar[Drawn] = "zero"
    weight: Tensor

    def __init__(self, num_inputs: int, units: int) -> None:
        super().__init__(num_inputs, units)
        heads = HEADS if units % HEADS == 0 else 1
        self.source, self.target = (nn.Parameter(drawn((heads, units // heads), "glorot")) for _ in range(2))

    def forward(self, inputs: Input | Hidden, sums: Sums) -> Tensor:
        """See the class."""
        sources, places = sums.sources, sums.places
        values = inputs.times(self.weight)
        values = values.view(len(values), *self.source.shape)  # (N, heads, D / heads)
        wanted = values if sums.nodes is None else values[sums.nodes]
        from_source, to_target = (values * self.source).sum(-1), (wanted * self.target).sum(-1)
        scores = F.leaky_relu(from_source[sources] + to_target[places], 0.2)  # (neighbours, heads)
        # Any constant per target cancels; the largest keeps exp from overflow.
        index = places.unsqueeze(1).expand_as(scores)
        most = torch.zeros_like(to_target).scatter_reduce(0, index, scores.detach(), "amax", include_self=False)
        shares = (scores - most[places]).exp()
        shares = shares / torch.zeros_like(to_target).index_add(0, places, shares)[places]
        found = torch.zeros_like(wanted).index_add(0, places, shares.unsqueeze(-1) * values[sources])
        return found.flatten(1) + self.bias


OPERATIONS: dict[str, type[GraphOperation]] = {
    "gat": Attention,
    "gcn": Convolution,
    "gin": Isomorphism,
    "cheb": Chebyshev,
    "sage": Sage,
    "arma": Arma,
    "graph": HigherOrder,
    "fc": FullyConnected,
}
"""Those with weights, by the benchmark's names; `skip` has none."""
