"""Checkpoint files: a `torch.save` archive whose comment is the SHA-256 of everything before it.

The archive stays one that `torch.load` reads. Its own checksums are not checked by PyTorch, so that a flipped bit would
be another state in silence.
"""

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from forgetless.runs.files import replacing

_COMMENT_LENGTH = hashlib.sha256().digest_size * 2  # hexadecimal digits
_LENGTH_FIELD = 2  # bytes, the last of a zip archive without a comment: how long the comment is


def save_state(path: Path, state: Mapping[str, Any], *, before: Callable[[], object] = lambda: None) -> None:
    """Replace a checkpoint file in one step.

    Args:
        path: The file.
        state: Tensors, numbers, strings, lists and dicts of them.
        before: Called when the new state is safe on the disk and the file is still the old one.

    Raises:
        OSError: If it cannot be written; the old file is then as it was.
    """
    import torch

    try:
        with replacing(path, before=before) as stream:
            torch.save(dict(state), stream)
            _add_comment(stream)
    except RuntimeError as error:
        # PyTorch's writer fails a second time, in words of its own, while it cleans up after a failed write.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError):
                raise cause from error
            cause = cause.__context__
        raise


def _add_comment(stream: IO[bytes]) -> None:
    """Write the length of the comment into the archive, then the SHA-256 of the archive as the comment."""
    stream.seek(-_LENGTH_FIELD, os.SEEK_END)
    stream.write(_COMMENT_LENGTH.to_bytes(_LENGTH_FIELD, "little"))
    stream.seek(0)
    digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    stream.seek(0, os.SEEK_END)
    stream.write(digest.encode())


def load_state(path: Path, otherwise: str) -> dict[str, Any] | None:
    """A stored state; None if there is none, or it is damaged: a warning says so, and what is done `otherwise`.

    Args:
        path: The file.
        otherwise: Such as `going on from the one before`.
    """
    if not path.exists():
        return None
    import torch

    try:
        if (reason := _damage(path)) is None:
            state = torch.load(path, weights_only=True)
            if isinstance(state, dict):
                return state
            reason = "it holds no state"
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    warnings.warn(f"{path} is damaged ({reason}); {otherwise}.", stacklevel=3)
    return None


def _damage(path: Path) -> str | None:
    """Why a file is not what `save_state` wrote; None if it is."""
    if not path.is_file():
        return "it is no file"
    size = path.stat().st_size - _COMMENT_LENGTH
    if size < 0:
        return "it is cut short"
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        left = size
        while left and (part := stream.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
        comment = stream.read()
    return None if comment == digest.hexdigest().encode() else "its content is not what was written"
