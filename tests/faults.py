"""The command line in a forked process that a fault strikes: killed, or refused the disk, at any file operation.

A fork costs milliseconds where a new process imports PyTorch for seconds, so that thousands of faults fit into minutes.
"""

import contextlib
import functools
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from forgetless import cli
from forgetless.experiments import load_result
from forgetless.report import page
from forgetless.runs import RunFolder, read_sealed

TINY_SEARCH = [
    *(
        "--space",
        "nas201",
        "--nas201.units",
        "2",
        "--epochs",
        "2",
        "--models-per-epoch",
        "2",
        "--batches-per-model",
        "2",
    ),
    *("--strategy-steps", "1", "--samples-per-step", "1", "--final-samples", "2", "--batch-size", "16"),
    *("--evaluation-batches", "1"),
]
SMALL_SPACE = ["--nas201.operations", "none", "skip_connect", "nor_conv_3x3"]
SEARCH = ["search", *TINY_SEARCH, *SMALL_SPACE, "--final-batches", "2", "--checkpoint-every", "0", "--output", "run"]
COMMANDS = {
    "two-model": [
        *("two-model", "--seeds", "2", "--iterations", "4", "--iterations-a", "4", "--evaluate-every", "4"),
        *("--width", "8", "--models", "3", "--protection", "none", "wpl", "--checkpoint-every", "0", "--output", "run"),
    ],
    "search": SEARCH,
    "compare": [
        *("compare", *TINY_SEARCH, *SMALL_SPACE, "--strategy", "uniform", "random", "--protection", "none"),
        *("--seeds", "1", "--allow-few-seeds", "--truth", "nas201-digits", "--workers", "1"),
        *("--checkpoint-every", "0", "--estimates", "2", "--baselines", "2", "--top", "1", "--output", "run"),
    ],
    "evaluate": [
        *("evaluate", "run", "--workers", "1", "--trainings", "trainings", "--checkpoint-every", "0"),
        *("--estimates", "2", "--top", "1", "--training-seeds", "1", "--batches", "2"),
    ],
}
"""Small runs that store whatever they can."""

_COUNTED = "\0operations: "

_CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}


@dataclass
class Ended:
    """How a forked command ended.

    Attributes:
        code: Exit code; minus the signal's number where one ended it.
        said: Its standard error.
        operations: File operations below its folder.
    """

    code: int
    said: str
    operations: int

    @property
    def is_refusal(self):
        """Whether it ended in sentences that say what is not done."""
        lines = self.said.strip().splitlines()
        return self.code in (1, 2) and bool(lines) and all(line.startswith("forgetless: ") for line in lines)


class _Fault:
    """Counts file operations below a folder, and does something at one of them."""

    def __init__(self, root, at, strike):
        self.root, self.at, self.strike, self.count = str(root), at, strike, 0

    def __call__(self, event, arguments):
        is_write = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not is_write and event not in _CHANGING:
            return
        paths = [os.fspath(a) for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
        if not any(os.path.abspath(os.fsdecode(path)).startswith(self.root) for path in paths):  # noqa: PTH100
            return
        self.count += 1
        if self.count == self.at:
            self.strike()


def kill():
    """As a power cut: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse():
    """As a full disk."""
    raise OSError(28, "No space left on device")


class _Server:
    """A process with one thread, which alone may fork safely: it imports everything once, and forks a command."""

    def __init__(self):
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **one, "COLUMNS": "80"},
        )

    def ask(self, **request):
        """Send a request, return the answer."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@functools.cache
def _server():
    return _Server()


def run_forked(arguments, folder, *, at=0, strike="kill", after=None, most_bytes=None):
    """The command line in a forked process, to its end.

    Args:
        arguments: Its words.
        folder: Where it runs.
        at: At which file operation, from 1, something strikes; never if 0.
        strike: `kill`, as a power cut, or `refuse`, as a full disk.
        after: Kill it after so many seconds.
        most_bytes: No file may grow beyond.
    """
    started = start_forked(arguments, folder, at=at, strike=strike, most_bytes=most_bytes)
    return ended(started, after=after)


def start_forked(arguments, folder, *, at=0, strike="kill", most_bytes=None):
    """The same, not waited for; `ended` does."""
    request = {"arguments": arguments, "folder": str(folder), "at": at, "strike": strike, "most_bytes": most_bytes}
    return _server().ask(begin=request)["pid"]


def ended(started, after=None):
    """Wait for a forked command.

    Args:
        started: From `start_forked`.
        after: Kill it after so many seconds.
    """
    answer = _server().ask(end=started, after=after)
    said, counted, count = answer["said"].rpartition(_COUNTED)
    return Ended(answer["code"], said if counted else count, int(count) if counted else 0)


def serve():
    """Answer requests until the other side is gone."""
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, io.StringIO()
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):  # what is imported once is not in each fork
        for command in ("search", "evaluate"):
            assert cli.main(COMMANDS[command]) == 0
    pipes = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "begin" in request:
            ours, theirs = os.pipe()  # which no limit on files concerns
            pid = os.fork()
            if pid == 0:
                _be_the_command(**request["begin"], log=theirs)
            os.close(theirs)
            pipes[pid] = ours
            answers.write(json.dumps({"pid": pid}) + "\n")
            answers.flush()
            continue
        if request["after"] is not None:
            time.sleep(request["after"])
            os.kill(request["end"], signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(request["end"], 0)[1])
        with os.fdopen(pipes.pop(request["end"]), "rb") as pipe:
            said = pipe.read().decode(errors="replace")
        answers.write(json.dumps({"code": code, "said": said}) + "\n")
        answers.flush()


