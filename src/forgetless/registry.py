"""Kinds of one thing by name: each registers itself in its own file, and nothing else names it.

A registry knows the package whose modules register its kinds, and imports them when it is first asked. Files named by
`--plugin`, and installed packages with an entry point in the group `forgetless.plugins`, register theirs too; see
`forgetless.plugins`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

from forgetless.errors import InputError, expect_one_of

K = TypeVar("K")
T = TypeVar("T")


class Kind:
    """Base of what has a name and options of its own, such as a protection; its options know it.

    Attributes:
        name: What it is called in commands and files.
        Options: The class of its options; each kind has its own.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Any]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        options = vars(cls).get("Options")
        if options is None:
            return
        if "kind" in vars(options):
            raise InputError(
                f"Expected a class of options of its own for {cls.__name__}, but got {options.__name__}, which is that "
                f"of {options.kind.__name__}. Derive one from it."
            )
        options.kind = _Fixed(cls)


class _Fixed:
    """What a class knows of another, which is not a part of it: else its docstring counts as the first one's, too."""

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind

    def __get__(self, instance: object, owner: type[Any]) -> type[Any]:
        return self._kind


class Registry(Generic[K]):
    """Kinds of one thing, by name, in alphabetical order.

    Args:
        what: What they are, for messages: `protection`.
        package: The package whose modules register them.

    >>> colours = Registry[str]("colour", "forgetless.errors")
    >>> colours.add("red", "#f00")
    '#f00'
    >>> colours["red"], list(colours), "blue" in colours
    ('#f00', ['red'], False)
    >>> colours["rad"]
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected colour to be one of red, but got 'rad'. Did you mean 'red'?
    """

    def __init__(self, what: str, package: str) -> None:
        self.what, self._package = what, package
        self._kinds: dict[str, K] = {}
        self._is_complete = False

    def add(self, name: str, kind: T) -> T:
        """Register a kind.

        Args:
            name: What it is called in commands and files.
            kind: The kind.

        Returns:
            The kind.

        Raises:
            InputError: If another kind has this name.
        """
        present = self._kinds.get(name)
        if present is not None and _origin(present) != _origin(kind):
            raise InputError(f"Expected a new name for a {self.what}, but {name!r} is taken. Choose another.")
        self._kinds[name] = kind  # type: ignore[assignment]
        return kind

    def register(self, kind: T) -> T:
        """Register a class under its own `name`; a decorator.

        Args:
            kind: A class with the class variables that the registry's kinds have.

        Returns:
            The class.

        Raises:
            InputError: If another class has its name.
        """
        return self.add(kind.name, kind)  # type: ignore[attr-defined]

    def named(self, name: str) -> Callable[[T], T]:
        """Register what follows under a name; a decorator.

        Args:
            name: What it is called in commands and files.
        """
        return lambda kind: self.add(name, kind)

    def _load(self) -> dict[str, K]:
        if not self._is_complete:
            self._is_complete = True  # first, because a module may ask while it is imported
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
                if not module.name.startswith("_"):  # what several kinds share
                    importlib.import_module(f"{self._package}.{module.name}")
            from forgetless.plugins import load_installed

            load_installed()
        return self._kinds

    def __getitem__(self, name: str) -> K:
        expect_one_of(self.what, name, self)
        return self._kinds[name]

    def get(self, name: str) -> K | None:
        """A kind; None if there is none of this name.

        Args:
            name: What it is called.
        """
        return self._load().get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._load()))

    def __len__(self) -> int:
        return len(self._load())

    def __contains__(self, name: object) -> bool:
        return name in self._load()

    def values(self) -> list[K]:
        """All kinds, by their names in alphabetical order."""
        return [self._kinds[name] for name in self]


def _origin(kind: Any) -> tuple[object, object]:
    """Where a kind is defined: a file that is imported twice registers the same."""
    return getattr(kind, "__module__", kind), getattr(kind, "__qualname__", kind)
