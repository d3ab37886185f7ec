"""The one exception that means "the user can mend this"."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A bad input, told in one clear sentence; the command line prints it and exits with code 2."""

    def __str__(self) -> str:
        return printable(super().__str__())


class DivergedError(InputError):
    """A model's outputs or derivatives are not finite, so that what it needs of its weights is not known."""


def printable(text: str) -> str:
    r"""A text on one line of characters that every terminal takes: others are escaped.

    Names of files may hold line ends, control characters, which command a terminal, and bytes that are no text.

    Args:
        text: Any.

    >>> print(printable("a\x1b[2Jb\udcff"))
    a\x1b[2Jb\xff
    """
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no text, as Python has it in names of files
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


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
