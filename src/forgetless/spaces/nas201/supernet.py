"""The NAS-Bench-201 supernet."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from forgetless.errors import InputError
from forgetless.spaces._images import ImageSupernet, Norm, normalization, relu_conv_norm
from forgetless.spaces.nas201 import NAS201_EDGES, Nas201Architecture, Nas201Space

_KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}  # the operations with weights


class _ResidualReduction(nn.Module):
    """Halves the image and doubles the channels, between two stages of NAS-Bench-201."""

    def __init__(self, norm: Norm, in_channels: int) -> None:
        super().__init__()
        out_channels = 2 * in_channels
        self.first = relu_conv_norm(norm, in_channels, out_channels, 3, stride=2)
        self.second = relu_conv_norm(norm, out_channels, out_channels, 3)
        # ceil_mode: an odd size becomes as large as the stride-2 convolution makes it
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y + cast("Tensor", self.shortcut(self.pool(x)))


class _Cell(nn.Module):
    """The operations with weights on all edges of one cell; key "{source}_{target}_{operation}"."""

    def __init__(self, norm: Norm, channels: int) -> None:
        super().__init__()
        self.operations = nn.ModuleDict(
            {
                _key(edge, operation): relu_conv_norm(norm, channels, channels, kernel)
                for edge in NAS201_EDGES
                for operation, kernel in _KERNELS.items()
            }
        )

    def forward(
        self, x: Tensor, live: dict[tuple[int, int], str], weights: dict[tuple[int, int], Tensor] | None
    ) -> Tensor:
        nodes = {0: x}
        for (source, target), operation in live.items():
            y = self._edge_output((source, target), operation, nodes[source])
            if weights is not None:
                y = weights[source, target] * y
            nodes[target] = nodes[target] + y if target in nodes else y
        return nodes[3]

    def _edge_output(self, edge: tuple[int, int], operation: str, x: Tensor) -> Tensor:
        if operation == "skip_connect":
            return x
        if operation == "avg_pool_3x3":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return cast("Tensor", self.operations[_key(edge, operation)](x))


def _key(edge: tuple[int, int], operation: str) -> str:
    return f"{edge[0]}_{edge[1]}_{operation}"


def live_edges(architecture: Nas201Architecture) -> dict[tuple[int, int], str]:
    """The edges on some path from node 0 to node 3, with their operations; `none` is no edge.

    Args:
        architecture: A NAS-Bench-201 cell.

    >>> space = Nas201Space()
    >>> live_edges(space.parse("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"))
    {(0, 3): 'skip_connect'}
    """
    edges = {
        edge: operation
        for edge, operation in zip(NAS201_EDGES, architecture.operations, strict=True)
        if operation != "none"
    }
    reached = {0}
    for source, target in sorted(edges):  # by source: all edges into a node come before those out of it
        if source in reached:
            reached.add(target)
    needed = {3}
    for source, target in sorted(edges, reverse=True):
        if target in needed:
            needed.add(source)
    return {(s, t): operation for (s, t), operation in edges.items() if s in reached and t in needed}


class Nas201Supernet(ImageSupernet[Nas201Architecture]):
    """The network of NAS-Bench-201 (Dong and Yang 2020, arXiv:2001.00326, section 2.1) for all 15,625 cells at once.

    A 3×3 convolution to C channels; three stages of N cells with C, 2C, 4C channels, a residual block with stride 2
    before the second and third; normalisation, ReLU, mean over positions, linear classifier. Every cell has its own
    weights; within a cell, each operation on each edge. The benchmark trained C = 16, N = 5 with batch normalisation.

    Edges that do not lie on a path of operations from the cell's input to its output are not computed, and their
    weights are not used. A cell without such a path outputs zeros: then only the classifier and the normalisation
    before it are used.

    Args:
        image_shape: (channels, height, width).
        num_classes: K.
        channels: C, of the first stage.
        cells_per_stage: N.
        space: The space; there is but one.
        norm: `batch` or `group`, see `ImageSupernet`.

    Raises:
        InputError: If a size is below 1 or `norm` is unknown.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> supernet = Nas201Supernet((1, 8, 8), num_classes=10, channels=4, cells_per_stage=1)
    >>> cell = supernet.space.parse("|none~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|")
    >>> supernet(torch.zeros(2, 1, 8, 8), cell).shape
    torch.Size([2, 10])
    >>> [name for name in supernet.used_parameters(cell) if name.startswith("stages.0")]
    ['stages.0.0.operations.0_3_nor_conv_1x1.1.weight', 'stages.0.0.operations.0_3_nor_conv_1x1.2.weight', \
'stages.0.0.operations.0_3_nor_conv_1x1.2.bias']
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        channels: int = 16,
        cells_per_stage: int = 5,
        space: Nas201Space | None = None,
        *,
        norm: Norm = "batch",
    ) -> None:
        super().__init__(image_shape, num_classes, channels, cells_per_stage, space or Nas201Space(), norm)
        widths = [channels, 2 * channels, 4 * channels]
        self.stem = nn.Sequential(
            nn.Conv2d(image_shape[0], channels, 3, padding=1, bias=False), normalization(norm, channels)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(_Cell(norm, width) for _ in range(cells_per_stage)) for width in widths
        )
        self.reductions = nn.ModuleList(_ResidualReduction(norm, width) for width in widths[:2])
        self.head_norm = normalization(norm, widths[2])
        self.classifier = nn.Linear(widths[2], num_classes)

    @staticmethod
    def num_parameters(
        image_shape: tuple[int, int, int], num_classes: int, channels: int = 16, cells_per_stage: int = 5
    ) -> int:
        """How many weights a supernet of these sizes has, without making it.

        Args:
            image_shape: (channels, height, width).
            num_classes: K.
            channels: C.
            cells_per_stage: N.

        >>> Nas201Supernet.num_parameters((3, 32, 32), 10)
        1699546
        """
        widths = (channels, 2 * channels, 4 * channels)
        cells = sum(cells_per_stage * len(NAS201_EDGES) * (10 * width**2 + 4 * width) for width in widths)
        reductions = sum(18 * width**2 + 36 * width**2 + 8 * width + 2 * width**2 for width in widths[:2])
        stem = 9 * image_shape[0] * channels + 2 * channels
        return stem + cells + reductions + 2 * widths[2] + (widths[2] + 1) * num_classes

    @staticmethod
    def memory_bytes(
        image_shape: tuple[int, int, int],
        num_classes: int,
        channels: int = 16,
        cells_per_stage: int = 5,
        *,
        batch_size: int = 64,
        copies: int = 4,
    ) -> int:
        """About how much memory training takes at most, in float32: `copies` of the weights, and a batch's activations.

        Args:
            image_shape: (channels, height, width).
            num_classes: K.
            channels: C.
            cells_per_stage: N.
            batch_size: Images per batch.
            copies: Numbers kept per weight. 4: the weight, its gradient, its anchor and its importance.

        Returns:
            Bytes, for the largest architecture.
        """
        weights = copies * Nas201Supernet.num_parameters(image_shape, num_classes, channels, cells_per_stage)
        area = image_shape[1] * image_shape[2]
        # Six edges that keep ReLU, convolution, normalisation and sum; stage s has 2^s channels and 4^-s the area.
        per_stage = (4 * len(NAS201_EDGES) * cells_per_stage + 8) * channels
        activations = batch_size * per_stage * area * (1 + 1 / 2 + 1 / 4)
        return 4 * (weights + int(activations))

    def used_parameters(self, architecture: Nas201Architecture) -> dict[str, nn.Parameter]:
        """The weights that `architecture` computes with: of live edges only, see the class."""
        self.space.encode(architecture)
        live = live_edges(architecture)
        names = ["head_norm", "classifier"]
        if live:
            names += ["stem", "reductions"]
            names += [
                f"stages.{stage}.{cell}.operations.{_key(edge, operation)}"
                for stage in range(3)
                for cell in range(len(self._stage(stage)))
                for edge, operation in live.items()
                if operation in _KERNELS
            ]
        return self._named(names)

    def _stage(self, stage: int) -> nn.ModuleList:
        return cast("nn.ModuleList", self.stages[stage])

    def forward(self, images: Tensor, architecture: Nas201Architecture, edge_weights: Tensor | None = None) -> Tensor:
        """The logits of each image, as `ImageSupernet.forward`; its errors, too.

        Args:
            images: (B, channels, height, width), as `image_shape`.
            architecture: A member of the space.
            edge_weights: (6,), multiplied to the outputs of the edges, in the order of `NAS201_EDGES` and the same in
                every cell, so that a loss has a gradient with respect to them; those of edges that are not computed
                have gradient 0. If None nothing is multiplied.

        Returns:
            Logits (B, K).

        Raises:
            InputError: With the errors of `ImageSupernet.forward`, or if `edge_weights` has another shape.
        """
        self._check(images, architecture)
        if edge_weights is None:
            return self._logits(images, architecture)
        if edge_weights.shape != (len(NAS201_EDGES),):
            raise InputError(
                f"Expected edge_weights of shape ({len(NAS201_EDGES)},), but got {tuple(edge_weights.shape)}. Give one "
                "per edge of NAS201_EDGES."
            )
        return self._logits(images, architecture, dict(zip(NAS201_EDGES, edge_weights, strict=True)))

    def _logits(
        self,
        images: Tensor,
        architecture: Nas201Architecture,
        edge_weights: dict[tuple[int, int], Tensor] | None = None,
    ) -> Tensor:
        live = live_edges(architecture)
        if live:
            x = self.stem(images)
            for stage in range(3):
                if stage > 0:
                    x = self.reductions[stage - 1](x)
                for cell in self._stage(stage):
                    x = cell(x, live, edge_weights)
        else:
            height, width = (-(-size // 4) for size in self.image_shape[1:])
            x = images.new_zeros(len(images), self.classifier.in_features, height, width)
        x = F.relu(self.head_norm(x)).mean((2, 3))
        return cast("Tensor", self.classifier(x))
