"""Where and in what type anchors and importances are held: to save memory, in fewer bits or outside of the device."""

import mmap
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from forgetless.plasticity.chunks import Chunk, is_dense
from forgetless.plasticity.metric import wide, wide_type

# Neighbours in memory that share the scale of their codes. Chunks start at multiples of it.
_NUM_SCALED = 1024
_MOST_CODE = 255
# An anchor of fewer elements stays in memory where the others are in files: each file takes whole pages.
_FEWEST_IN_FILE = 2**14


class Coded(NamedTuple):
    """Importances in 8 bits, F_i = scale · (code_i / 255)⁴, with one scale for each 1,024 neighbours in memory.

    The fourth root spreads the codes over ten decades: a linear code would make 0 of what is 500 times less than its
    largest neighbour, and the weight free. Only 0 becomes 0. A code is off by at most 1/2, so that F is off by 0.8 % at
    the scale itself, and by 25 % at 10⁻⁶ of it.

    Attributes:
        codes: 0 … 255, in the weight's shape, laid out in memory as the weight is.
        scales: The largest importance of each 1,024.
    """

    codes: Tensor
    scales: Tensor

    @classmethod
    def of(cls, importance: Tensor) -> "Coded":
        """Importances in 8 bits.

        Args:
            importance: F ≥ 0, dense in memory.
        """
        whole = _whole(importance)
        flat = wide(whole.of(importance))
        blocks = nn.functional.pad(flat, (0, -len(flat) % _NUM_SCALED)).view(-1, _NUM_SCALED)
        scales = blocks.amax(dim=1).to(torch.float32)
        roots = (blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).sqrt_().sqrt_()
        codes = (_MOST_CODE * roots).round_().clamp_(max=_MOST_CODE).masked_fill_((roots > 0) & (roots < 1 / 510), 1)
        held = torch.empty_like(importance, dtype=torch.uint8)
        whole.of(held).copy_(codes.flatten()[: len(flat)])
        return cls(held, scales)

    def part(self, chunk: Chunk, out: Tensor) -> Tensor:
        """The importances of a part of the weight.

        Args:
            chunk: The part.
            out: Filled with them, flat.
        """
        out.copy_(chunk.of(self.codes)).mul_(1 / _MOST_CODE).square_().square_()
        first, whole = chunk.start // _NUM_SCALED, len(out) // _NUM_SCALED
        scales = self.scales[first : first + -(-len(out) // _NUM_SCALED)]
        out[: whole * _NUM_SCALED].view(-1, _NUM_SCALED).mul_(scales[:whole, None])
        out[whole * _NUM_SCALED :].mul_(scales[whole:])
        return out

    def dense(self) -> Tensor:
        """All importances, in float32."""
        importance = torch.empty_like(self.codes, dtype=torch.float32)
        whole = _whole(importance)
        self.part(whole, whole.of(importance))
        return importance

    def to(self, device: torch.device | str | None) -> "Coded":
        """The same on a device.

        Args:
            device: None leaves it.
        """
        return Coded(self.codes.to(device=device), self.scales.to(device=device))


Stored = Tensor | Coded
"""Importances as they are held."""


def dense(importance: Stored) -> Tensor:
    """Importances in at least float32.

    Args:
        importance: As it is held.
    """
    return importance.dense() if isinstance(importance, Coded) else wide(importance)


def saved(importance: Stored) -> Tensor:
    """A copy for a state, from which the same can be held again: 8 bits as float32.

    Args:
        importance: As it is held.
    """
    return importance.dense() if isinstance(importance, Coded) else importance.clone()


class Storage:
    """How anchors and importances are held.

    Args:
        importance_dtype: Of importances: None for at least float32, `torch.bfloat16`, or `torch.uint8` for `Coded`.
        anchor: None for the devices of the weights, "cpu", or a folder for temporary files that are mapped into memory.

    Raises:
        ValueError: If it is another type, or no folder.
    """

    def __init__(self, importance_dtype: torch.dtype | None = None, anchor: str | Path | None = None) -> None:
        if importance_dtype not in (None, torch.bfloat16, torch.uint8):
            raise ValueError(
                f"Expected importance_dtype to be torch.bfloat16, torch.uint8 or None, but got {importance_dtype}. "
                "Importances span many decades, which other short types do not hold."
            )
        if anchor not in (None, "cpu") and not Path(anchor or "").is_dir():
            raise ValueError(
                f'Expected anchor to be "cpu" or a folder for temporary files, but got {str(anchor)!r}. '
                "Make the folder first."
            )
        self.importance_dtype = importance_dtype
        self.anchor_place = anchor

    def check(self, parameters: Iterable[Tensor]) -> None:
        """Refuse weights whose importances or anchors cannot be held so.

        Args:
            parameters: The weights.

        Raises:
            ValueError: If a weight is complex or not a dense plain tensor, and importances are to take 8 bits; or it is
                no plain tensor, and anchors are to be elsewhere.
        """
        for parameter in parameters:
            if self.importance_dtype is torch.uint8 and (parameter.is_complex() or not is_dense(parameter)):
                raise ValueError(
                    "Expected real weights that are dense plain tensors for importances in 8 bits, but got "
                    f"{type(parameter).__name__} of {parameter.dtype}. Take importance_dtype=torch.bfloat16."
                )
            if self.anchor_place is not None and type(parameter) not in (Tensor, nn.Parameter):
                raise ValueError(
                    "Expected weights that are plain tensors for anchors elsewhere, but got "
                    f"{type(parameter).__name__}. Leave anchor out."
                )

    def importance(self, value: Tensor, parameter: Tensor) -> Stored:
        """Importances as they are held from now on.

        Args:
            value: F ≥ 0, in at least float32.
            parameter: The weight, as which it is laid out in memory.
        """
        if value.stride() != parameter.stride() and is_dense(parameter):
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if self.importance_dtype is torch.uint8:
            return Coded.of(value)
        return value if self.importance_dtype is None else value.to(self.importance_dtype)

    def moved(self, importance: Stored, device: torch.device | str | None, dtype: torch.dtype | None) -> Stored:
        """Held importances where a weight has gone.

        Args:
            importance: As it is held.
            device: Of the weight; None leaves it.
            dtype: Of the weight; importances that are held in the weights' own stay at least float32. None leaves it.
        """
        if isinstance(importance, Coded):
            return importance.to(device)
        own = None if dtype is None or self.importance_dtype is not None else wide_type(dtype)
        return importance.to(device=device, dtype=own)

    def anchor(self, value: Tensor) -> Tensor:
        """An anchor where it is held from now on.

        Args:
            value: θ̂, on the device of the weight, and nobody else's.
        """
        if self.anchor_place is None:
            return value
        if self.anchor_place == "cpu":
            # Only of pinned memory do copies to a GPU run beside what it computes.
            return torch.empty_like(value, device="cpu", pin_memory=value.is_cuda).copy_(value)
        if value.numel() < _FEWEST_IN_FILE:
            return value.cpu()
        return _in_file(value, Path(self.anchor_place))


def _in_file(value: Tensor, folder: Path) -> Tensor:
    """A copy in a file that has no name, and is gone with the tensor."""
    size = value.numel() * value.element_size()
    with tempfile.TemporaryFile(dir=folder, prefix="forgetless-") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is told of here, not by a signal later
        else:
            file.truncate(size)
        memory = mmap.mmap(file.fileno(), size)
    flat = torch.frombuffer(memory, dtype=value.dtype)
    held = flat.as_strided(value.shape, value.stride()) if is_dense(value) else flat.view(value.shape)
    return held.copy_(value)


def _whole(tensor: Tensor) -> Chunk:
    return Chunk(0, 0, tensor.numel(), tensor.shape, tensor.stride())
