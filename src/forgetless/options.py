"""Which option of the command line is which field of a configuration, derived from the configuration's classes.

A field of a part is `--its-name`, or what its `flag` says. What has a name, such as a protection, is chosen by one
option, and its own options are `--name.option`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import shlex
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Union, get_args, get_origin

from forgetless.configuration import (
    NAME,
    Configuration,
    Options,
    Part,
    flag_of,
    flattened,
    help_of,
    hints,
    is_basic,
    is_fitting,
    part_in,
)
from forgetless.errors import InputError, expect_one_of


@dataclass(frozen=True)
class CommandOption:
    """One option of a command.

    Attributes:
        path: The field of the configuration, with dots; of an option of a kind, its name comes before the last.
        flag: What it is called, with its two hyphens.
        kind: Its type, as the command line reads it.
        help: What it is, in words.
        default: Its default in words; empty if there is none.
        group: Which part it belongs to, for the help.
        is_basic: Whether the short help shows it.
        owner: The name of the kind whose option it is; None for other options.
    """

    path: str
    flag: str
    kind: Any
    help: str
    default: str
    group: str
    is_basic: bool
    owner: str | None = None


def command_options(config: type[Configuration]) -> list[CommandOption]:
    """All options of a command, in the order of the configuration.

    Args:
        config: The class of its configuration.
    """
    return list(_options(config, "", config))


def _options(part: type[Part], path: str, config: type[Configuration]) -> Iterator[CommandOption]:
    kinds, fields = hints(part), {field.name: field for field in dataclasses.fields(part)}
    described = field_docs(part)
    for name, kind in kinds.items():
        here = f"{path}{name}"
        below = part_in(kind)
        if here in config.unlisted:
            continue
        if below is None:
            field = fields[name]
            yield CommandOption(
                here, f"--{flag_of(field)}", _without_none(kind), described.get(name, ""), _default(field), part.title,
                is_basic(field),
            )  # fmt: skip
        elif issubclass(below, Options):
            yield from _choice(below, fields[name], kind, here, config, described.get(name, ""))
        else:
            yield from _options(below, f"{here}.", config)


def _choice(
    base: type[Options],
    field: dataclasses.Field[Any],
    kind: Any,
    path: str,
    config: type[Configuration],
    described: str,
) -> Iterator[CommandOption]:
    """The option that chooses a kind by its name, or several, and the options of each kind."""
    registry, several = base.registry, get_origin(kind) is tuple
    names = Literal[tuple(registry)]  # type: ignore[valid-type]
    what = registry.what.capitalize()
    if is_chosen(base):
        chosen = tuple[names, ...] if several else names  # type: ignore[valid-type]
        yield CommandOption(path, f"--{flag_of(field)}", chosen, described, "", what, is_basic(field))
    for each in registry.values():
        own = each.Options
        docs, fields = field_docs(own), {one.name: one for one in dataclasses.fields(own)}
        for name, its_kind in hints(own).items():
            own_field, its_kind = fields[name], _without_none(its_kind)
            if name == "strength" and config.several_strengths:
                its_kind = tuple[its_kind, ...]  # type: ignore[valid-type]
            default = (
                _fitting_default(own, name, config.shown_contexts) if is_fitting(own_field) else _default(own_field)
            )
            yield CommandOption(
                f"{path}.{each.name}.{name}",
                f"--{each.name}.{flag_of(own_field)}",
                its_kind,
                docs.get(name) or help_of(own_field),
                default,
                f"{what} {each.name}",
                is_basic=False,
                owner=each.name,
            )


def is_chosen(base: type[Options]) -> bool:
    """Whether a kind is chosen by an option; the kind of a task follows from the space."""
    return base.registry.what != "task"


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in {Union, types.UnionType}:
        kinds = [each for each in get_args(kind) if each is not type(None)]
        return functools.reduce(lambda one, other: one | other, kinds[1:], kinds[0])
    return kind


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is None or value is dataclasses.MISSING or value is False or value == () or isinstance(value, Part):
        return ""
    return " ".join(map(word, value)) if isinstance(value, tuple) else word(value)


def _fitting_default(options: type[Options], name: str, contexts: tuple[str, ...]) -> str:
    """The default in an experiment, by task where it depends on it."""
    by_task = {
        where.partition(" on ")[2]: values[name]
        for where, values in _all_fits(options).items()
        if where.partition(" on ")[0] in contexts and " on " in where and name in values
    }
    if len(set(by_task.values())) > 1:
        return ", ".join(f"{word(value)} on {task}" for task, value in sorted(by_task.items()))
    found = next(iter(by_task.values()), options.defaults(*contexts).get(name))
    return "" if found is None else word(found)


def _all_fits(options: type[Options]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for each in reversed(options.__mro__):
        for context, values in vars(each).get("fits", {}).items():
            found[context] = {**found.get(context, {}), **values}
    return found


# ---- words to tables, and back -----------------------------------------------------------------------------------


def tables_of(config: type[Configuration], given: Mapping[str, Any]) -> dict[str, Any]:
    """The nested tables that `Configuration.from_dict` reads, from what a command was given.

    Args:
        config: The class of the configuration.
        given: Path of a `CommandOption` → value, of those that were given.

    Returns:
        Tables.

    Raises:
        InputError: If there is no such kind, or an option is of one that was not chosen.
    """
    options = {each.path: each for each in command_options(config)}
    choices = list(_choices(config))
    chosen_at = {path for path, _, _ in choices}
    tables: dict[str, Any] = {}
    kinds: dict[str, list[dict[str, Any]]] = {}  # of each field of kinds
    for path, value in given.items():
        if options[path].owner is None and path not in chosen_at:
            _put(tables, path, list(value) if isinstance(value, tuple) else value)
    for path, base, several in choices:
        names = given.get(path)
        chosen = list(names) if isinstance(names, tuple) else [names] if names else default_names(config, path, tables)
        for name in chosen:
            expect_one_of(base.registry.what, name, base.registry)
        kinds[path] = [{NAME: name} for name in chosen]
        for option, value in given.items():
            owner = options[option].owner
            if owner is None or not option.startswith(f"{path}."):
                continue
            found = [each for each in kinds[path] if each[NAME] == owner]
            if not found:
                raise InputError(
                    f"Expected {options[option].flag} together with {owner}, but the {base.registry.what} is "
                    f"{', '.join(chosen)}. Choose {owner}, or leave the option out."
                )
            if isinstance(value, tuple) and option.endswith(".strength"):
                at = kinds[path].index(found[0])
                others = [each for each in kinds[path][at:] if each[NAME] != owner]
                kinds[path][at:] = [*({**found[0], "strength": each} for each in value), *others]
            else:
                for each in found:
                    each[option.rpartition(".")[2]] = list(value) if isinstance(value, tuple) else value
        is_given = names is not None or any(len(each) > 1 for each in kinds[path])
        if is_given:
            _put(tables, path, kinds[path] if several else kinds[path][0])
    return tables


def with_preset(config: type[Configuration], tables: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a command was given, over the options of a preset.

    Args:
        config: The class of the configuration.
        tables: Of the preset.
        given: Path of a `CommandOption` → value, of those that were given.

    Returns:
        The same with the preset's options that were not given. Options of kinds that the preset chose go where another
        kind was chosen.
    """
    usual = _said_by(config, tables)
    for path, base, _ in _choices(config):
        names = given.get(path)
        if is_chosen(base) and names is not None:
            chosen = names if isinstance(names, tuple) else (names,)
            kept = tuple(f"{path}.{name}." for name in chosen)
            usual = {
                key: value for key, value in usual.items() if not key.startswith(f"{path}.") or key.startswith(kept)
            }
    usual = {path: tuple(value) if isinstance(value, list) else value for path, value in usual.items()}
    return {**usual, **given}


