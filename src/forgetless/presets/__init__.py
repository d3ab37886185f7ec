"""Presets: named files of option values, each a table as `config.toml` has it, for `forgetless search --preset`."""

import tomllib
from pathlib import Path
from typing import Any

from forgetless.errors import expect_one_of

_FOLDER = Path(__file__).parent


def preset_names() -> tuple[str, ...]:
    """The names of all presets.

    >>> preset_names()
    ('benyahia2019',)
    """
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def preset(name: str) -> dict[str, Any]:
    """The options of a preset, as nested tables.

    Args:
        name: Of the preset.

    Returns:
        What `SearchConfig.from_dict` reads; options that are not there have their defaults.

    Raises:
        InputError: If there is none of this name.

    >>> from forgetless.search import SearchConfig
    >>> SearchConfig.from_dict(preset("benyahia2019")).schedule.models_per_epoch
    61
    """
    expect_one_of("preset", name, preset_names())
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
