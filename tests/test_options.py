"""Configurations as commands and as files: what is written is read back, and every option has one flag."""

import json
import shlex
import typing
from enum import Enum

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from configs import comparison_config, evaluate_config, landscape_config, search_config, two_model_config
from forgetless.cli import make_app
from forgetless.comparison import ComparisonConfig
from forgetless.configuration import Options, hints, part_in
from forgetless.errors import InputError
from forgetless.evaluation.config import EvaluateConfig
from forgetless.experiments import load_config
from forgetless.experiments.landscape import LandscapeConfig
from forgetless.experiments.two_model import TwoModelConfig
from forgetless.options import command_line, command_options, tables_of
from forgetless.protection import PROTECTIONS
from forgetless.runs import RunFolder
from forgetless.search import SearchConfig

READERS = {
    "two-model": (TwoModelConfig, two_model_config),
    "landscape": (LandscapeConfig, landscape_config),
    "search": (SearchConfig, search_config),
    "compare": (ComparisonConfig, comparison_config),
    "evaluate": (EvaluateConfig, evaluate_config),
}
ALL = " ".join(kind.name for kind in PROTECTIONS.values() if not kind.replaces_layers)
COMMANDS = [
    "two-model",
    "two-model --protection wpl none --wpl.strength 1 2 0.5 --seeds 1 --first-seed 4",
    f"two-model --protection {ALL} --l2.strength 3 --coupling.num-rows 8 --wpl-tolerance.strength 0.5",
    "two-model --protection ewc --wiring prefix --shared 4 1 --convergence 0.5 1 --optimizer sgd --momentum 0",
    "two-model --data 'a folder' --data-dir '$HOME' --fisher exact --activation tanh --max-gradient-norm 2.5",
    "landscape",
    "landscape --protection none wpl --wpl.strength 1 10 --shared 2 --convergence 0.5 --points 5 --rise 0.5 --images 9",
    "landscape --data mnist --optimizer sgd --ewc.strength 3 --evaluate-every 75 --width 20 --seeds 1",
    "search",
    "search --protection none matched-lr wpl --wpl.rule merge --wpl.damping 1e-3 --protect-from 3 --protect cell",
    "search --space nas201 --nas201.units 3 --nas201.operations none skip_connect --images.augment --strategy gdas",
    "search --space cell --strategy nao --data cifar10 --importance held-out --fisher exact --batch-size 8",
    "search --strategy random --final-samples 5 --threads 2 --checkpoint-every 90s",
    "search --text.independent --text.num-steps 5 --optimizer adamw --learning-rate 1e-5 --single --workers 3",
    f"search --protection {ALL} --nsas.archive-size 4 --interference-every 2 --interference-models 3",
    "search --learning-rate-schedule exponential --learning-rate-from 3 --average tail --sampling adjacent",
    "compare",
    "compare --strategy enas random --enas.temperature 2 --protection wpl none --wpl.strength 7 --reference wpl",
    "compare --space nas201 --truth nas201-digits --column test_error --seeds 3 --allow-few-seeds --workers 1",
    "compare --truth nas201-digits --final-batches 0 --strategy uniform --cluster local --trainings there",
    "compare --space cell --strategy evolution nao --epochs 3 --top 2 --estimates 0",
    "evaluate",
    "evaluate --truth numbers.csv --column error --top 3 --data-dir there --workers 2",
]


def read(words):
    """Command and configuration of the words of a command."""
    command, *rest = shlex.split(words)
    return command, READERS[command][1](shlex.join(rest))


def expect_same(command, config):
    """A configuration comes back from its command, from its tables, and from them as JSON."""
    kind, parsed = READERS[command]
    line = command_line(config, command)
    program, said, *rest = shlex.split(line)
    assert (program, said) == ("forgetless", command)
    assert (parsed(shlex.join(rest)) if rest else kind.from_dict({})) == config, line
    assert kind.from_dict(config.to_dict()) == config
    assert kind.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("words", COMMANDS)
def test_the_command_of_a_configuration_makes_it_again(words):
    command, config = read(words)
    expect_same(command, config)


@pytest.mark.parametrize("words", [words for words in COMMANDS if not words.startswith("evaluate")])
def test_a_configuration_is_read_back_from_its_file(tmp_path, words):
    command, config = read(words)
    folder = RunFolder.create(tmp_path / "run", {"experiment": command, **config.to_dict()})
    assert load_config(folder) == config
    assert load_config(RunFolder(folder.path)) == config


VALUES = {
    int: st.integers(1, 9),
    float: st.floats(1e-4, 1.0),
    str: st.sampled_from(["digits", "a b", "$x", "10min"]),
    bool: st.just(True),
}


def value_of(kind):
    """Values of the type of an option."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(value_of(arguments[0]), min_size=1, max_size=3, unique=True).map(tuple)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if arguments:
        return st.one_of(map(value_of, arguments))
    return st.sampled_from(list(kind)) if issubclass(kind, Enum) else VALUES[kind]


@settings(deadline=None, max_examples=settings.default.max_examples // 2)  # each reads a whole command
@given(data=st.data())
@pytest.mark.parametrize("command", READERS)
def test_any_options_come_back_from_the_command(command, data):
    kind = READERS[command][0]
    options = command_options(kind)
    choices = {option.path: option for option in options if option.flag in {"--space", "--strategy", "--protection"}}
    given_ = {path: data.draw(value_of(option.kind)) for path, option in choices.items() if data.draw(st.booleans())}
    names = {name for value in given_.values() for name in (value if isinstance(value, tuple) else (value,))}
    others = [o for o in options if o.path not in choices and (o.owner is None or o.owner in names)]
    for option in data.draw(st.lists(st.sampled_from(others), max_size=6, unique=True)):
        given_[option.path] = data.draw(value_of(option.kind), label=option.flag)
    try:
        config = kind.from_dict(tables_of(kind, given_))
    except InputError:  # options that do not go together
        assume(False)
    expect_same(command, config)


@pytest.mark.parametrize("command", READERS)
def test_every_flag_is_unique(command):
    app = make_app([command, "--help"])
    arguments = app[command].assemble_argument_collection(parse_docstring=True)
    flags = [name for argument in arguments for name in argument.names if name.startswith("-")]
    assert len(set(flags)) == len(flags)
    assert {option.flag for option in command_options(READERS[command][0])} <= set(flags)


@pytest.mark.parametrize("command", READERS)
def test_every_option_is_one_field(command):
    options = command_options(READERS[command][0])
    assert len({option.path for option in options}) == len(options)


@pytest.mark.parametrize("command", READERS)
def test_every_field_of_a_configuration_has_an_option(command):
    """And every field of every method that can be chosen; only a kind of task is not: it follows from the space."""
    kind = READERS[command][0]

    def fields_of(part, path):
        for name, hint in hints(part).items():
            below, here = part_in(hint), f"{path}{name}"
            if here in kind.unlisted:
                continue
            if below is None:
                yield here
            elif issubclass(below, Options):
                yield from [here] * (here not in {"task", "search.task"})
                for each in below.registry.values():
                    yield from fields_of(each.Options, f"{here}.{each.name}.")
            else:
                yield from fields_of(below, f"{here}.")

    assert [option.path for option in command_options(kind)] == list(fields_of(kind, ""))
