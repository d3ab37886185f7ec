"""What the configurations of all experiments have in common: reading from a dict, and refusing what does not fit."""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Self

from forgetless.errors import InputError, expect_one_of
from forgetless.plasticity import LEAST_TOLERANCE
from forgetless.protection import ARMS, MATCHED, ToleranceWPL
from forgetless.runs import differing_options
from forgetless.schema import mismatch


class _OrNone:
    """Tells pydantic that None is allowed in a command.

    Nothing here uses pydantic; but where another package has imported it, cyclopts validates options with it.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.nullable_schema(handler(source))


MOST_SEEDS = 100_000
"""What is drawn, recorded and reported per seed has to fit a memory."""
MOST_FIRST_SEED = 2**32
"""Far below where a generator would refuse it."""
MOST_THREADS = 1024
"""More than any machine has cores; PyTorch starts them at once, and cannot start a million."""

FITTING = _OrNone()
"""Annotates an option whose default, None, is replaced by what fits the other options."""


class Configuration:
    """Base of the frozen dataclasses that say what an experiment is asked to do."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that `dataclasses.asdict` or a TOML file holds.

        Args:
            values: Option → value; options left out have their defaults.

        Returns:
            The configuration.

        Raises:
            InputError: If an option is unknown or a value does not fit.
        """
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        kinds = typing.get_type_hints(cls)
        for name, value in values.items():
            expect_one_of("option", name, known)
            is_word = isinstance(value, str) and typing.get_origin(kinds[name]) is typing.Literal  # checked later
            if not is_word and (wrong := mismatch(value, kinds[name], name)):
                raise InputError(f"Expected options of the types that they have, but {wrong}.")
        return cls(**values)

    def to_toml(self) -> dict[str, Any]:
        """The same as TOML has it, to be read by `from_dict`."""
        return {
            name: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Enum) else value
            for name, value in dataclasses.asdict(self).items()  # type: ignore[call-overload]
        }

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
        # Options that came later have their defaults.
        stored = dataclasses.asdict(self.from_dict(state["config"]))  # type: ignore[call-overload]
        if told := differing_options(dataclasses.asdict(self), stored):  # type: ignore[call-overload]
            raise InputError(f"Expected the configuration of the checkpoint, but got {told}. Put the old values back.")

    def _expect_storable(self) -> None:
        """Refuse numbers and names that config.toml, or 64 bits, cannot hold."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            for each in value if isinstance(value, tuple | list) else (value,):
                if isinstance(each, int) and not -(2**63) <= each < 2**63:
                    raise InputError(f"Expected {field.name} to fit into 64 bits, but got {each:.3g}.")
                if isinstance(each, str) and ("\0" in each or any("\ud800" <= letter <= "\udfff" for letter in each)):
                    raise InputError(f"Expected {field.name} to be text in UTF-8, but got {each!r}. Rename it.")

    def _expect_arms(self, protections: tuple[str, ...]) -> None:
        for name in protections:
            expect_one_of("protection", name, ARMS)
        if MATCHED in protections and "wpl" not in protections:
            raise InputError(f"Expected wpl among the protections, because {MATCHED} matches its steps. Add wpl.")

    def _expect_at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise InputError(f"Expected {name} to be at least {least}, but got {getattr(self, name)}.")

    def _expect_at_most(self, most: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) > most:
                raise InputError(f"Expected {name} to be at most {most}, but got {getattr(self, name)}.")

    def _expect_below_1(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"Expected {name} in [0, 1), but got {getattr(self, name)}.")

    def _expect_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"Expected {name} to be finite and above 0, but got {value}.")

    @staticmethod
    def _expect_strength(name: str, value: float) -> None:
        if name == ToleranceWPL.strength and value <= 0:
            raise InputError(f"Expected {name} to be above 0, but got {value}. Where nothing may be lost, freeze.")
        if name == ToleranceWPL.strength and value < LEAST_TOLERANCE:
            raise InputError(
                f"Expected {name} to be at least {LEAST_TOLERANCE:g}, but got {value}, which float32 cannot tell from "
                "0. Where nothing may be lost, freeze."
            )
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"Expected {name} to be finite and at least 0, but got {value}.")
