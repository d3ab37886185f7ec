"""The ENAS micro supernet: an image classifier stacked from two searched cells."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless.spaces._images import ImageSupernet, Norm, normalization, relu_conv_norm
from forgetless.spaces.cell import CellArchitecture, CellNode, CellSpace, cell_loose_ends

_KERNELS = {"sep_conv_3x3": 3, "sep_conv_5x5": 5}


class CellSupernet(ImageSupernet[CellArchitecture]):
    """A stack of normal and reduction cells for every architecture of the ENAS micro space.

    A 3×3 convolution to 3C channels, then three stages of N normal cells with C, 2C, 4C channels, with a reduction
    cell, which halves the image, before the second and third; ReLU, mean over positions, linear classifier (Pham et
    al. 2018, arXiv:1802.03268, section 2.4, and the code released with it).

    A cell brings the outputs of the two cells before it to its channels by 1×1 convolutions (to its size by a
    factorized reduction), computes its blocks, and makes its output from what no block reads, Σ_i conv1×1_i(ReLU(x_i))
    and one normalisation, with a weight of its own for each i: the concatenation and 1×1 convolution of the paper,
    whose input channels depend on the architecture. Every (cell, block, operand, input, operation) has its own
    weights. A separable convolution is applied twice. In a reduction cell, operations on the cell's inputs have
    stride 2, and identity is a factorized reduction there. (The released code reduces the inputs before the cell
    during the search, and within it, as here, in the final network. Here the network searched in is the final one.)

    Args:
        image_shape: (channels, height, width).
        num_classes: K.
        channels: C, of the first stage.
        cells_per_stage: N; the network has 3N + 2 cells.
        space: Number of blocks and operations.
        norm: `batch` or `group`, see `ImageSupernet`.

    Raises:
        InputError: If a size is below 1 or `norm` is unknown.

    >>> _ = torch.manual_seed(0)
    >>> space = CellSpace(1)
    >>> supernet = CellSupernet((1, 8, 8), num_classes=10, channels=4, cells_per_stage=1, space=space)
    >>> cell = space.parse("normal: identity(0)+sep_conv_3x3(1) reduction: max_pool_3x3(1)+max_pool_3x3(0)")
    >>> supernet(torch.zeros(2, 1, 8, 8), cell).shape
    torch.Size([2, 10])
    >>> len(supernet.used_parameters(cell)), len(list(supernet.parameters()))
    (76, 426)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        channels: int = 16,
        cells_per_stage: int = 2,
        space: CellSpace | None = None,
        *,
        norm: Norm = "batch",
    ) -> None:
        space = space or CellSpace()
        super().__init__(image_shape, num_classes, channels, cells_per_stage, space, norm)
        self.stem = nn.Sequential(
            nn.Conv2d(image_shape[0], 3 * channels, 3, padding=1, bias=False), normalization(norm, 3 * channels)
        )
        self.cells = nn.ModuleList(
            _Cell(norm, inputs, width, reduction, halve_first, space)
            for inputs, width, reduction, halve_first in _cell_sizes(channels, cells_per_stage)
        )
        self.classifier = nn.Linear(4 * channels, num_classes)

    @staticmethod
    def num_parameters(
        image_shape: tuple[int, int, int],
        num_classes: int,
        channels: int = 16,
        cells_per_stage: int = 2,
        space: CellSpace | None = None,
    ) -> int:
        """How many weights a supernet of these sizes has, without making it.

        Args:
            image_shape: (channels, height, width).
            num_classes: K.
            channels: C.
            cells_per_stage: N.
            space: Number of blocks and operations.

        >>> CellSupernet.num_parameters((3, 32, 32), 10)
        3759610
        """
        space = space or CellSpace()
        blocks = space.num_blocks
        operands = blocks * (blocks + 3)  # Σ_b 2 (b + 2)
        total = 3 * channels * (9 * image_shape[0] + 2) + (4 * channels + 1) * num_classes
        for inputs, width, reduction, _ in _cell_sizes(channels, cells_per_stage):
            separable = sum(
                2 * (_KERNELS[operation] ** 2 + width + 2) * width
                for operation in space.operations
                if operation in _KERNELS
            )
            total += sum(width * (source + 2) for source in inputs) + operands * separable
            total += (blocks + 2) * width**2 + 2 * width
            if reduction:
                identities = 4 * blocks if "identity" in space.operations else 0
                total += identities * (width + 2) * width + 2 * (2 * width)
        return total

    @staticmethod
    def memory_bytes(
        image_shape: tuple[int, int, int],
        num_classes: int,
        channels: int = 16,
        cells_per_stage: int = 2,
        space: CellSpace | None = None,
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
            space: Number of blocks and operations.
            batch_size: Images per batch.
            copies: Numbers kept per weight. 4: the weight, its gradient, its anchor and its importance.

        Returns:
            Bytes, for the largest architecture.
        """
        space = space or CellSpace()
        weights = copies * CellSupernet.num_parameters(image_shape, num_classes, channels, cells_per_stage, space)
        # Two separable convolutions per block keep 2 (ReLU, depthwise, pointwise, normalised) each.
        numbers = 6.0 * channels
        stage = 0
        for _, width, reduction, _ in _cell_sizes(channels, cells_per_stage):
            numbers += width * (17 * space.num_blocks + 10) / 4**stage
            stage += reduction
        return 4 * (weights + int(batch_size * image_shape[1] * image_shape[2] * numbers))

    def used_parameters(self, architecture: CellArchitecture) -> dict[str, nn.Parameter]:
        """The weights that `architecture` computes with, by their names in `named_parameters()`.

        Args:
            architecture: A member of the space.

        Raises:
            InputError: If it is not a member.
        """
        self.space.encode(architecture)
        names = ["stem", "classifier"]
        for number, cell in enumerate(self.cells):
            names += [f"cells.{number}.{name}" for name in cast("_Cell", cell).used_modules(architecture)]
        return self._named(names)

    def _logits(self, images: Tensor, architecture: CellArchitecture) -> Tensor:
        before_last = last = self.stem(images)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last, architecture)
        return cast("Tensor", self.classifier(F.relu(last).mean((2, 3))))


def _cell_sizes(channels: int, cells_per_stage: int) -> Iterator[tuple[tuple[int, int], int, bool, bool]]:
    """For each cell: the channels of its two inputs, its own, whether it reduces, whether input 0 is twice its size."""
    inputs = (3 * channels, 3 * channels)
    halve_first = False
    for stage in range(3):
        width = channels * 2**stage
        for place in range(cells_per_stage + (stage > 0)):
            reduction = stage > 0 and place == 0
            yield inputs, width, reduction, halve_first
            inputs = (inputs[1], width)
            halve_first = reduction


class _Cell(nn.Module):
    """The weights of one cell; operations have the key "{block}_{operand}_{input}_{operation}"."""

    def __init__(
        self,
        norm: Norm,
        inputs: tuple[int, int],
        channels: int,
        reduction: bool,
        halve_first: bool,
        space: CellSpace,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.first = (
            _FactorizedReduction(norm, inputs[0], channels)
            if halve_first
            else relu_conv_norm(norm, inputs[0], channels, 1)
        )
        self.second = relu_conv_norm(norm, inputs[1], channels, 1)
        self.operations = nn.ModuleDict()
        for block in range(space.num_blocks):
            for operand in (0, 1):
                for source in range(block + 2):
                    for operation in space.operations:
                        stride = self._stride(source)
                        layer: nn.Module
                        if operation in _KERNELS:
                            layer = _separable(norm, channels, _KERNELS[operation], stride)
                        elif operation == "identity" and stride == 2:
                            layer = _FactorizedReduction(norm, channels, channels)
                        else:
                            continue  # no weights
                        self.operations[_key(block, operand, source, operation)] = layer
        self.ends = nn.ModuleList(
            _FactorizedReduction(norm, channels, channels)
            if self._stride(source) == 2
            else nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False))
            for source in range(space.num_blocks + 2)
        )
        self.norm = normalization(norm, channels)

    def used_modules(self, architecture: CellArchitecture) -> list[str]:
        blocks = self._blocks(architecture)
        keys = [
            _key(index, operand, source, operation)
            for index, block in enumerate(blocks)
            for operand, (source, operation) in enumerate(zip(block.inputs, block.operations, strict=True))
        ]
        names = [f"operations.{key}" for key in keys if key in self.operations]
        return ["first", "second", "norm", *names, *(f"ends.{source}" for source in cell_loose_ends(blocks))]

    def forward(self, before_last: Tensor, last: Tensor, architecture: CellArchitecture) -> Tensor:
        blocks = self._blocks(architecture)
        values: list[Tensor] = [self.first(before_last), self.second(last)]
        for index, block in enumerate(blocks):
            left, right = (
                self._edge_output(_key(index, operand, source, operation), operation, source, values[source])
                for operand, (source, operation) in enumerate(zip(block.inputs, block.operations, strict=True))
            )
            values.append(left + right)
        ends = [cast("Tensor", self.ends[source](values[source])) for source in cell_loose_ends(blocks)]
        return cast("Tensor", self.norm(sum(ends[1:], ends[0])))

    def _edge_output(self, key: str, operation: str, source: int, x: Tensor) -> Tensor:
        if key in self.operations:
            return cast("Tensor", self.operations[key](x))
        if operation == "identity":
            return x
        if operation == "max_pool_3x3":
            return F.max_pool2d(x, 3, self._stride(source), 1)
        return F.avg_pool2d(x, 3, self._stride(source), 1, count_include_pad=False)

    def _stride(self, source: int) -> int:
        return 2 if self.reduction and source < 2 else 1

    def _blocks(self, architecture: CellArchitecture) -> Sequence[CellNode]:
        return architecture.reduction if self.reduction else architecture.normal


def _key(block: int, operand: int, source: int, operation: str) -> str:
    return f"{block}_{operand}_{source}_{operation}"


def _separable(norm: Norm, channels: int, kernel: int, stride: int) -> nn.Sequential:
    """Twice ReLU, depthwise convolution, 1×1 convolution, normalisation; the first with the stride."""
    layers: list[nn.Module] = []
    for step in (stride, 1):
        layers += [
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, step, kernel // 2, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            normalization(norm, channels),
        ]
    return nn.Sequential(*layers)


class _FactorizedReduction(nn.Module):
    """Halves the size without losing pixels' corners: two 1×1 convolutions of stride 2, the second a pixel further.

    Size n becomes ⌈n/2⌉.
    """

    def __init__(self, norm: Norm, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.even = nn.Conv2d(in_channels, out_channels - half, 1, 2, bias=False)
        self.odd = nn.Conv2d(in_channels, half, 1, 2, bias=False) if half else None
        self.norm = normalization(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        halves = [self.even(x)]
        if self.odd is not None:
            halves.append(self.odd(F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]))
        return cast("Tensor", self.norm(torch.cat(halves, 1)))
