"""What every configuration is made of: parts that are read from nested tables, and check themselves.

A configuration is a frozen dataclass of parts, each a frozen dataclass. What has a name and options of its own (a
protection, a strategy, a space) is a part, too: the `Options` of its kind, and in a table the options with a `name`.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin

from forgetless.errors import InputError, expect_one_of
from forgetless.plugins import loaded
from forgetless.registry import Registry
from forgetless.schema import mismatch

MOST_SEEDS = 100_000
"""What is drawn, recorded and reported per seed has to fit a memory."""
MOST_FIRST_SEED = 2**32
"""Far below where a generator would refuse it."""
MOST_THREADS = 1024
"""More than any machine has cores; PyTorch starts them at once, and cannot start a million."""

RESOURCES = "resources"
"""The part of a configuration that says where and how, and decides no number."""

NAME = "name"
"""In a table of options: whose they are."""

_FITS, _FLAG, _BASIC, _HELP = "fits", "flag", "basic", "help"


def option(
    default: Any = dataclasses.MISSING,
    *,
    flag: str | None = None,
    basic: bool = False,
    help: str = "",  # noqa: A002
) -> Any:
    """A field of a part, with what the command line is to know of it.

    Args:
        default: Its default.
        flag: What the command line calls it, if not by the field's name.
        basic: Whether the short help shows it.
        help: What it is, if the docstring of the class does not say it under `Attributes:`.
    """
    return dataclasses.field(default=default, metadata={_FLAG: flag, _BASIC: basic, _HELP: help})


def fitting(*, flag: str | None = None, basic: bool = False) -> Any:
    """A field whose default, None, is replaced by what fits the rest of the configuration.

    Args:
        flag: As for `option`.
        basic: As for `option`.
    """
    return dataclasses.field(default=None, metadata={_FITS: True, _FLAG: flag, _BASIC: basic})


def is_fitting(field: dataclasses.Field[Any]) -> bool:
    """Whether a field is one of `fitting`."""
    return bool(field.metadata.get(_FITS))


def flag_of(field: dataclasses.Field[Any]) -> str:
    """What the command line calls a field."""
    return field.metadata.get(_FLAG) or field.name.replace("_", "-")


def _called(field: dataclasses.Field[Any]) -> str:
    """What messages call a field: as the command line, with low lines."""
    return flag_of(field).replace("-", "_")


def help_of(field: dataclasses.Field[Any]) -> str:
    """What a field says of itself."""
    return str(field.metadata.get(_HELP, ""))


def is_basic(field: dataclasses.Field[Any]) -> bool:
    """Whether the short help shows a field."""
    return bool(field.metadata.get(_BASIC))


@dataclass(frozen=True, kw_only=True)
class Part:
    """Base of the frozen dataclasses that configurations are made of.

    Attributes:
        title: What the help calls the part.
    """

    title: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self._check_types()

    # ---- tables --------------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The part that `to_dict`, or a TOML file, holds.

        Args:
            values: Option → value, or a table of another part; what is left out has its default.

        Returns:
            The part.

        Raises:
            InputError: If an option is unknown or a value does not fit.
        """
        fields, found = hints(cls), {}
        for name, value in values.items():
            expect_one_of("option", name, fields)
            found[name] = _read(fields[name], value, name)
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """The same as nested tables, to be read by `from_dict`; what is None is left out."""
        values = {field.name: _table(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """The same with other values.

        Args:
            changes: Name of a field, with dots between a part and its own → value.

        Returns:
            The changed copy.

        Raises:
            InputError: As `from_dict`.
        """
        own: dict[str, Any] = {}
        below: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            first, _, rest = name.partition(".")
            expect_one_of("option", first, hints(type(self)))
            if rest:
                below.setdefault(first, {})[rest] = value
            else:
                own[first] = value
        own |= {name: getattr(self, name).changed(mine) for name, mine in below.items()}
        return dataclasses.replace(self, **own)

    def _set(self, **values: Any) -> None:
        """In `__post_init__`: values in the place of those that were given."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    # ---- checks --------------------------------------------------------------------------------------------------

    def _check_types(self) -> None:
        """Lists become tuples, words of an enumeration its members; refuse what is of another type, or not storable."""
        kinds = hints(type(self))
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), kinds[field.name]
            if isinstance(value, list):
                value = tuple(value)
                self._set(**{field.name: value})
            if value is None or isinstance(value, Part) or _holds_parts(value):
                continue
            if words := _words_for(value, kind):
                for each in words:
                    expect_one_of(_called(field), each, map(str, get_args(_one_of(kind))))
            elif isinstance(kind, type) and issubclass(kind, Enum):
                expect_one_of(_called(field), str(value), [each.value for each in kind])
                self._set(**{field.name: kind(value)})
            elif wrong := _mismatch(value, kind, field.name):
                raise InputError(f"Expected options of the types that they have, but {wrong}.")
            self._expect_storable(_called(field), value)

    @staticmethod
    def _expect_storable(name: str, value: object) -> None:
        """Refuse numbers and names that config.toml, or 64 bits, cannot hold."""
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, int) and not _fits_64_bits(each):
                told = f"{each:.3g}" if abs(each) < 10**300 else "a larger number"
                raise InputError(f"Expected {name} to fit into 64 bits, but got {told}.")
            if isinstance(each, str) and ("\0" in each or any("\ud800" <= letter <= "\udfff" for letter in each)):
                raise InputError(f"Expected {name} to be text in UTF-8, but got {each!r}. Rename it.")

    def _expect(self, names: Sequence[str], fits: Callable[[Any], bool], what: str) -> None:
        """Refuse options that do not fit; None does, and of a tuple each value has to."""
        called = {field.name: _called(field) for field in dataclasses.fields(self)}
        for name in names:
            value = getattr(self, name)
            for each in value if isinstance(value, tuple) else (value,):
                if each is not None and not fits(each):
                    raise InputError(f"Expected {called[name]} {what}, but got {each}.")

    def expect_at_least(self, least: float, *names: str) -> None:
        """Refuse options below a number; of None and of tuples as of each value.

        Args:
            least: The number.
            *names: Of the options.

        Raises:
            InputError: If one is.
        """
        self._expect(names, lambda value: not value < least, f"to be at least {least}")

    def expect_at_most(self, most: float, *names: str) -> None:
        """Refuse options above a number.

        Args:
            most: The number.
            *names: Of the options.

        Raises:
            InputError: If one is.
        """
        self._expect(names, lambda value: not value > most, f"to be at most {most}")

    def expect_share(self, *names: str) -> None:
        """Refuse options outside of [0, 1].

        Args:
            *names: Of the options.

        Raises:
            InputError: If one is.
        """
        self._expect(names, lambda value: 0 <= value <= 1, "in [0, 1]")

    def expect_below_1(self, *names: str) -> None:
        """Refuse options outside of [0, 1).

        Args:
            *names: Of the options.

        Raises:
            InputError: If one is.
        """
        self._expect(names, lambda value: 0 <= value < 1, "in [0, 1)")

    def expect_positive(self, *names: str) -> None:
        """Refuse options that are not finite and above 0.

        Args:
            *names: Of the options.

        Raises:
            InputError: If one is.
        """
        self._expect(names, lambda value: math.isfinite(value) and value > 0, "to be finite and above 0")

    def expect_not_negative(self, *names: str) -> None:
        """Refuse options that are not finite and at least 0.

        Args:
            *names: Of the options.

        Raises:
            InputError: If one is.
        """
        self._expect(names, lambda value: math.isfinite(value) and value >= 0, "to be finite and at least 0")


@dataclass(frozen=True, kw_only=True)
class Options(Part):
    """Options of a kind that is registered by its name.

    Attributes:
        registry: Where its kind is.
        kind: The class that they are options of; it sets this itself (`forgetless.registry.Kind`).
        fits: Context → option → what its default is there, for options of `fitting`; "" is every context. A context is
            an experiment (`search`), or an experiment with a task (`search on text`).
    """

    registry: ClassVar[Registry[Any]]
    kind: ClassVar[Any]
    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def defaults(cls, *contexts: str) -> dict[str, Any]:
        """What fits some contexts, the later ones before the earlier.

        Args:
            *contexts: From the general to the particular.
        """
        found: dict[str, Any] = {}
        for each in reversed(cls.__mro__):
            for context in ("", *contexts):
                found |= vars(each).get("fits", {}).get(context, {})
        return found

    def fitted(self, *contexts: str) -> Self:
        """The same with a value for every option of `fitting` that has none.

        Args:
            *contexts: From the general to the particular.
        """
        values = self.defaults(*contexts)
        missing = {name: value for name, value in values.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing) if missing else self

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Options":
        """Options of some kind of the registry from a table.

        Args:
            values: Its name, and options; those left out have their defaults.

        Raises:
            InputError: If there is no such kind, or it has no such option.
        """
        rest = dict(values)
        name = rest.pop(NAME, None)
        if not isinstance(name, str):
            raise InputError(f"Expected a table with the name of a {cls.registry.what}, but got {values}.")
        options: type[Options] = cls.registry[name].Options
        if rest and not hints(options):
            raise InputError(f"Expected no options of {name}, which has none, but got {', '.join(rest)}.")
        for each in rest:
            expect_one_of(f"option of {name}", each, hints(options))
        return options.from_dict(rest)

    def to_dict(self) -> dict[str, Any]:
        """A table with the name of the kind, to be read by `read`."""
        return {NAME: self.kind.name, **super().to_dict()}


P = TypeVar("P", bound=Options)


@dataclass(frozen=True, kw_only=True)
class Configuration(Part):
    """Base of what says what an experiment is asked to do, as a whole.

    Attributes:
        shown_contexts: Whose defaults the help shows, from the general to the particular; see `Options.fits`.
        several_strengths: Whether a protection may come with several strengths.
        unlisted: Parts that its command has no options for, by their paths.
        has_presets: Whether its command takes a preset (`forgetless.presets`).
    """

    shown_contexts: ClassVar[tuple[str, ...]] = ()
    several_strengths: ClassVar[bool] = False
    unlisted: ClassVar[frozenset[str]] = frozenset()
    has_presets: ClassVar[bool] = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As `Part.from_dict`; a message says which plugins the configuration was made with.

        They are not loaded from here: a file that somebody gave away would run code.

        Args:
            values: As `Part.from_dict`.

        Raises:
            InputError: As `Part.from_dict`.
        """
        try:
            return super().from_dict(values)
        except InputError as error:
            resources = values.get(RESOURCES)
            named = resources.get("plugin", ()) if isinstance(resources, Mapping) else ()
            paths = [path for path in named if isinstance(path, str)] if isinstance(named, list | tuple) else []
            missing = [path for path in paths if path not in loaded()]
            if not missing:
                raise
            raise InputError(f"{error} It was made with plugins: pass --plugin {' '.join(missing)}.") from error

    def expect_own_state(self, state: Mapping[str, Any], number: int) -> None:
        """Refuse a stored state of another version, or of another configuration.

        Args:
            state: With its `format` and its `config`.
            number: The format that is read.

        Raises:
            InputError: If it is one; the message names the options that differ.
        """
        if state.get("format") != number:
            raise InputError(
                f"Expected a state that this version of forgetless wrote, but got format {state.get('format')}, not "
                f"{number}. Go on with the version that wrote it, or start another run."
            )
        stored = type(self).from_dict(state["config"])  # options that came later have their defaults
        if told := differing_options(self.to_dict(), stored.to_dict()):
            raise InputError(f"Expected the configuration of the checkpoint, but got {told}. Put the old values back.")


def differing_options(present: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    """The options in which two configurations differ, but for those that decide no number.

    Args:
        present: One of them, as nested tables.
        stored: The other.

    Returns:
        Such as `units 3 (there 2)`; empty where there is no difference.

    >>> differing_options({"space": {"units": 3}, "seeds": (1,)}, {"space": {"units": 2}, "seeds": [1]})
    'space.units 3 (there 2)'
    """
    one, other = flattened(present), flattened(stored)
    names = [name for name in dict.fromkeys([*other, *one]) if not name.startswith(f"{RESOURCES}.")]
    told = [(name, *(_word(values.get(name)) for values in (one, other))) for name in names]
    return ", ".join(f"{name} {mine} (there {theirs})" for name, mine, theirs in told if mine != theirs)


def flattened(table: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables as one: names with dots. Tables in a list go by their names, and where these repeat by a number.

    Args:
        table: Of tables, lists and values.

    >>> flattened({"space": {"units": 3}, "protections": [{"name": "wpl", "strength": 1.0}]})
    {'space.units': 3, 'protections': ['wpl'], 'protections.wpl.strength': 1.0}
    """
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{below}": each for below, each in flattened(value).items()}
        elif isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
            kinds = [each.get(NAME) for each in value]
            flat[name] = kinds
            for i, each in enumerate(value):
                kind = kinds[i] if kinds.count(kinds[i]) == 1 else f"{kinds[i]}[{kinds[:i].count(kinds[i])}]"
                rest = {below: one for below, one in each.items() if below != NAME}
                flat |= {f"{name}.{kind}.{below}": one for below, one in flattened(rest).items()}
        else:
            flat[name] = value
    return flat


def _word(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


_hints: dict[type[Part], dict[str, Any]] = {}


def hints(part: type[Part]) -> dict[str, Any]:
    """Field → type of a part, in the order of its fields.

    Args:
        part: The class.
    """
    if part not in _hints:
        kinds = typing.get_type_hints(part)
        _hints[part] = {field.name: kinds[field.name] for field in dataclasses.fields(part)}
    return _hints[part]


def part_in(kind: Any) -> type[Part] | None:
    """The class of the part, or parts, that a field of this type holds; None for other fields.

    Args:
        kind: The type of a field: a part, several of it, or one or None.
    """
    if isinstance(kind, type) and issubclass(kind, Part):
        return kind
    if get_origin(kind) in {tuple, typing.Union, types.UnionType}:
        return next((found for each in get_args(kind) if (found := part_in(each))), None)
    return None


def _one_of(kind: Any) -> Any:
    """The type of one value of a field that holds several; that of the field if it holds one."""
    return get_args(kind)[0] if get_origin(kind) is tuple else kind


def _words_for(value: object, kind: Any) -> tuple[str, ...]:
    """The word, or words, that stand for one or several of a `Literal`; none where it is of another type."""
    if get_origin(_one_of(kind)) is not typing.Literal:
        return ()
    values = value if get_origin(kind) is tuple and isinstance(value, list | tuple) else (value,)
    words = tuple(each for each in values if isinstance(each, str))
    return words if len(words) == len(values) else ()


def _holds_parts(value: object) -> bool:
    return isinstance(value, tuple) and any(isinstance(each, Part) for each in value)


def _read(kind: Any, value: Any, name: str) -> Any:
    """A value from a table, for a field of some type."""
    part = part_in(kind)
    if part is not None:
        several = get_origin(kind) is tuple
        tables = value if several and isinstance(value, list | tuple) else [value]
        if (several and tables is not value) or not all(isinstance(each, Mapping) for each in tables):
            raise InputError(f"Expected {'tables' if several else 'a table'} for {name}, but got {value!r}.")
        read = part.read if issubclass(part, Options) else part.from_dict
        found = tuple(map(read, tables))
        return found if several else found[0]
    is_enum = isinstance(kind, type) and issubclass(kind, Enum)
    is_word = _words_for(value, kind) or (isinstance(value, str) and is_enum)  # checked by the part itself
    if not is_word and (wrong := _mismatch(value, kind, name)):
        raise InputError(f"Expected options of the types that they have, but {wrong}.")
    return value


def _mismatch(value: object, kind: Any, name: str) -> str | None:
    """As `mismatch`; whether a number may be infinite, or beyond 64 bits, is for the part to say."""

    def finite(each: object) -> object:
        if isinstance(each, float) and not math.isfinite(each):
            return 1.0
        return 1 if type(each) is int and not _fits_64_bits(each) else each

    if isinstance(value, tuple):
        return mismatch(tuple(map(finite, value)), kind, name)
    return mismatch(list(map(finite, value)) if isinstance(value, list) else finite(value), kind, name)


def _fits_64_bits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def _table(value: Any) -> Any:
    if isinstance(value, Part):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_table(each) for each in value]
    return str(value) if isinstance(value, Enum) else value
