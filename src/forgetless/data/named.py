"""The data sets that have a name: each is a file of `forgetless.data.sets` and registers its own loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from forgetless.registry import Registry

if TYPE_CHECKING:
    from forgetless.data.graphs import GraphData
    from forgetless.data.splits import ImageData
    from forgetless.data.text import TextData

IMAGE_DATA: Registry[Callable[[str | Path | None], ImageData]] = Registry("data set of images", "forgetless.data.sets")
"""Loaders of images, by name: the folder that has the data, or None → the four splits."""

TEXT_DATA: Registry[Callable[[str | Path | None, int | None], TextData]] = Registry(
    "data set of text", "forgetless.data.sets"
)
"""Loaders of text, by name: the folder that has the data, or None, and the size of the vocabulary → the four splits."""

GRAPH_DATA: Registry[Callable[[str | Path | None], GraphData]] = Registry("data set of graphs", "forgetless.data.sets")
"""Loaders of graphs, by name: the folder that has the data, or None → a graph whose nodes are in four splits."""
