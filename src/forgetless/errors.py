"""The one exception that means "the user can mend this"."""

import difflib
import unicodedata
from collections.abc import Iterable


class InputError(ValueError):
    r"""A bad input, told in one clear sentence; the command line prints it and exits with code 2.

    Args:
        sentence: What was expected, what was got, and what to do. It often quotes names of files, which may hold
            anything: what cannot be printed on one line is escaped.

    >>> print(InputError("Expected a name, but got \x1b[2J."))
    Expected a name, but got \x1b[2J.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


def printable(text: str) -> str:
    r"""Escape what would break a line, steer a terminal or fail to be encoded: control characters and surrogates.

    Args:
        text: Anything, such as the name of a file.

    Returns:
        The text in one line; text that can be printed is returned as it is.

    >>> print(printable("näive.png"), printable("two\nlines\x1b[31m\udcff"))
    näive.png two\nlines\x1b[31m\udcff
    """
    if text.isprintable():
        return text
    return "".join(
        # Spaces such as the one that does not break count as not printable, and do no harm.
        character if character.isprintable() or unicodedata.category(character) == "Zs" else _escaped(character)
        for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def expect_one_of(what: str, value: str, choices: Iterable[str]) -> None:
    """Refuse `value` unless it is one of `choices`, naming the nearest choice.

    Args:
        what: The name of the option or quantity, for the message.
        value: What the user gave.
        choices: What is allowed.

    Raises:
        InputError: If `value` is not among `choices`.

    >>> expect_one_of("protection", "wlp", ["none", "wpl"])
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected protection to be one of none, wpl, but got 'wlp'. Did you mean 'wpl'?
    """
    allowed = [str(choice) for choice in choices]
    if value in allowed:
        return
    nearest = difflib.get_close_matches(value, allowed, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise InputError(f"Expected {what} to be one of {', '.join(allowed)}, but got {value!r}.{hint}")