def _be_the_command(arguments, folder, at, strike, most_bytes, log):
    code = 70
    fault = _Fault(folder, at, {"kill": kill, "refuse": refuse}[strike])
    try:
        os.setsid()
        os.chdir(folder)
        with Path(os.devnull).open("r+") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(nothing.fileno(), 1)
        os.dup2(log, 2)
        os.close(log)
        sys.stdout = io.StringIO()
        page.report_html = _plain_page
        sys.addaudithook(fault)
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
        code = cli.main(arguments)
        fault.at = 0
    except BaseException:
        traceback.print_exc()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        sys.stderr.flush()
        os.write(2, f"{_COUNTED}{fault.count}".encode())
        os._exit(code)


def _plain_page(folders):
    """A report without pictures, which take most of the time of a small run; it is never read."""
    return f"<!doctype html>{[load_result(folder).summary() for folder in folders]}"


def begin(command, folder):
    """What a command needs to be there before it starts: `evaluate` a finished search."""
    folder.mkdir(parents=True)
    if command == "evaluate":
        assert run_forked(SEARCH, folder).code == 0


def outcome(command, folder):
    """All that a command found out, without times and places."""
    if command == "evaluate":
        return _without_time(read_sealed(folder / "run" / "evaluation.json"))
    if command == "compare":
        found = {}
        for path in sorted((folder / "run").glob("*/*/config.toml")):
            below = path.parent
            found[str(below.relative_to(folder))] = [
                _without_time(RunFolder(below).records()),
                _without_time(read_sealed(below / "evaluation.json", RunFolder(below).header.digest)),
            ]
        return found
    return _without_time(RunFolder(folder / "run").records())


def _without_time(value):
    if isinstance(value, dict):
        timed = {"seconds", "digest", "environment", "wall_seconds", "created"}
        return {name: _without_time(each) for name, each in value.items() if name not in timed}
    return [_without_time(each) for each in value] if isinstance(value, list) else value


def go_on(command, folder):
    """How a user goes on after a fault: with `resume`, or where there is no run yet, or it is no run, once more."""
    again = COMMANDS[command]
    if command == "evaluate" or not (folder / "run" / "config.toml").exists():
        return run_forked(again, folder)
    return run_forked(["resume", "run"], folder)


def judged(command, folder, whole):
    """(`identical`, `warned` or `wrong`, why) after going on.

    Args:
        command: Which.
        folder: Where it was struck.
        whole: The outcome of one that never was.
    """
    last = go_on(command, folder)
    if last.code != 0:
        return "wrong", f"going on ended with {last.code}: {last.said}"
    found = outcome(command, folder)
    if found != whole:
        return "wrong", f"another result: {json.dumps(found)[:500]}"
    # The store of trainings has many writers: there it is removed when it is an hour old.
    left = [str(path) for path in folder.rglob("*.part")] if command != "evaluate" else []
    if left:
        return "wrong", f"left behind: {left}"
    return ("warned", last.said) if last.said.strip() else ("identical", "")


def fresh(template, folder):
    """A copy of a prepared folder."""
    shutil.copytree(template, folder)
    return folder


if __name__ == "__main__":
    serve()
