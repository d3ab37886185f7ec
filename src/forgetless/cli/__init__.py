"""The command line: arguments to calls, and nothing else. A module per command, imported when it is called.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 done but for what failed
twice (each is named on standard error), 2 bad input (one sentence says what), 130, 143 or 129 stopped by Ctrl-C,
SIGTERM or SIGHUP (one line says how to go on).
"""

import contextlib
import importlib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from typing import get_args

from cyclopts import App, ArgumentCollection, CoercionError, CycloptsError, Parameter

from forgetless import __version__, interruption, plugins, ranks
from forgetless.cli.terminal import complain
from forgetless.errors import InputError

_COMMANDS = {
    "two-model": "Train B on layers of A, and follow what A loses (the paper's figures 1 and 3).",
    "landscape": "Draw where B's training moves shared weights, over A's and B's loss (figure 2).",
    "fine-tune": "Fine-tune a language model on new text, and measure what it loses of the old.",
    "search": "Search an architecture on shared weights, and measure forgetting (figure 4).",
    "compare": "Compare protections, strategies and seeds on one space, in one ranked table.",
    "resume": "Go on with an interrupted run, to the same numbers as if it had never stopped.",
    "interference": "Measure which architecture of a finished search overwrites which.",
    "evaluate": "Is what finished searches select better than architectures drawn at random?",
    "benchmark": "Make a shipped benchmark again: every architecture of a space, from scratch.",
    "report": "Make one HTML page of any number of runs.",
}
"""What the list of commands says of each: the first line of its help."""


def _expect_whole_numbers(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse 1.5 where an int is asked for: cyclopts rounds it in silence."""
    for argument in arguments:
        kinds = set(get_args(argument.hint) or (argument.hint,))
        if int not in kinds or float in kinds:
            continue
        for token in argument.tokens:
            with contextlib.suppress(ValueError):
                if not float(token.value).is_integer():
                    raise CoercionError(
                        msg=f"Expected {argument.name} to be a whole number, but got {token.value}.", argument=argument
                    )


_CONFIGURED = frozenset({"two-model", "landscape", "fine-tune", "search", "compare", "evaluate"})
"""Commands that have an option for each field of a configuration."""

_TRAINS_TOGETHER = frozenset({"search", "evaluate", "resume"})
"""Commands that several processes of torchrun do together; `resume` refuses other runs than searches."""

_HELP_ALL, _PLUGIN = "--help-all", "--plugin"


def make_app(words: Sequence[str]) -> App:
    """The command line; the options of a command are made where the command is called.

    Args:
        words: After the program's name. They name the command, and the plugins that add to its options.

    Raises:
        InputError: If a plugin cannot be loaded.
    """
    app = App(
        name="forgetless",
        config=_expect_whole_numbers,
        help="Measure and prevent forgetting in networks that share weights.",
        version=__version__,
        suppress_keyboard_interrupt=False,  # main has an exit code for each signal
        default_parameter=Parameter(consume_multiple=True, negative=(), json_list=False),
    )
    called = _called(words)
    plugins.load_files(_plugins_in(words))
    for place, (name, text) in enumerate(_COMMANDS.items()):
        module = f"{__name__}.{name.replace('-', '_')}"
        function = f"{name.replace('-', '_')}_command"
        if name == called and name in _CONFIGURED:
            from forgetless.cli.configured import configured

            command = configured(getattr(importlib.import_module(module), function), show_all=_HELP_ALL in words)
            more = "" if _HELP_ALL in words else f"\n\n`forgetless {name} {_HELP_ALL}` shows every option, by part."
            app.command(command, name=name, help=text + more, sort_key=place)
        else:
            app.command(f"{module}:{function}", name=name, help=text, sort_key=place)
    return app


def _called(words: Sequence[str]) -> str | None:
    return next((word for word in words if not word.startswith("-")), None)


def _plugins_in(words: Sequence[str]) -> list[str]:
    """What follows `--plugin`, up to the next option."""
    found: list[str] = []
    for place, word in enumerate(words):
        if word == _PLUGIN:
            found += itertools.takewhile(lambda each: not each.startswith("-"), words[place + 1 :])
        elif word.startswith(f"{_PLUGIN}="):
            found.append(word.partition("=")[2])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of this process if None.

    Returns:
        The exit code: 0 done, 1 done but for what failed, 2 bad input, 130, 143 or 129 stopped by a signal.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with interruption.handled():
            try:
                if _would_repeat(_called(words)):
                    return 2
                with ranks.joined():
                    return _run(words)
            except InputError as error:
                if ranks.is_first() or not isinstance(error, ranks.LostError):
                    complain(str(error))
                return 2
    except interruption.Interrupted as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _would_repeat(command: str | None) -> bool:
    """Whether several processes would do the same in the same folder; the first one refuses it."""
    if command is None or command in _TRAINS_TOGETHER or ranks.launched() == 1:
        return False
    if ranks.is_first():
        complain(
            f"Expected one process for {command}, but torchrun has started {ranks.launched()}. Leave torchrun out; of "
            f"the commands only {', '.join(sorted(_TRAINS_TOGETHER))} train one model in several processes."
        )
    return True


def _run(words: list[str]) -> int:
    """What the command says; or, in another process than the first, what that one asks for."""
    if not ranks.is_first():
        return _call(ranks.follow)
    app = make_app(words)  # imports the command
    words = ["--help" if word == _HELP_ALL else word for word in words]
    with contextlib.suppress(CycloptsError):  # which the call tells
        app.parse_commands(words)  # an error here is one of the installation
    interruption.stop_if_asked()
    code = _call(lambda: app(words, exit_on_error=False, print_error=False, result_action="return_value"))
    if code != 2:  # else the others end because this one does
        ranks.dismiss()
    return code


def _call(command: Callable[[], int | None]) -> int:
    try:
        code = command()
    except InputError as error:
        complain(str(error))
        return 2
    except CycloptsError as error:
        complain(_one_sentence(error))
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = f"to read and write {error.filename}" if error.filename is not None else "to read and write files"
        complain(f"Expected to be able {what}, but got: {error.strerror or error}.")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        complain(
            "Expected sizes that fit the memory, but it ran out. Choose smaller models or batches, or fewer workers."
        )
        return 2
    return code or 0


def _is_out_of_memory(error: Exception) -> bool:
    """Also where the CPU's allocator of PyTorch says so, whose error has no type of its own."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool({"MemoryError", "OutOfMemoryError"} & kinds) or "can't allocate memory" in str(error)


def _one_sentence(error: CycloptsError) -> str:
    """Cyclopts's own message; a bad value that our configuration refused is told in the configuration's words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())
