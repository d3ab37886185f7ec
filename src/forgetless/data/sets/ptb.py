"""The Penn Treebank, found in a local folder or downloaded once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forgetless.data.named import TEXT_DATA

if TYPE_CHECKING:
    from forgetless.data.text import TextData


@TEXT_DATA.named("ptb")
def load(data_dir: str | Path | None, num_words: int | None) -> TextData:
    """See `forgetless.data.load_text`."""
    from forgetless.data.text import PTB_FILES, load_files

    return load_files("Penn Treebank", PTB_FILES, data_dir, num_words)
