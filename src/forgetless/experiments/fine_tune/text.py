"""Text for fine-tuning: lines in four disjoint splits, word pieces, and batches of windows."""

from __future__ import annotations

import io
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless.data.files import kind_of
from forgetless.data.named import TEXT_DATA
from forgetless.data.sources import existing_path
from forgetless.data.text import END_OF_LINE, FOLDER_FILES, file_lines, kjv_verses, load_text
from forgetless.errors import InputError, printable
from forgetless.tasks.base import evaluating, sha256_of

if TYPE_CHECKING:
    from forgetless.experiments.fine_tune.language import Language
    from forgetless.tasks.base import Batch

TESTAMENTS = {"kjv-ot": ("Old Testament", range(1, 40)), "kjv-nt": ("New Testament", range(40, 67))}
"""Parts of the King James text by name: what they are called, and their books."""

SPLITS = ("train", "importance", "validation", "test")

MOST_UNKNOWN = 0.5
"""The share of a text that may be outside a model's vocabulary."""

EVALUATION_WINDOWS = 32
"""Windows that go through a model at a time where nothing is trained."""

_UNKNOWN, _FIRST = 0, 1  # tokens of word pieces that are no text


@dataclass(frozen=True)
class Lines:
    """A text in four splits that share no line.

    Attributes:
        name: What tables and pictures call it.
        splits: `train` for weights; `importance`, which is what protections may see of the past; `validation` for
            choosing; `test` for reported numbers and nothing else.
    """

    name: str
    splits: Mapping[str, Sequence[str]]


def load_lines(name: str, data_dir: str | Path | None = None) -> Lines:
    """Load a text as lines in four disjoint splits.

    `kjv-ot` and `kjv-nt` are the Old and the New Testament of the embedded King James text, as they are printed; their
    splits are whole chapters, drawn once. Others are those of `forgetless.data.load_text`, words joined by spaces.

    Args:
        name: `kjv-ot`, `kjv-nt`, a name that `forgetless.data.load_text` knows, or the path of a folder with
            `train.txt`, `valid.txt` (or `validation.txt`) and `test.txt`.
        data_dir: The folder that has the named data set.

    Returns:
        The four splits. Every call gives the same lines in the same order.

    Raises:
        InputError: If the name is unknown, or files are missing, not the published ones or not text.

    >>> [len(load_lines("kjv-nt").splits[split]) for split in ("train", "importance", "validation", "test")]
    [6697, 412, 449, 399]
    """
    if name in TESTAMENTS:
        title, books = TESTAMENTS[name]
        # Brackets are around words that the translators added.
        drop = {ord("["): None, ord("]"): None}
        splits = {split: [v.translate(drop).strip() for v in verses] for split, verses in kjv_verses(books).items()}
        return Lines(title, splits)
    if name in TEXT_DATA:
        data = load_text(name, data_dir)
        words = data.vocabulary
        texts = {split: " ".join(words[token] for token in getattr(data, split).tolist()) for split in SPLITS}
        return Lines(data.name, {s: [line.strip() for line in t.split(END_OF_LINE)[:-1]] for s, t in texts.items()})
    known = [*TESTAMENTS, *TEXT_DATA]
    path = existing_path(name, "text (or the path of a folder of train, valid and test .txt)", known)
    if kind_of(path) != "folder":
        raise InputError(
            f"Expected {path} to be a folder with train.txt, valid.txt and test.txt, but got a file. Name the folder."
        )
    found = file_lines(FOLDER_FILES, path)
    return Lines(printable(path.resolve().name), {s: list(map(" ".join, lines)) for s, lines in found.items()})


class WordPieces:
    """Word pieces of a training text: the vocabulary of byte-pair encoding, by `sentencepiece`.

    Every printable ASCII character is a piece, so that any English text can be written in them. Token 0 is what has no
    piece, token 1 stands before each line.

    Args:
        lines: The training text.
        num_tokens: V, the size of the vocabulary, tokens 0 and 1 among them.

    Raises:
        InputError: If the text has too few different pieces for so many tokens, or too many characters for so few.

    Source: Sennrich et al. 2016 (arXiv:1508.07909); Kudo and Richardson 2018 (arXiv:1808.06226) for the library.
    """

    def __init__(self, lines: Sequence[str], num_tokens: int) -> None:
        import sentencepiece

        model = io.BytesIO()
        printable_ascii = string.digits + string.ascii_letters + string.punctuation
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type="bpe",
                vocab_size=num_tokens,
                character_coverage=1.0,
                required_chars=printable_ascii,
                unk_id=_UNKNOWN,
                bos_id=_FIRST,
                eos_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2].strip()  # after the place in the library's sources
            raise InputError(
                f"Expected {num_tokens} word pieces of the old training text, but got: {reason} Choose another "
                "num_tokens, or a longer text."
            ) from error
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        self.num_tokens: int = self._processor.vocab_size()
        self.first = _FIRST

    def encode(self, lines: Sequence[str]) -> Tensor:
        """Lines as one sequence of tokens, (num_tokens,) in int64, token 1 before each line.

        Args:
            lines: Of text.
        """
        encoded = self._processor.encode(list(lines), add_bos=True, num_threads=1)
        return torch.tensor(list(chain.from_iterable(encoded)), dtype=torch.int64)

    def unknown(self, lines: Sequence[str]) -> float:
        """The share of a text's characters, white space left out, that no piece has.

        Args:
            lines: Of text.
        """
        # Neighbouring characters without a piece become one unknown token, so that tokens cannot be counted.
        text = "".join("".join(line.split()) for line in lines)
        unknown = [char for char in set(text) if _UNKNOWN in self._processor.encode(char)]
        return sum(map(text.count, unknown)) / max(1, len(text))


