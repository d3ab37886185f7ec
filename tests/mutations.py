"""Damage to run folders: what disks, editors, copies and people do to files."""

import hashlib
import io
import json
import re
import shutil
import warnings
from pathlib import Path

import torch

from forgetless.comparison import units
from forgetless.comparison.result import ComparisonResult
from forgetless.errors import InputError
from forgetless.experiments import load_result
from forgetless.records import plain
from forgetless.runs import RunFolder
from forgetless.runs.states import load_state

FILES = (
    "config.toml",
    "environment.json",
    "metrics.jsonl",
    "checkpoint.pt",
    "checkpoint-before.pt",
    "trained-*.pt",
    "evaluation.json",
)


def damage(path, other, draw):
    """Damage a file; returns what was done.

    Args:
        path: The file.
        other: A file of the same name from another run.
        draw: A `random.Random`.
    """
    of_content = _OF_CONTENT if path.suffix == ".pt" else {**_OF_CONTENT, **_OF_TEXT}
    kind = draw.choice([*of_content, *_OF_FILES])
    if kind in _OF_FILES:
        _OF_FILES[kind](path, other)
    else:
        path.write_bytes(of_content[kind](path.read_bytes(), draw))
    return kind


def _flip(content, draw):
    if not content:
        return b"\1"
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]


def _zero(content, draw):
    place = draw.randrange(len(content) + 1)
    size = draw.choice([1, 16, 512])
    return content[:place] + bytes(len(content[place : place + size])) + content[place + size :]


def _cut(content, draw):
    return content[: draw.randrange(len(content) + 1)]


def _grow(content, draw):
    return content + draw.choice([b"\n", b"{}", b"\0" * 100, content, b"half a li", content[: len(content) // 2]])


def _lines(change):
    def changed(content, draw):
        lines = content.splitlines(keepends=True)
        if lines:
            change(lines, draw)
        return b"".join(lines)

    return changed


def _swap(lines, draw):
    i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]


def _replaced(pattern, texts):
    """One place that a pattern finds, replaced by one of some texts."""

    def changed(content, draw):
        places = list(re.finditer(pattern, content, re.MULTILINE))
        if not places:
            return content
        found = draw.choice(places)
        return content[: found.start()] + draw.choice(texts) + content[found.end() :]

    return changed


_OTHER_VALUES = [b"null", b"true", b'"x"', b"[]", b"{}", b"1e999", b"-1", b"NaN", b"9" * 30, b'"\\ud800"', b"''"]

_OF_CONTENT = {
    "a bit flipped": _flip,
    "a block of zeros": _zero,
    "cut short": _cut,
    "grown": _grow,
    "empty": lambda content, draw: b"",
    "noise": lambda content, draw: draw.randbytes(min(len(content), 4096)),
}
_OF_TEXT = {
    "a line lost": _lines(lambda lines, draw: lines.pop(draw.randrange(len(lines)))),
    "a line doubled": _lines(lambda lines, draw: lines.insert(draw.randrange(len(lines)), draw.choice(lines))),
    "lines exchanged": _lines(_swap),
    "a digit changed": _replaced(rb"\d", [b"%d" % digit for digit in range(10)]),
    "a value changed": _replaced(rb'(?<=[:=] )("[^"\n]*"|[-\w.]+)', _OTHER_VALUES),
    "a key changed": _replaced(rb'(?<=")\w+(?=": )|^\w+(?= = )', [b"x", b"seed", b""]),
    "line ends of Windows": lambda content, draw: content.replace(b"\n", b"\r\n"),
    "UTF-16": lambda content, draw: content.decode("utf-8").encode("utf-16"),
    "Latin-1": lambda content, draw: content + "# \xe9\n".encode("latin-1"),
}


def _as_folder(path, _other):
    path.unlink()
    path.mkdir()


def _as_loop(path, _other):
    path.unlink()
    path.symlink_to(path.name)


_OF_FILES = {
    "gone": lambda path, other: path.unlink(),
    "of another run": lambda path, other: shutil.copy(other, path),
    "a folder": _as_folder,
    "a link to itself": _as_loop,
}


def everything(path):
    """All that reading a run folder tells: results, and the states that can be read."""
    folder = RunFolder(path)
    result = load_result(folder)
    told = json.dumps(plain(result.summary()))
    begun = units(folder, result.config) if isinstance(result, ComparisonResult) else []
    below = [RunFolder(unit.path) for unit in begun if (unit.path / "config.toml").exists()]
    states = []
    for each in (folder, *below):
        each.environment  # noqa: B018
        known = [
            each.load_checkpoint(),
            *(each.load_trained(seed, name) for seed in (0, 1) for name in ("none", "wpl")),
        ]
        config = load_result(each).config
        for state in filter(None, known):
            config.expect_own_state(state, state["format"])  # as who goes on does
        states += known
    records = {str(each.path.relative_to(path)): each.records() for each in (folder, *below)}
    return told, [fingerprint(state) for state in states], records


def fingerprint(state):
    """Of tensors and all; None of none."""
    if state is None:
        return None
    file = io.BytesIO()
    torch.save(state, file)
    return hashlib.sha256(file.getvalue()).hexdigest()


def states_of(path):
    """Fingerprints of the states in a folder that may be gone on from."""
    found = [load_state(each, "") for name in ("checkpoint*.pt", "trained-*.pt") for each in path.rglob(name)]
    return {fingerprint(state) for state in found}


def judged(path, whole, states):
    """How reading a damaged folder ends: `identical`, `warned`, `refused` or `wrong`, and why.

    Args:
        path: The folder.
        whole: What `everything` told of it before.
        states: Fingerprints of the states that it may be gone on from.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            told, found, records = everything(path)
        except InputError as error:
            return "refused", str(error)
        except Exception as error:
            return "wrong", f"{type(error).__name__}: {error}"
    if not set(found) <= states | {None}:
        return "wrong", "another state"
    if told == whole[0] and records == whole[2]:
        return ("warned", str(caught[0].message)) if caught else ("identical", "")
    is_less = all(found == whole[2][name][: len(found)] for name, found in records.items())
    if is_less and ("nfinished" in (shown := told_of(path)) or "Missing:" in shown):
        return "warned", "unfinished"
    return ("warned", str(caught[0].message)) if caught and is_less else ("wrong", f"another result: {told[:300]}")


def told_of(path):
    """The table of a run, as the terminal shows it."""
    from forgetless.experiments.base import kind_of
    from shown import printed

    folder = RunFolder(Path(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return " ".join(printed(kind_of(folder).table(load_result(folder))))


def drawn_file(path, draw):
    """One of the files of a run folder, or of the runs below it."""
    found = [each for name in FILES for each in sorted(path.rglob(name))]
    by_name = {}
    for each in found:
        by_name.setdefault(each.name, []).append(each)
    return draw.choice(by_name[draw.choice(sorted(by_name))])
