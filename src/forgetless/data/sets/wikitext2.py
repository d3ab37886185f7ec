"""WikiText-2, found in a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forgetless.data.named import TEXT_DATA

if TYPE_CHECKING:
    from forgetless.data.text import TextData


@TEXT_DATA.named("wikitext2")
def load(data_dir: str | Path | None, num_words: int | None) -> TextData:
    """See `forgetless.data.load_text`."""
    from forgetless.data.text import WIKITEXT2_FILES, load_files

    return load_files("WikiText-2", WIKITEXT2_FILES, data_dir, num_words)
