"""Packages whose public names are imported when they are first used, so that a command's help needs no PyTorch."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that imports its public names.

    Args:
        package: The package's `__name__`.
        modules: Public name → the module below the package that has it.

    Returns:
        The function.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return get
