"""Images, text and graphs, in named splits that are the same in every run."""

from typing import TYPE_CHECKING

from forgetless.data.named import GRAPH_DATA, IMAGE_DATA, TEXT_DATA
from forgetless.lazy import lazily

if TYPE_CHECKING:
    from forgetless.data.graphs import GraphData, load_graph
    from forgetless.data.images import ImageData, ImageSplit, load_images, random_crop_and_flip
    from forgetless.data.text import TextData, load_text

__all__ = [
    "GRAPH_DATA",
    "IMAGE_DATA",
    "TEXT_DATA",
    "GraphData",
    "ImageData",
    "ImageSplit",
    "TextData",
    "load_graph",
    "load_images",
    "load_text",
    "random_crop_and_flip",
]

__getattr__ = lazily(
    __name__,
    {
        "GraphData": "graphs",
        "load_graph": "graphs",
        "ImageData": "images",
        "ImageSplit": "images",
        "load_images": "images",
        "random_crop_and_flip": "images",
        "TextData": "text",
        "load_text": "text",
    },
)
