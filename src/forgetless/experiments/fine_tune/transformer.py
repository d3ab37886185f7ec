"""A small causal Transformer: the language model that is pretrained here, where none is given."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless.experiments.fine_tune.text import WordPieces


class KeysAndValues:
    """Keys and values of the tokens that a block has read, (B, heads, t, width / heads) each."""

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Tensor] | None = None

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the tokens that follow, after those kept so far; all are kept.

        Args:
            keys: Of the tokens that follow.
            values: Of the same.
        """
        if self._kept is not None:
            keys, values = torch.cat([self._kept[0], keys], -2), torch.cat([self._kept[1], values], -2)
        self._kept = keys, values
        return self._kept


class Block(nn.Module):
    """Causal self-attention, then a feed-forward layer; each normalises what it reads and adds to it.

    Args:
        width: Of the stream.
        heads: Of attention; they divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.norm_feed_forward = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, width)

    def forward(self, stream: Tensor, past: KeysAndValues | None = None) -> Tensor:
        """The stream (B, T, width) after this block.

        Args:
            stream: Of T tokens.
            past: What it has read of the tokens before them, and where theirs are kept; None: there are none before.
        """
        length, width = stream.shape[-2:]
        parts = self.queries_keys_values(self.norm_attention(stream))
        # (B, T, 3 · width) → three of (B, heads, T, width / heads)
        queries, keys, values = (
            part.reshape(-1, length, self.heads, width // self.heads).transpose(1, 2) for part in parts.chunk(3, -1)
        )
        if past is None:
            seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        else:
            keys, values = past.extended(keys, values)
            num_keys = keys.shape[-2]
            is_seen = torch.ones(length, num_keys, dtype=torch.bool, device=keys.device).tril(num_keys - length)
            seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=is_seen)
        stream = stream + self.mixed(seen.transpose(1, 2).reshape(stream.shape))
        return stream + self.output(F.gelu(self.hidden(self.norm_feed_forward(stream))))  # type: ignore[no-any-return]


class SmallTransformer(nn.Module):
    """A causal Transformer with learnt positions, normalisation before each layer and tied embeddings.

    Weights are drawn as GPT-2's: N(0, 0.02²), the last layer of each branch divided by √(2 · layers), biases zero.

    Args:
        num_tokens: V, the size of the vocabulary.
        width: Of the stream; a multiple of `heads`.
        layers: Blocks.
        heads: Of attention.
        context: T, the most tokens that it reads.

    Attributes:
        context: T.

    Source: Radford et al. 2019, Language models are unsupervised multitask learners; section 2.3.

    >>> _ = torch.manual_seed(0)
    >>> SmallTransformer(50, 16, 2, 4, 8)(torch.zeros(3, 8, dtype=torch.long)).shape
    torch.Size([3, 8, 50])
    """

    def __init__(self, num_tokens: int, width: int = 96, layers: int = 4, heads: int = 4, context: int = 32) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(num_tokens, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_tokens, bias=False)
        self.head.weight = self.tokens.weight
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                last = name.endswith(("mixed.weight", "output.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each of tokens (B, T)."""
        # One position for each token, so that per-example gradients find examples along dim 0.
        places = torch.arange(tokens.shape[-1], device=tokens.device).expand(tokens.shape)
        stream = self.tokens(tokens) + self.positions(places)
        for block in self.blocks:
            stream = block(stream)
        logits: Tensor = self.head(self.norm(stream))
        return logits

    def next_token_reader(self) -> Reader:
        """What reads a text as it is written; see `forgetless.sample_text`."""
        return Reader(self)


class Reader:
    """Logits of the next token of texts that grow, each token read once: keys and values of those before it are kept.

    A window of T tokens that moves on is read anew: each of its tokens has another position than before.

    Args:
        model: Which reads.
    """

    def __init__(self, model: SmallTransformer) -> None:
        self._model = model
        self._begin()

    def _begin(self) -> None:
        self._num_read = 0
        self._pasts = [KeysAndValues() for _ in self._model.blocks]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) of the token after the last of tokens (B, t).

        Args:
            tokens: Those of the last call, with at least one more; or else others, which are read from their beginning.
        """
        length = tokens.shape[-1]
        if length <= self._num_read:
            self._begin()
        model, start = self._model, self._num_read
        stream = model.tokens(tokens[:, start:]) + model.positions.weight[start:length]
        for block, past in zip(model.blocks, self._pasts, strict=True):
            stream = block(stream, past)
        self._num_read = length
        logits: Tensor = model.head(model.norm(stream[:, -1]))
        return logits


class FreshTransformer:
    """A small Transformer over word pieces of the old text, yet to be pretrained: a `StartModel`.

    Args:
        lines: The old training text.
        num_tokens: V.
        width: Of the stream.
        layers: Blocks.
        heads: Of attention.
        context: T.

    Attributes:
        language: Word pieces.
        context: T.
        is_trained: It is not.
        num_weights: Without biases and norms.
    """

    is_trained = False

    def __init__(
        self, lines: Sequence[str], *, num_tokens: int, width: int, layers: int, heads: int, context: int
    ) -> None:
        self.language = WordPieces(lines, num_tokens)
        self.context = context
        self._sizes = (width, layers, heads, context)
        self.num_weights = 12 * layers * width * width + width * (self.language.num_tokens + context)

    def make(self, seed: int) -> SmallTransformer:
        """A model with weights drawn.

        Args:
            seed: Of the draw; the global random state is left alone.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SmallTransformer(self.language.num_tokens, *self._sizes)
