"""Tensors taken in chunks of bounded size, so that what is computed on the way takes no memory by the model's."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Elements of the weights that are drawn at a time. On a CPU so few that what is computed of them stays in its cache, so
# many that a call costs nothing beside them; a GPU takes longer to start than to compute.
MOST_ELEMENTS = {"cpu": 2**19}
MOST_ELEMENTS_ELSEWHERE = 2**24


class Chunk(NamedTuple):
    """A part of one of several tensors, in the order in which it lies in memory.

    Attributes:
        tensor: Which of the tensors.
        start: Its first element.
        stop: After its last element; None if it is the whole of a tensor that is not one dense piece of memory.
        shape: Of the tensor.
        stride: Of the tensor.
    """

    tensor: int
    start: int
    stop: int | None
    shape: torch.Size
    stride: tuple[int, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """This part of a tensor in the same shape: a flat view, or a flat copy where it lies otherwise in memory.

        Args:
            tensor: In the shape of the one that was cut.
        """
        if self.stop is None:
            return tensor
        if tensor.stride() != self.stride:
            laid_out = torch.empty_strided(self.shape, self.stride, dtype=tensor.dtype, device=tensor.device)
            tensor = laid_out.copy_(tensor)
        return tensor.as_strided((self.stop - self.start,), (1,), tensor.storage_offset() + self.start)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.shape.numel() if self.stop is None else self.stop - self.start


def is_dense(tensor: Tensor) -> bool:
    """Whether it is a plain tensor whose elements are one piece of memory, each once, in whatever order of dimensions.

    Args:
        tensor: Any.
    """
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return False
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length != 1 and stride != expected:
            return tensor.numel() == 0
        expected *= length
    return True


def cut(tensors: Sequence[Tensor], most: int | None = None) -> Iterator[list[Chunk]]:
    """All of the tensors, in batches of chunks that have at most so many elements together.

    A tensor is cut only where it has more by itself. Its chunks start at multiples of `most`, so that the same elements
    are computed together in a processor's wide registers as without cutting, and every result is the same to the bit.

    Args:
        tensors: Those that are not dense are not cut: their batches may be larger. Those of a batch have one type and
            one device.
        most: Of elements, at least 1; what suits the device if None.

    >>> [[(c.tensor, c.start, c.stop) for c in batch] for batch in cut([torch.ones(2), torch.ones(3, 2)], most=4)]
    [[(0, 0, 2)], [(1, 0, 4)], [(1, 4, 6)]]
    """
    batch: list[Chunk] = []
    kind, room = None, 0
    for i, tensor in enumerate(tensors):
        total, limit = tensor.numel(), most or MOST_ELEMENTS.get(tensor.device.type, MOST_ELEMENTS_ELSEWHERE)
        length = min(limit, total) if is_dense(tensor) else total
        for start in range(0, total, max(length, 1)):
            stop = min(start + length, total)
            if batch and (stop - start > room or kind != (tensor.dtype, tensor.device)):
                yield batch
                batch = []
            if not batch:
                kind, room = (tensor.dtype, tensor.device), limit
            batch.append(Chunk(i, start, stop if is_dense(tensor) else None, tensor.shape, tensor.stride()))
            room -= stop - start
    if batch:
        yield batch


def pointers(tensors: Sequence[Tensor]) -> list[int]:
    """Where tensors lie in memory, and how large they are: the same as before if nobody put others in their place.

    Args:
        tensors: Of those that are none of memory, such as some subclasses, an empty list is returned.
    """
    try:
        return [*map(Tensor.data_ptr, tensors), *map(Tensor.numel, tensors)]
    except RuntimeError:
        return []


class Space:
    """Memory for what is computed of a batch, used again for the next; as much as the largest batch needs."""

    def __init__(self) -> None:
        self._flat: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def of(self, purpose: str, chunks: Sequence[Chunk], like: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Uninitialised tensors in the shapes and on the device of others.

        Args:
            purpose: Tensors for another purpose do not overlap.
            chunks: What they are for.
            like: What `Chunk.of` returns of the weights.
            dtype: Their type.
        """
        if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in like):
            return [torch.empty_like(tensor, dtype=dtype) for tensor in like]
        key, sizes = (purpose, dtype, like[0].device), [chunk.size for chunk in chunks]
        flat = self._flat.get(key)
        if flat is None or flat.numel() < sum(sizes):
            flat = self._flat[key] = torch.empty(sum(sizes), dtype=dtype, device=like[0].device)
        pieces: list[Tensor] = list(torch.split(flat[: sum(sizes)], sizes))
        return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def square_roots_into(outs: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """√ of each value, in space for it: on a CPU one by one, else in a launch for many.

    Args:
        outs: In the shapes of the values, in a type that holds as much.
        values: At least 0.
    """
    if all(out.is_cpu and out.dtype is value.dtype for out, value in zip(outs, values, strict=True)):
        return [torch.sqrt(value, out=out) for out, value in zip(outs, values, strict=True)]
    torch._foreach_copy_(list(outs), list(values))
    torch._foreach_sqrt_(list(outs))
    return list(outs)


def divided_into(outs: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """Each value by what is in the space for it; on a CPU in that space, else in a launch for many.

    Args:
        outs: What is divided by. Overwritten.
        values: Of the same types.
    """
    if all(out.is_cpu for out in outs):
        return [torch.div(value, out, out=out) for out, value in zip(outs, values, strict=True)]
    return list(torch._foreach_div(list(values), list(outs)))


def added_into(outs: Sequence[Tensor], values: Sequence[Tensor], more: Sequence[float | Tensor]) -> list[Tensor]:
    """Each value plus what is in the space for it, or plus a number.

    Args:
        outs: Space. Overwritten.
        values: Of the same types.
        more: Of each, the space itself, or a number.
    """
    held = [(out, value) for out, value, other in zip(outs, values, more, strict=True) if other is out]
    if held:
        torch._foreach_add_([out for out, _ in held], [value for _, value in held])
    for out, value, other in zip(outs, values, more, strict=True):
        if other is not out:
            torch.add(value, other, out=out)
    return list(outs)
