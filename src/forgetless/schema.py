"""What a value from a file must be: checked strictly against an annotation, with the way to where it is wrong.

Not pydantic: once that is imported, cyclopts validates the command line with it too, in other words.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

from forgetless.errors import InputError

Number: TypeAlias = float | None
"""A finite number, or None where it was not finite: JSON has no infinity."""

Measured: TypeAlias = Annotated[float, "null where it is not finite"]
"""A number that is null in a file where it is not finite, and NaN in a record that is read from there."""


def expect_type(value: object, kind: Any, what: str, where: str) -> None:
    """Refuse a value of another type.

    Args:
        value: From a file.
        kind: A dataclass or another annotation. 1 is a float; "1" and True are no numbers, and numbers are finite.
        what: What it should be, for the message, such as `a record of search`.
        where: Where it was found, such as a path and a line.

    Raises:
        InputError: If it is of another type, lacks a key or has one too many; it says which.

    >>> expect_type({"seed": "0"}, dict[str, int], "seeds", "line 1 of a.jsonl")
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected seeds in line 1 of a.jsonl, but seed is '0' where int is expected.
    """
    if _predicate(kind)(value):
        return
    wrong = mismatch(value, kind)
    if wrong is not None:
        raise InputError(f"Expected {what} in {where}, but {wrong}.")


def mismatch(value: object, kind: Any, place: str = "") -> str | None:
    """What is wrong with a value; None if nothing is.

    Args:
        value: Any.
        kind: As for `expect_type`.
        place: The way to the value, for the message.
    """
    origin, of = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _mismatch_of_record(value, kind, place)
    if kind == Measured:
        return mismatch(value, Number, place)
    if origin in {Union, types.UnionType}:
        found = [mismatch(value, each, place) for each in of]
        return None if None in found else _wrong(value, kind, place)
    if origin is Literal:
        return None if any(value == each and type(value) is type(each) for each in of) else _wrong(value, kind, place)
    if origin is list and isinstance(value, list):
        return _first(mismatch(each, of[0], f"{place}[{i}]") for i, each in enumerate(value))
    if origin is tuple and isinstance(value, list | tuple) and of[-1] is Ellipsis:
        return _first(mismatch(each, of[0], f"{place}[{i}]") for i, each in enumerate(value))
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(of):
        return _first(mismatch(v, k, f"{place}[{i}]") for i, (v, k) in enumerate(zip(value, of, strict=True)))
    if origin is dict and isinstance(value, Mapping):
        parts = (mismatch(each, of[1], _below(place, name)) for name, each in value.items())
        return _first(parts)
    if (unnamed := unnamed_tuple(kind)) is not None:
        return mismatch(value, unnamed, place)
    if kind in {float, int}:
        return None if (_is_finite if kind is float else _is_whole)(value) else _wrong(value, kind, place)
    if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str):
        return None if value in {each.value for each in kind} else _wrong(value, kind, place)
    fits = value is None if kind in {None, type(None)} else origin is None and type(value) is kind
    return None if fits else _wrong(value, kind, place)


@functools.cache
def _predicate(kind: Any) -> Callable[[object], bool]:
    """Whether `mismatch` finds nothing, some ten times as fast: a report may be of a hundred thousand records."""
    origin, of = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record_predicate(kind)
    if kind in {Number, Measured}:
        return lambda value: value is None or _is_finite(value)
    if origin is list or (origin is tuple and of[-1] is Ellipsis):
        one = _predicate(of[0])
        return lambda value: type(value) is list and all(map(one, value))
    if origin is dict:
        one = _predicate(of[1])
        return lambda value: type(value) is dict and all(map(one, value.values()))
    if kind in {float, int}:
        return _is_finite if kind is float else _is_whole
    if origin is None and kind in {str, bool}:
        return lambda value: type(value) is kind
    return lambda value: mismatch(value, kind) is None


def _record_predicate(kind: Any) -> Callable[[object], bool]:
    shape = shape_of(kind)
    predicates = {name: _predicate(of_key) for name, of_key in shape.kinds.items()}
    fits_flat, is_flat, required = _predicate(shape.flat_kind), shape.is_flat, shape.required

    def fits(value: object) -> bool:
        if type(value) is not dict or not required <= value.keys():
            return False
        for name, part in value.items():
            fits_key = predicates.get(name) or (fits_flat if is_flat(name) else None)
            if fits_key is None or not fits_key(part):
                return False
        return True

    return fits


def _is_finite(value: object) -> bool:
    """Whether it is a number that a float, or 64 bits, can hold."""
    return (type(value) is float and math.isfinite(value)) or _is_whole(value)


def _is_whole(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _mismatch_of_record(value: object, kind: Any, place: str) -> str | None:
    if not isinstance(value, Mapping):
        return _wrong(value, kind, place)
    shape = shape_of(kind)
    flat = {name for name in value if shape.is_flat(str(name))}
    lacking, unknown = shape.required - value.keys(), value.keys() - shape.kinds.keys() - flat
    within = f" in {place}" if place else ""
    if lacking:
        return f"it lacks {', '.join(sorted(lacking))}{within}"
    if unknown:
        return f"it has {', '.join(sorted(map(repr, unknown)))}{within}, which nothing writes"
    kinds = {**dict.fromkeys(flat, shape.flat_kind), **shape.kinds}
    return _first(mismatch(each, kinds[name], _below(place, name)) for name, each in value.items())


class Shape(NamedTuple):
    """The keys of a dataclass in a file.

    Attributes:
        kinds: Key → what its value must be.
        fields: The same of the keys that are fields.
        required: The keys without a default.
        prefix: Of the keys of the one field that is a mapping and lies flat among the others; None if there is none.
        flat_kind: What the values of that mapping must be.
    """

    kinds: dict[str, Any]
    fields: dict[str, Any]
    required: frozenset[str]
    prefix: str | None
    flat_kind: Any

    def is_flat(self, name: str) -> bool:
        """Whether a key is one of that mapping's.

        Args:
            name: The key.
        """
        return self.prefix is not None and name.startswith(self.prefix) and name not in self.kinds


@functools.cache
def shape_of(kind: Any) -> Shape:
    """The keys of a dataclass in a file; see `forgetless.records.Record` for those that are no fields.

    Args:
        kind: The class.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    required = frozenset(each.name for each in dataclasses.fields(kind) if each.default is dataclasses.MISSING)
    flat, event = getattr(kind, "flat", ""), getattr(kind, "event", "")
    prefix = kind.prefix if flat else None
    flat_kind = get_args(fields.pop(flat))[1] if flat else None
    first = {"event": Literal[event]} if event else {}
    return Shape({**first, **fields}, fields, (required - {flat}) | first.keys(), prefix, flat_kind)