def _choices(config: type[Part], path: str = "") -> Iterator[tuple[str, type[Options], bool]]:
    for name, kind in hints(config).items():
        below = part_in(kind)
        if below is not None and issubclass(below, Options):
            yield f"{path}{name}", below, get_origin(kind) is tuple
        elif below is not None:
            yield from _choices(below, f"{path}{name}.")


def _put(tables: dict[str, Any], path: str, value: Any) -> None:
    *parts, last = path.split(".")
    for part in parts:
        tables = tables.setdefault(part, {})
    tables[last] = value


def default_names(config: type[Configuration], path: str, tables: Mapping[str, Any]) -> list[str]:
    """The kinds that a configuration chooses where no name is given.

    Args:
        config: The class of the configuration.
        path: The field, with dots.
        tables: What was given otherwise.
    """
    found: Any = config.from_dict(tables)
    for part in path.split("."):
        found = getattr(found, part)
    return [each.kind.name for each in (found if isinstance(found, tuple) else (found,))]


def command_line(config: Configuration, command: str, **changes: Any) -> str:
    """The command that makes the same runs: only what differs from the defaults.

    Args:
        config: The configuration.
        command: Such as `search`.
        **changes: Flag, without hyphens at its front and with low lines in the place of others → another value.

    Returns:
        One line for a POSIX shell.
    """
    given, usual = _said(config), _usual(config)
    words = ["forgetless", command]
    for option in command_options(type(config)):
        name = option.flag.removeprefix("--").replace("-", "_").replace(".", "_")
        value = changes.get(name, given.get(option.path))
        if value is None or value == usual.get(option.path):
            continue
        several = value if isinstance(value, tuple | list) else () if isinstance(value, bool) else (value,)
        words += [option.flag, *map(word, several)]
    return shlex.join(words)


def _said(config: Configuration) -> dict[str, Any]:
    """Path of an option → its value; a protection that comes with several strengths has them all."""
    return _said_by(type(config), config.to_dict())


