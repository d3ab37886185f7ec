"""Cora: 2,708 papers on machine learning that cite each other, in seven classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forgetless.data.named import GRAPH_DATA

if TYPE_CHECKING:
    from forgetless.data.graphs import GraphData


@GRAPH_DATA.named("cora")
def load(data_dir: str | Path | None) -> GraphData:
    """See `forgetless.data.planetoid.load_planetoid`."""
    from forgetless.data.planetoid import load_planetoid

    return load_planetoid("cora", data_dir)
