"""Commands whose first argument is a configuration: an option for each of its fields, in panels by part."""

import inspect
import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, TypedDict, get_args, get_origin

from cyclopts import Group, Parameter

from forgetless.configuration import Configuration
from forgetless.options import CommandOption, command_options, tables_of, with_preset
from forgetless.presets import preset, preset_names

Command = Callable[..., int | None]


def configured(function: Callable[..., int | None], *, show_all: bool) -> Command:
    """A function of a configuration and other options, as a command.

    Args:
        function: Its last positional parameter is the configuration, by its annotation; its docstring is the help.
        show_all: Whether the help shows every option, in panels; else the basic ones, each in one sentence.

    Returns:
        What cyclopts takes as a command.
    """
    signature = inspect.signature(function)
    place, kind = next(
        (name, each.annotation)
        for name, each in signature.parameters.items()
        if isinstance(each.annotation, type) and issubclass(each.annotation, Configuration)
    )
    options = command_options(kind)
    given = TypedDict("given", {each.path: _annotated(each, show_all=show_all) for each in options}, total=False)  # type: ignore[misc]

    def command(*arguments: Any, **named: Any) -> int | None:
        chosen = named.pop(_PRESET, None)
        bound = signature.bind_partial(*arguments, **named)
        values: Mapping[str, Any] = bound.arguments.get(place) or {}
        if chosen is not None:
            values = with_preset(kind, preset(chosen), values)
        bound.arguments[place] = kind.from_dict(tables_of(kind, values))
        return function(*bound.args, **bound.kwargs)

    annotation = Annotated[given | None, Parameter(name="*")]
    parameters = [
        each.replace(annotation=annotation, default=None) if name == place else each
        for name, each in signature.parameters.items()
    ]
    if kind.has_presets:
        parameters.append(
            inspect.Parameter(_PRESET, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_preset())
        )
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__doc__, command.__name__ = _without(function.__doc__ or "", place), function.__name__
    return command


_PRESET = "preset"


def _preset() -> Any:
    text = f"Named options of a published search; those given beside it win. [choices: {', '.join(preset_names())}]"
    return Annotated[str | None, Parameter(name=f"--{_PRESET}", help=text)]


def _annotated(option: CommandOption, *, show_all: bool) -> Any:
    kind, choices = _as_words(option.kind)
    text = option.help if show_all else option.help.partition(". ")[0].rstrip(".") + "."
    notes = [f"[choices: {', '.join(choices)}]"] if choices else []
    notes += [f"[default: {option.default}]"] if option.default else []
    shown: dict[str, Any] = {"name": option.flag, "help": " ".join([text, *notes]), "show": show_all or option.is_basic}
    if show_all:
        shown["group"] = Group(option.group, sort_key=_place(option))
    return Annotated[kind, Parameter(**shown)]


def _as_words(kind: Any) -> tuple[Any, tuple[str, ...]]:
    """The type as the command line reads it, and the words that there are to choose from.

    Words are read as any text: the configuration refuses them, and names the nearest.
    """
    if get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis:
        one, choices = _as_words(get_args(kind)[0])
        return tuple[one, ...], choices  # type: ignore[valid-type]
    if get_origin(kind) is Literal:
        return str, tuple(map(str, get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return str, tuple(each.value for each in kind)
    return kind, ()


_PARTS = (
    *("Space", "Data", "Task", "Strategy", "Sampler", "Protection", "Importance"),
    *("Models", "Schedule", "Optimizer", "Reward"),
)


def _place(option: CommandOption) -> tuple[int, str]:
    """Panels by part; the options of single kinds after them."""
    first = option.group.split()[0]
    order = _PARTS.index(first) if first in _PARTS else len(_PARTS)
    return (order + 100 * (option.owner is not None), option.group)


def _without(docstring: str, name: str) -> str:
    """A docstring without what it says of one argument."""
    return re.sub(rf"\n +{name}: .*", "", docstring)
