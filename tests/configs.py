"""Configurations from short names: those of the command line's options, with low lines.

`search_config(space="nas201", units=2, epochs=3, wpl_strength=10.0)` is what `forgetless search --space nas201
--nas201.units 2 --epochs 3 --wpl.strength 10` makes.
"""

import dataclasses
import shlex

from forgetless.comparison import ComparisonConfig
from forgetless.configuration import NAME
from forgetless.evaluation.config import EvaluateConfig
from forgetless.evaluation.records import JudgedSearch
from forgetless.experiments.fine_tune import FineTuneConfig
from forgetless.experiments.landscape import LandscapeConfig
from forgetless.experiments.two_model import TwoModelConfig
from forgetless.options import command_options, tables_of
from forgetless.search import SearchConfig
from forgetless.search.records import DerivedRecord, EpochRecord
from forgetless.spaces import SPACES

TINY_TEXT = {
    "models_per_epoch": 2,
    "batches_per_model": 2,
    "strategy_steps": 1,
    "samples_per_step": 2,
    "final_samples": 0,
    "evaluation_batches": 1,
    "units": 4,
    "nodes": 2,
    "batch_size": 4,
    "num_steps": 5,
}
"""Options of a search on text that takes seconds."""


def search_config(words="", **options):
    """A search's; from words of a command, or from options by name."""
    return _config(SearchConfig, words, options)


def two_model_config(words="", **options):
    """The same of two models."""
    return _config(TwoModelConfig, words, options)


def landscape_config(words="", **options):
    """The same of a landscape."""
    return _config(LandscapeConfig, words, options)


def fine_tune_config(words="", **options):
    """The same of a fine-tuning."""
    return _config(FineTuneConfig, words, options)


def comparison_config(words="", **options):
    """The same of a comparison."""
    return _config(ComparisonConfig, words, options)


def evaluate_config(words="", **options):
    """The same of an evaluation."""
    return _config(EvaluateConfig, words, options)


def changed(config, **options):
    """A configuration with other options, the rest as it is, what was fitted included."""
    kind, tables = type(config), config.to_dict()
    search = tables.get("search", tables)
    if "space" in options:  # what fitted the other goes
        search |= {"space": {NAME: options.pop("space")}}
        for name in ("task", "data"):
            search.pop(name, None)
    if "protection" in options:
        known = {each[NAME]: each for each in search["protections"]}
        search["protections"] = [known.get(name, {NAME: name}) for name in options.pop("protection")]
    space = search.get("space", {}).get(NAME)
    for name, value in options.items():
        option = _option(kind, name, space)
        value = list(value) if isinstance(value, tuple) else value
        if option.owner is None:
            *parts, last = option.path.split(".")
            place = tables
            for part in parts:
                place = place.setdefault(part, {})
            if last == "strategies":
                value = [{NAME: each} for each in value]
            place[last] = {NAME: value} if last in {"space", "strategy", "sampling"} else value
            continue
        *parts, owner, last = option.path.split(".")
        place = tables
        for part in parts:
            place = place.setdefault(part, {NAME: owner} if part == parts[-1] else {})
        for each in place if isinstance(place, list) else [place]:
            if each[NAME] == owner:
                each[last] = value
    return kind.from_dict(tables)


def flag(kind, name, space=None):
    """The option of the command line that a short name stands for."""
    return _option(kind, name, space).flag


def _config(kind, words, options):
    if words:
        return _from_words(kind, words)
    space = options.get("space", "recurrent")
    given = {_option(kind, name, space).path: value for name, value in options.items()}
    return kind.from_dict(tables_of(kind, given))


def _option(kind, name, space):
    by_flag = {option.flag: option for option in command_options(kind)}
    parts = name.split("_")
    names = ["--" + "-".join(parts)]
    names += [f"--{'-'.join(parts[:i])}.{'-'.join(parts[i:])}" for i in range(1, len(parts))]
    if space in SPACES:
        names += [f"--{space}.{'-'.join(parts)}", f"--{SPACES[space].task}.{'-'.join(parts)}"]
    return next(by_flag[each] for each in names if each in by_flag)


def _from_words(kind, words):
    from cyclopts import App, Parameter

    from forgetless.cli.configured import configured

    def give(config):
        return config

    give.__annotations__ = {"config": kind}
    app = App(default_parameter=Parameter(consume_multiple=True, negative=(), json_list=False))
    app.default(configured(give, show_all=True))
    return app(shlex.split(words), exit_on_error=False, print_error=False, result_action="return_value")


def recorded(result, changes):
    """The same result, in whose records the values are others that `changes` gives, a dict for each record."""
    name = "runs" if hasattr(result, "runs") else "records"
    records = [dataclasses.replace(record, **changes(record)) for record in getattr(result, name)]
    return dataclasses.replace(result, **{name: records})


def without_time(records):
    """Records as dicts, without what differs between two runs of one command."""
    return [{key: value for key, value in record.to_dict().items() if key != "seconds"} for record in records]


def epoch_record(**values):
    """The record of an epoch in which nothing was measured but what is given."""
    names = [field.name for field in dataclasses.fields(EpochRecord)]
    usual = {"num_models": 10, "num_diverged": 0, "is_protected": False, "num_passed_over": 0, "learning_rate": 0.1}
    usual |= {"strategy": {}, "seconds": {}}
    return EpochRecord(**{**dict.fromkeys(names), **usual, **values})


def derived_record(**values):
    """The record of a derived architecture of which nothing is known but what is given."""
    names = [field.name for field in dataclasses.fields(DerivedRecord)]
    return DerivedRecord(**{**dict.fromkeys(names), "seconds": {}, **values})


def judged_search(**values):
    """How a search was judged, with all keys that a record has."""
    record = {
        "run": "runs/one",
        "strategy": "enas",
        "seed": 0,
        "protection": "none",
        "found": [],
        "random": [],
        **dict.fromkeys(("found_mean", "found_best", "random_mean", "random_best"), 0.5),
        "probability_of_surpassing_random": 0.5,
        "seconds": 1.0,
        **dict.fromkeys(("regret", "tau", "tau_unique", "tau_top")),
    }
    return JudgedSearch(**record | values)
