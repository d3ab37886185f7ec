"""Images and text, in named splits that are the same in every run."""

from typing import TYPE_CHECKING

from forgetless.data.named import IMAGE_DATA, TEXT_DATA
from forgetless.lazy import lazily

if TYPE_CHECKING:
    from forgetless.data.images import ImageData, ImageSplit, load_images, random_crop_and_flip
    from forgetless.data.text import TextData, load_text

__all__ = [
    "IMAGE_DATA",
    "TEXT_DATA",
    "ImageData",
    "ImageSplit",
    "TextData",
    "load_images",
    "load_text",
    "random_crop_and_flip",
]

__getattr__ = lazily(
    __name__,
    {
        "ImageData": "images",
        "ImageSplit": "images",
        "load_images": "images",
        "random_crop_and_flip": "images",
        "TextData": "text",
        "load_text": "text",
    },
)
