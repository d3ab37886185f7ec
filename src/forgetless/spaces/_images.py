"""What the convolutional supernets have in common."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from forgetless.errors import InputError, expect_one_of
from forgetless.spaces.base import A, Architecture, Space
from forgetless.supernet import Supernet

Norm = Literal["group", "batch"]

_SMALLEST_GROUP = 4
_MOST_GROUPS = 8


class ImageSupernet(Supernet[A]):
    """A convolutional classifier for every architecture of a space.

    **Normalisation.** Running statistics of batch normalisation are a trap in weight sharing: every architecture that
    is trained moves them, so in eval mode they are a mixture that fits none, and a model "forgets" because another
    one overwrote statistics that no loss protects. Using the batch's own statistics in eval mode instead (as the
    released ENAS code does) makes an image's prediction depend on its neighbours. Two ways out:

    - `norm="batch"`, the default: batch normalisation, as the published networks have it. Training uses the batch's
      statistics and stores none. Before an architecture is evaluated, `recalibrate` computes its statistics at the
      present weights from training images (Guo et al. 2020, arXiv:1904.00420); eval mode refuses an
      architecture without them. What is then measured depends on the shared weights alone.
    - `norm="group"`: group normalisation (Wu and He 2018, arXiv:1803.08494). There are no statistics and nothing to
      recalibrate, training and eval mode compute the same function, but small images pay for it: on 8×8 digits, six
      random NAS-Bench-201 cells (C = 8, N = 1, 150 steps each) reach 77–96 % with it and 94–98 % with `batch`.

    Args:
        image_shape: (channels, height, width).
        num_classes: K.
        channels: C of the first stage; each of the two reductions doubles it.
        cells_per_stage: N, at least 1.
        space: Which architectures.
        norm: See above.

    Raises:
        InputError: If a size is below 1 or `norm` is unknown.
    """

    outside_cell: ClassVar[tuple[str, ...]] = ("stem", "classifier", "head_norm")
    inputs_at_a_time: ClassVar[int | None] = 250

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        channels: int,
        cells_per_stage: int,
        space: Space[A],
        norm: Norm,
    ) -> None:
        super().__init__()
        expect_one_of("norm", norm, get_args(Norm))
        sizes = {"num_classes": num_classes, "channels": channels, "cells_per_stage": cells_per_stage}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"Expected {name} to be at least 1, but got {size}. Choose a positive number.")
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise InputError(
                f"Expected image_shape as (channels, height, width), but got {tuple(image_shape)}. A grey image has "
                "one channel."
            )
        self.image_shape = tuple(image_shape)
        self.space = space
        self.norm = norm
        self._calibrated: Architecture | None = None

    @abstractmethod
    def _logits(self, images: Tensor, architecture: A) -> Tensor: ...

    def forward(self, images: Tensor, architecture: A) -> Tensor:
        """The logits of each image.

        Args:
            images: (B, channels, height, width), as `image_shape`.
            architecture: A member of the space.

        Returns:
            Logits (B, K).

        Raises:
            InputError: If the images have another shape, the architecture is not a member, or, with `norm="batch"`
                in eval mode, it was not recalibrated since the last training.
        """
        self._check(images, architecture)
        return self._logits(images, architecture)

    def _check(self, images: Tensor, architecture: A) -> None:
        """Refuse what `forward` cannot compute, with its errors."""
        self.space.encode(architecture)  # refuses strangers
        if tuple(images.shape[1:]) != self.image_shape:
            raise InputError(
                f"Expected images of shape (batch, {', '.join(map(str, self.image_shape))}), but got "
                f"{tuple(images.shape)}. Make the supernet for the data's image_shape."
            )
        if self.norm == "batch" and not self.training and self._calibrated != architecture:
            raise InputError(
                f"Expected batch statistics of '{architecture}' in eval mode, but got none of it since the last "
                "training. Call recalibrate(architecture, batches) first, or use norm='group'."
            )

    @torch.no_grad()
    def recalibrate(self, architecture: A, batches: Iterable[Tensor]) -> None:
        """Set the batch statistics for eval mode: means over `batches`, of this architecture at the present weights.

        Nothing to do, and nothing done, with `norm="group"`.

        Args:
            architecture: The one that will be evaluated.
            batches: Training images, each (B, channels, height, width). A few hundred images are enough.

        Raises:
            InputError: If there are no batches, or with the errors of `forward`.
        """
        if self.norm == "group":
            return
        layers = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        was_training = self.training
        self.train()
        num_batches = 0
        for layer in layers:
            layer.track_running_stats = True  # first, because a layer that tracks nothing resets nothing
            layer.reset_running_stats()
        try:
            for images in batches:
                self(images, architecture)
                num_batches += 1
        finally:
            for layer in layers:
                layer.track_running_stats = False
            self.train(was_training)
        if num_batches == 0:
            raise InputError("Expected at least one batch to recalibrate from, but got none. Pass a fresh iterator.")
        self._calibrated = architecture

    def train(self, mode: bool = True) -> Self:
        """Switch between training and eval mode; training makes batch statistics out of date.

        Args:
            mode: True for training mode.
        """
        if mode:
            self._calibrated = None
        return super().train(mode)

    def _named(self, modules: Iterable[str]) -> dict[str, nn.Parameter]:
        """The parameters of some modules, by name."""
        return {
            name: weight
            for module in modules
            for name, weight in self.get_submodule(module).named_parameters(prefix=module)
        }


def normalization(kind: Norm, channels: int) -> nn.Module:
    """A normalisation layer with its own scale and shift.

    Args:
        kind: `group`: groups of at least 4 channels, at most 8 groups. `batch`: see `ImageSupernet`.
        channels: C.
    """
    if kind == "group":
        most = max(1, min(_MOST_GROUPS, channels // _SMALLEST_GROUP))
        return nn.GroupNorm(max(groups for groups in range(1, most + 1) if channels % groups == 0), channels)
    layer = nn.BatchNorm2d(channels, momentum=None)  # None: the plain mean over recalibration batches
    # With the buffers there but not tracked, training mode leaves them alone and eval mode uses them.
    layer.track_running_stats = False
    return layer


def relu_conv_norm(norm: Norm, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """ReLU, convolution and normalisation; the size becomes ⌈size/stride⌉.

    Args:
        norm: The kind of normalisation.
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        kernel: 1, 3 or another odd size.
        stride: 1 or 2.
    """
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        normalization(norm, out_channels),
    )
