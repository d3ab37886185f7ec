"""What the files of a run folder are called, and what makes a folder a run's: the head of its `config.toml`."""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from forgetless.configuration import RESOURCES
from forgetless.errors import InputError, expect_one_of
from forgetless.runs.files import DIGEST_LENGTH, read_content

SEARCH, COMPARE = "search", "compare"
"""Experiments, by the name of their command and in config.toml."""

CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
CHECKPOINT_BEFORE = "checkpoint-before.pt"
REPORT = "report.html"
TENSORBOARD = "tensorboard"
INTERFERENCE = "interference.json"
INTERFERENCE_PICTURE = "interference.png"
EVALUATION = "evaluation.json"
SCORES = "baselines"

EXPERIMENT, VERSION, DIGEST = "experiment", "version", "digest"
"""The head of config.toml: of what it is a run, which forgetless wrote it, and the digest of its options."""

RESUMED = "resumed_with"
"""In environment.json: what was different when the run was gone on in, and after how many records."""


@dataclass(frozen=True)
class Header:
    """What the head of config.toml says.

    Attributes:
        experiment: Of what it is a run.
        version: Of the forgetless that wrote it.
        digest: Of its options, but for its resources; its records follow it.
        options: All options, as TOML has them.
        is_edited: Whether the options are others than those that the digest was made of.
    """

    experiment: str
    version: str
    digest: str
    options: Mapping[str, Any]
    is_edited: bool


def config_text(config: Mapping[str, Any]) -> str:
    """The content of a new config.toml.

    Args:
        config: The experiment and all options; None values are left out.
    """
    options = {name: value for name, value in config.items() if value is not None and name != EXPERIMENT}
    read = tomllib.loads(tomli_w.dumps(options))  # as the digest will be checked
    head = {EXPERIMENT: config.get(EXPERIMENT), VERSION: version("forgetless"), DIGEST: _digest(read)}
    comment = f"# Written by forgetless. To change an option, start another run; [{RESOURCES}] is free to change.\n"
    return comment + tomli_w.dumps({name: value for name, value in head.items() if value is not None} | options)


def read_header(folder: Path) -> Header:
    """What config.toml says.

    Args:
        folder: A run folder.

    Raises:
        InputError: If there is none, it is no TOML, or it does not say which experiment and version wrote it.
    """
    from forgetless.experiments.base import RUN_KINDS  # not above: every kind of run imports this package

    path = folder / CONFIG
    try:
        values = tomllib.loads(read_content(path).decode("utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"Expected a run folder with a {CONFIG}, but got {folder}. Name one that a run made."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"Expected valid TOML in {path}, but got: {error}.") from error
    head = {name: values.pop(name, None) for name in (EXPERIMENT, VERSION, DIGEST)}
    for name, value in head.items():
        if not isinstance(value, str):
            raise InputError(f"Expected {path} to name the {name} that wrote it, but got {_found(value)}.")
    expect_one_of(f"experiment in {path}", head[EXPERIMENT], RUN_KINDS)
    return Header(**head, options=values, is_edited=_digest(values) != head[DIGEST])


def _found(value: object) -> str:
    return "none" if value is None else repr(value)


def _digest(options: Mapping[str, Any]) -> str:
    deciding = {name: value for name, value in options.items() if name != RESOURCES}
    text = json.dumps(deciding, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:DIGEST_LENGTH]