class Windows:
    """A text as tokens, read in windows of T tokens that know nothing of each other.

    Args:
        lines: The text.
        language: How it is read.
        batch_size: B, windows per training batch.
        context: T, tokens per window.
        device: Where it is kept.

    Attributes:
        name: Of the text.
        batch_size: B.
        context: T.

    Raises:
        InputError: If a split is shorter than a window, or has nothing that the language knows.
    """

    def __init__(
        self, lines: Lines, language: Language, batch_size: int, context: int, device: torch.device | str = "cpu"
    ) -> None:
        self.name, self.batch_size, self.context = lines.name, batch_size, context
        unknown = language.unknown(lines.splits["train"])
        if unknown > MOST_UNKNOWN:
            raise InputError(
                f"Expected a text that shares its vocabulary with the model, but {100 * unknown:.0f} % of {lines.name} "
                "are unknown to it. Choose another text or a model of its language."
            )
        self._tokens = {split: language.encode(lines.splits[split]).to(device) for split in SPLITS}
        for split, tokens in self._tokens.items():
            needed = context + 1
            if len(tokens) < needed:
                raise InputError(
                    f"Expected at least {needed} tokens of {split} text for a context of {context}, but {lines.name} "
                    f"has {len(tokens)}. Use a longer text or a shorter context."
                )

    def digest(self) -> str:
        """SHA-256 of the tokens of all splits."""
        return sha256_of(self._tokens)

    def training_batches(self, num_batches: int, generator: torch.Generator) -> Iterator[Batch]:
        """Windows from places drawn at random.

        Args:
            num_batches: How many batches.
            generator: Draws the places; on the CPU.

        Yields:
            Tokens and the tokens after them, (B, T) each.
        """
        text = self._tokens["train"]
        steps = torch.arange(self.context + 1)
        for _ in range(num_batches):
            places = torch.randint(len(text) - self.context, (self.batch_size, 1), generator=generator)
            chunk = text[(places + steps).to(text.device)]
            yield chunk[:, :-1], chunk[:, 1:]

    def windows(self, split: str, most: int | None = None) -> Tensor:
        """Neighbouring windows of a split that share one token, (N, T + 1); the rest is dropped.

        Args:
            split: Its name.
            most: Only so many, evenly spread over the split; None: all.
        """
        tokens = self._tokens[split]
        found = tokens.unfold(0, self.context + 1, self.context)
        if most is None or len(found) <= most:
            return found
        return found[torch.arange(most, device=found.device) * len(found) // most]

    def error(self, model: nn.Module, split: str, most: int | None = None) -> float:
        """Cross entropy in nats per token over a split's windows, in eval mode.

        Args:
            model: Maps tokens (B, T) to logits.
            split: Its name.
            most: Only so many windows; None: all.
        """
        windows = self.windows(split, most)
        return mean_loss(model, windows[:, :-1], windows[:, 1:])


def next_token_loss(outputs: Any, targets: Tensor) -> Tensor:
    """Mean cross entropy in nats per token.

    Args:
        outputs: Logits (B, T, V), or what holds them as `logits`.
        targets: The next tokens (B, T).
    """
    return F.cross_entropy(logits_in(outputs).flatten(0, -2), targets.flatten())


def next_token_losses(outputs: Any, targets: Tensor) -> Tensor:
    """The cross entropy of each token in nats, (B, T).

    Args:
        outputs: Logits (B, T, V), or what holds them as `logits`.
        targets: The next tokens (B, T).
    """
    return F.cross_entropy(logits_in(outputs).transpose(1, -1), targets, reduction="none")


def mean_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Cross entropy in nats per token, in eval mode.

    Args:
        model: Maps tokens (B, T) to logits.
        inputs: Tokens (N, T).
        targets: The tokens after them, (N, T).
    """
    total = 0.0
    with evaluating(model):
        parts = zip(torch.split(inputs, EVALUATION_WINDOWS), torch.split(targets, EVALUATION_WINDOWS), strict=True)
        for some, after in parts:
            total += float(next_token_loss(model(some), after)) * len(some)
    return total / len(inputs)


def logits_in(outputs: Any) -> Tensor:
    """Logits (B, T, V) of a model's outputs.

    Args:
        outputs: They, or what holds them as `logits`.
    """
    logits: Tensor = getattr(outputs, "logits", outputs)
    return logits
