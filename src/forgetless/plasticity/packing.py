"""Many small tensors as parts of a few flat ones, so that an operation on all costs what one on a large tensor does."""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

# Above so many elements the arithmetic takes longer than the call.
_MOST_ELEMENTS = 4096
# Below so many tensors, copying them in and out saves nothing.
_FEWEST_TENSORS = 64


class Packing:
    """Which tensors of a list become parts of a flat one.

    On the CPU, those of at most 4,096 elements, where 64 or more have the same type. The others stay as they are: a
    GPU runs an operation on many tensors in a few launches already.

    Args:
        tensors: The list; only types, shapes and devices matter.
        any_packed: False leaves all as they are.
    """

    def __init__(self, tensors: Sequence[Tensor], *, any_packed: bool = True) -> None:
        kinds: dict[torch.dtype, list[int]] = {}
        for i, tensor in enumerate(tensors if any_packed else ()):
            is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
            if is_plain and tensor.device.type == "cpu" and tensor.numel() <= _MOST_ELEMENTS:
                kinds.setdefault(tensor.dtype, []).append(i)
        self.blocks = [places for places in kinds.values() if len(places) >= _FEWEST_TENSORS]
        packed = {i for places in self.blocks for i in places}
        self.loose = [i for i in range(len(tensors)) if i not in packed]


class Packed:
    """Space for the tensors of a packing, to be filled again and again; no gradients flow through it.

    Args:
        packing: Which of the tensors are parts of a flat one.
        tensors: Of the shapes and types that will be put in.
        dtype: Of the flat ones, from that of the tensors; the same if None.

    >>> sources = [torch.full((2,), float(i)) for i in range(100)]
    >>> packed = Packed(Packing(sources), sources)
    >>> (flat,) = packed.load(sources)
    >>> flat.shape, flat[-1].item()
    (torch.Size([200]), 99.0)
    >>> packed.store(sources[::-1])
    >>> sources[0][0].item()
    99.0
    """

    def __init__(
        self, packing: Packing, tensors: Sequence[Tensor], dtype: Callable[[torch.dtype], torch.dtype] | None = None
    ) -> None:
        self._packing = packing
        self._sizes = [[tensors[i].numel() for i in places] for places in packing.blocks]
        types = [reduce(torch.promote_types, (tensors[i].dtype for i in places)) for places in packing.blocks]
        self._flat = [
            torch.empty(sum(sizes), dtype=type_ if dtype is None else dtype(type_))
            for sizes, type_ in zip(self._sizes, types, strict=True)
        ]
        self._parts = [
            [part.view(tensors[i].shape) for i, part in zip(places, torch.split(flat, sizes), strict=True)]
            for places, flat, sizes in zip(packing.blocks, self._flat, self._sizes, strict=True)
        ]

    @property
    def loose(self) -> list[int]:
        """Which of the tensors are not packed."""
        return self._packing.loose

    def load(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The flat tensors with these values, then those that are not packed, as they are.

        Args:
            tensors: In the order of the packing.
        """
        for places, parts in zip(self._packing.blocks, self._parts, strict=True):
            torch._foreach_copy_(parts, [tensors[i] for i in places])
        return [*self._flat, *(tensors[i] for i in self._packing.loose)]

    def store(self, tensors: Sequence[Tensor]) -> None:
        """Copy the flat values back, into the tensors that are packed.

        Args:
            tensors: In the order of the packing. Changed in place.
        """
        for places, parts in zip(self._packing.blocks, self._parts, strict=True):
            torch._foreach_copy_([tensors[i] for i in places], parts)

    def spread(self, numbers: Sequence[float | Tensor]) -> list[float | Tensor]:
        """One number per tensor as one per tensor that `load` returns, or a flat one where its parts' numbers differ.

        Args:
            numbers: In the order of the packing.
        """
        spread: list[float | Tensor] = []
        for places, flat, sizes in zip(self._packing.blocks, self._flat, self._sizes, strict=True):
            own = [numbers[i] for i in places]
            if len(set(own)) == 1:
                spread.append(own[0])
            else:
                spread.append(torch.tensor(own, dtype=flat.dtype).repeat_interleave(torch.tensor(sizes)))
        return spread + [numbers[i] for i in self._packing.loose]
