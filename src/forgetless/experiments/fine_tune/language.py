"""What fine-tuning asks of a language and of a model to start from, whoever makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class Language(Protocol):
    """How a model reads text.

    Attributes:
        num_tokens: V, the size of its vocabulary.
        first: The token that stands before each line; own samples begin with it.
    """

    @property
    def num_tokens(self) -> int: ...  # noqa: D102

    @property
    def first(self) -> int: ...  # noqa: D102

    def encode(self, lines: Sequence[str]) -> Tensor:
        """Lines as one sequence of tokens, (num_tokens,) in int64, the first token before each line.

        Args:
            lines: Of text.
        """

    def unknown(self, lines: Sequence[str]) -> float:
        """The share of a text that the vocabulary has nothing for, in [0, 1].

        Args:
            lines: Of text.
        """


class StartModel(Protocol):
    """The model that fine-tuning starts from.

    Attributes:
        language: How it reads.
        context: T, the most tokens that it reads at a time.
        is_trained: Whether it is trained already; otherwise it is pretrained on the old text.
        num_weights: About how many weights it has.
    """

    @property
    def language(self) -> Language: ...  # noqa: D102

    @property
    def context(self) -> int: ...  # noqa: D102

    @property
    def is_trained(self) -> bool: ...  # noqa: D102

    @property
    def num_weights(self) -> int: ...  # noqa: D102

    def make(self, seed: int) -> nn.Module:
        """A model that maps tokens (B, T) to logits (B, T, V), or to outputs that hold them as `logits`.

        Args:
            seed: Of the initial weights, where they are drawn. The global random state is left alone.
        """