def _said_by(config: type[Configuration], tables: Mapping[str, Any]) -> dict[str, Any]:
    """The same of nested tables, which need not be complete."""
    found: dict[str, Any] = {}
    for path, value in flattened(tables).items():
        plain = re.sub(r"\[\d+\]", "", path)
        if plain != path and plain.endswith(".strength"):
            found.setdefault(plain, []).append(value)
        else:
            found[plain] = value
    for path, base, several in _choices(config):
        if not several and f"{path}.{NAME}" in found:
            name = found.pop(f"{path}.{NAME}")
            found |= {
                f"{path}.{name}.{key.removeprefix(f'{path}.')}": found.pop(key)
                for key in [key for key in found if key.startswith(f"{path}.")]
            }
            if is_chosen(base):
                found[path] = name
        elif several and path in found:
            found[path] = list(dict.fromkeys(found[path]))
    return found


def _usual(config: Configuration) -> dict[str, Any]:
    """What a command with the same choices says without saying it: path of an option → value.

    A choice, such as that of a protection, is compared with what is chosen where it is left out.
    """
    full = flattened_choices(config)
    try:
        usual = _said(type(config).from_dict(_nested(full)))
    except InputError:  # where one protection at several strengths is enough, and at one is not: everything is said
        usual = {}
    for path in full:
        try:
            without = type(config).from_dict(_nested({name: value for name, value in full.items() if name != path}))
        except InputError:  # other choices do not go without it
            without = type(config).from_dict({})
        found = _said(without)
        usual[path] = found.get(path)
    return usual


def flattened_choices(config: Configuration) -> dict[str, Any]:
    """Path → what was chosen: the names of kinds, the optimizer, and the truth, on which other defaults depend.

    Args:
        config: The configuration.
    """
    said = _said(config)
    paths = [path for path, base, _ in _choices(type(config)) if is_chosen(base)]
    paths += [path for path in said if path.endswith(("optimizer.name", "evaluation.truth"))]
    return {path: said[path] for path in paths if path in said}


def _nested(choices: Mapping[str, Any]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for path, value in choices.items():
        is_kind = not path.endswith((f".{NAME}", ".truth"))
        if isinstance(value, list):
            value = [{NAME: name} for name in value]
        elif is_kind:
            value = {NAME: value}
        _put(tables, path, value)
    return tables


def word(value: object) -> str:
    """A value as a word of a command."""
    return number(value) if isinstance(value, float) else str(value)


def side_by_side(tables: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The options in which configurations of one kind differ, and what each has, as text.

    Args:
        tables: Nested, as `Part.to_dict` gives them.

    >>> side_by_side([{"units": 3, "rate": 1e-5}, {"units": 2, "rate": 1e-5}, {"units": 2}])
    [('units', ['3', '2', '2']), ('rate', ['1e-5', '1e-5', '–'])]
    """
    options = list(map(flattened, tables))
    names = dict.fromkeys(name for each in options for name in each)
    told = [(name, [_option(each.get(name)) for each in options]) for name in names]
    return [(name, values) for name, values in told if len(set(values)) > 1]


def _option(value: object) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(_option, value))
    return number(value) if isinstance(value, float) else "–" if value is None else str(value)


def number(value: float) -> str:
    """The shortest exact way to write a number, such as 1e5, 3e-5, 0.43 and 100.

    Args:
        value: A finite number.

    Returns:
        Digits that read back as the same number.

    >>> number(100000.0), number(0.005), number(2.5e-7), number(3)
    ('1e5', '0.005', '2.5e-7', '3')
    """
    exact = Decimal(repr(float(value))).normalize()
    plain = f"{exact:f}"
    sign, digits, _ = exact.as_tuple()
    rest = "".join(map(str, digits[1:]))
    scientific = f"{'-' if sign else ''}{digits[0]}{'.' if rest else ''}{rest}e{exact.adjusted()}"
    ordinary = value == 0 or 1e-3 <= abs(value) < 1e3
    return plain if ordinary or len(plain) <= len(scientific) else scientific


# ---- what a class says of its fields -----------------------------------------------------------------------------

_ENTRY = re.compile(r"^ {8}(\w+): ", re.MULTILINE)


def field_docs(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass, and of its bases, say of its fields.

    Args:
        kind: A class with a section `Attributes:` in its docstring, as Google's style has it.

    Returns:
        Field → text in one line.
    """
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = vars(each).get("__doc__") or ""
        _, _, section = text.partition("Attributes:\n")
        section = re.split(r"\n\n(?! {8})", section)[0]
        places = list(_ENTRY.finditer(section))
        ends = [place.start() for place in places[1:]] + [None] * bool(places)
        for place, end in zip(places, ends, strict=True):
            entry = section[place.end() : end]
            found[place[1]] = " ".join(inspect.cleandoc(entry).split())
    return found
