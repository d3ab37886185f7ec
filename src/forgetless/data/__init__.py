"""Images and text, in named splits that are the same in every run."""

from forgetless.data.images import ImageData, ImageSplit, load_images, random_crop_and_flip
from forgetless.data.text import TextData, load_text

__all__ = ["ImageData", "ImageSplit", "TextData", "load_images", "load_text", "random_crop_and_flip"]
