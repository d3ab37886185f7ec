"""Methods, spaces and data sets from outside the package.

A plugin is a Python file, named by `--plugin`, or an installed package with an entry point in the group
`forgetless.plugins`. Importing it registers what it adds, as the files of this package do. CONTRIBUTING.md has one
complete example of each kind.
"""

import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from forgetless.errors import InputError

GROUP = "forgetless.plugins"
"""The group of entry points; each names a module."""

_loaded: list[str] = []
_installed: list[str] = []


def load_file(path: str | Path) -> None:
    """Import a plugin from a file, once.

    Args:
        path: The file.

    Raises:
        InputError: If there is none, or importing it fails; the message has the reason.
    """
    file = Path(path).expanduser().resolve()
    if str(file) in _loaded:
        return
    if not file.is_file():
        raise InputError(f"Expected a Python file for --plugin, but got {path}. Name the file.")
    # A name of its own, which another process finds again by loading the same file.
    name = f"forgetless_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"Expected a Python file for --plugin, but got {path}. Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"Expected a plugin that can be imported, but {path} raised {_told(error)}.") from error
    _loaded.append(str(file))


def load_installed() -> None:
    """Import the plugins of all installed packages, once.

    Raises:
        InputError: If importing one fails; the message names it.
    """
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.value in _installed:
            continue
        _installed.append(entry.value)
        try:
            entry.load()
        except Exception as error:
            raise InputError(
                f"Expected the installed plugin {entry.name} ({entry.value}) to be importable, but it raised "
                f"{_told(error)}. Mend or uninstall it."
            ) from error


def loaded() -> tuple[str, ...]:
    """The files that `load_file` has imported in this process."""
    return tuple(_loaded)


def load_files(paths: Sequence[str]) -> None:
    """Import several plugins.

    Args:
        paths: Their files.

    Raises:
        InputError: As `load_file`.
    """
    for path in paths:
        load_file(path)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
