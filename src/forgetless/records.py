"""What a run leaves in its files: dataclasses, each beside what makes it, that are JSON objects there.

The docstring of a class says of each field what it is, first its unit in parentheses; docs/metrics.md is made of that.
"""

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Self, TypeVar, Union, get_args, get_origin

from forgetless.errors import InputError
from forgetless.schema import Measured, expect_type, shape_of, unnamed_tuple


@dataclass(frozen=True, slots=True)
class Record:
    """Base of the frozen dataclasses that a file of a run holds.

    A field is a key of the object, in the order of the fields. One with a default may be missing in files of older
    versions.

    Attributes:
        event: What tells the records of one file apart: written first, as `event`; empty where there is one kind.
        flat: The name of a field that is a mapping, whose keys lie among the others; empty if there is none.
        prefix: Of these keys.
    """

    event: ClassVar[str] = ""
    flat: ClassVar[str] = ""
    prefix: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """The object in the file, with None for every number that is not finite: JSON has none of these."""
        found: dict[str, Any] = plain(self)
        return found

    @classmethod
    def from_dict(cls, values: Any, what: str, where: str) -> Self:
        """What `to_dict` was called on.

        Args:
            values: From a file.
            what: What it should be, for the message, such as `a record of search`.
            where: Where it was found, such as a path and a line.

        Raises:
            InputError: If a key is missing, unknown, or its value of another type; it says which.
        """
        expect_type(values, cls, what, where)
        made: Self = made_of(values, cls)
        return made


R = TypeVar("R", bound=Record)


def record_of(values: Mapping[str, Any], kinds: Mapping[str, type[R]], experiment: str, where: str) -> R:
    """The record that a line of a file with records of several kinds holds.

    Args:
        values: Of the line.
        kinds: Event → the class of its records.
        experiment: Whose file it is, for the message.
        where: The line is, for the message.

    Raises:
        InputError: If the line is no record of one of these kinds.
    """
    event = values.get("event")
    if not isinstance(event, str) or event not in kinds:
        raise InputError(f"Expected a record of {experiment} in {where}, but its event is {event!r}.")
    return kinds[event].from_dict(values, f"a record of {experiment}", where)


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses and mappings as dicts, None for every number that is not finite.

    Args:
        value: Of dataclasses, mappings, lists, text and numbers.

    >>> plain({"a": (1.5, float("nan"))})
    {'a': [1.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    event, flat, prefix = (getattr(value, name, "") for name in ("event", "flat", "prefix"))
    found = {"event": event} if event else {}
    for field in dataclasses.fields(value):
        part = plain(getattr(value, field.name))
        is_flat = field.name == flat
        found |= {f"{prefix}{name}": each for name, each in part.items()} if is_flat else {field.name: part}
    return found


def made_of(values: Any, kind: Any) -> Any:
    """A value of a kind from what `plain` gave; it is not checked.

    Args:
        values: Dicts, lists, text, numbers and None.
        kind: A dataclass or another annotation.
    """
    maker = _maker(kind)
    return values if maker is None else maker(values)


@functools.cache
def _maker(kind: Any) -> Callable[[Any], Any] | None:
    """What turns a value from a file into one of a kind; None where it is one already."""
    origin, of = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record_maker(kind)
    if kind == Measured:
        return lambda value: math.nan if value is None else value
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind
    if origin in {Union, types.UnionType}:
        (made,) = {_maker(each) for each in of if each is not type(None)}
        return None if made is None else lambda value: None if value is None else made(value)
    if (unnamed := unnamed_tuple(kind)) is not None:
        fields_of = _maker(unnamed)
        return lambda values: kind(*fields_of(values))  # type: ignore[misc]
    if origin is list and (one := _maker(of[0])) is not None:
        return lambda values: [one(value) for value in values]
    if origin is tuple and of[-1] is Ellipsis:
        each = _maker(of[0])
        return tuple if each is None else lambda values: tuple(each(value) for value in values)
    if origin is tuple:
        makers = [_maker(each) for each in of]
        return lambda values: tuple(
            value if make is None else make(value) for make, value in zip(makers, values, strict=True)
        )
    return None


def _record_maker(kind: Any) -> Callable[[Any], Any]:
    shape = shape_of(kind)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    parts = [(name, _maker(of_key), name in shape.required, defaults[name]) for name, of_key in shape.fields.items()]
    flat, start, known = getattr(kind, "flat", ""), len(shape.prefix or ""), shape.kinds
    of_flat = _maker(shape.flat_kind) or (lambda value: value)
    set_field = object.__setattr__

    def make(values: Mapping[str, Any]) -> Any:
        # As kind(**fields), in a third of the time: a search may have a hundred thousand records.
        record = object.__new__(kind)
        for name, made, is_required, default in parts:
            value = values[name] if is_required or name in values else default
            set_field(record, name, value if made is None else made(value))
        if flat:
            own = {name[start:]: of_flat(value) for name, value in values.items() if name not in known}
            set_field(record, flat, own)
        return record

    return make