@functools.cache
def unnamed_tuple(kind: Any) -> Any:
    """The annotation of a class of named tuples, which are lists in a file, without names; None for any other kind.

    Args:
        kind: Any annotation.
    """
    if not (isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return None
    return tuple.__class_getitem__(tuple(typing.get_type_hints(kind, include_extras=True).values()))


def _first(found: typing.Iterable[str | None]) -> str | None:
    return next((wrong for wrong in found if wrong is not None), None)


def _below(place: str, name: object) -> str:
    return f"{place}.{name}" if place else str(name)


def _wrong(value: object, kind: Any, place: str) -> str:
    name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    text = repr(value)
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return f"{place or 'it'} is {shown} where {name} is expected"


_LONGEST = 60


def expect_place(place: object, allowed: Mapping[Any, int], seen: dict[Any, int], what: str, where: str) -> None:
    """Refuse a record that its run would not write at this place: of another run, or doubled.

    Args:
        place: What the record is of, such as a seed and a protection.
        allowed: How many records the run writes of each.
        seen: How many were read of each so far; this one is added.
        what: The record in words.
        where: Where it was found.

    Raises:
        InputError: If the run asks for none of these, or not for so many.
    """
    if place not in allowed:
        raise InputError(f"Expected a record that the configuration asks for in {where}, but got {what}.")
    seen[place] = seen.get(place, 0) + 1
    if seen[place] > allowed[place]:
        raise InputError(f"Expected each record once in {where}, but got {what} again.")
