"""Real processes of the command line: started, stopped by signals, and looked for afterwards."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

MARK = "FORGETLESS_TEST_MARK"

TINY = (
    *("--space", "nas201", "--nas201.units", "2", "--models-per-epoch", "2", "--batches-per-model", "2"),
    *("--strategy-steps", "1", "--samples-per-step", "2", "--final-samples", "2", "--batch-size", "16"),
)
TINY_SEARCH = (*TINY, "--epochs", "200")
LONG = {
    "two-model": ["two-model", "--seeds", "200", "--iterations", "200", "--iterations-a", "200", "--output", "run"],
    "search": ["search", *TINY_SEARCH, "--output", "run"],
    "compare": [
        *("compare", *TINY_SEARCH, "--strategy", "enas", "uniform", "--protection", "none", "--seeds", "2"),
        *(
            "--allow-few-seeds",
            "--nas201.operations",
            "none",
            "skip_connect",
            "nor_conv_3x3",
            "--truth",
            "nas201-digits",
        ),
        *("--workers", "2", "--output", "run"),
    ],
    "benchmark": ["benchmark", "nas201-digits", "--workers", "2", "--trainings", "trainings", "--output", "made.csv"],
    "evaluate": [
        *("evaluate", "run", "--training-seeds", "1000", "--batches", "40", "--estimates", "2", "--workers", "2"),
        *("--trainings", "trainings"),
    ],
}
"""A command of each kind that lasts for minutes. `evaluate` needs a folder that FINISHED made."""
FINISHED = ["search", *TINY, "--epochs", "1", "--protection", "none", "--final-batches", "2", "--output", "run"]


class Command:
    """A command in a session of its own, so that a signal to its group is that of a terminal.

    Args:
        arguments: After the program's name.
        folder: Where it runs.
        launcher: What starts it; Python's words.
    """

    def __init__(self, arguments, folder, launcher=()):
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "forgetless", *arguments],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=answer_signals,  # even if the tests run in the background, where they are ignored
            env={**os.environ, MARK: self.mark, "COLUMNS": "80", "OMP_NUM_THREADS": "1"},
        )

    def wait_for(self, is_there, seconds=60.0):
        """Until something has happened."""
        deadline = time.monotonic() + seconds
        while not is_there():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def send(self, number, to):
        """A signal to the process alone, or to its whole group."""
        if to == "group":
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def seconds_until_gone(self, most=30.0):
        """How long it takes until no process of it is left, whoever its parent is now."""
        started = time.monotonic()
        while living(self.mark):
            if time.monotonic() - started > most:
                for pid in living(self.mark):
                    os.kill(pid, signal.SIGKILL)
                return float("inf")
            self.process.poll()
            time.sleep(0.02)
        return time.monotonic() - started

    def end(self):
        """Exit code and what it said."""
        error = self.process.communicate(timeout=20)[1]
        return self.process.returncode, error

    def kill(self):
        """Whatever happens in a test, nothing of it lives on."""
        for pid in living(self.mark):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process.stderr.close()


def answer_signals():
    """In a new process: what may be ignored in its parent is not."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def is_running(pid):
    """Whether there is such a process, and not what a parent has still to be told of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def living(mark):
    """The processes that carry a mark in their environment, zombies left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found += [int(folder.name)] * is_running(int(folder.name))
        except (OSError, ProcessLookupError):
            continue
    return found


def is_working(command, folder):
    """Whether a command has begun with what it repeats."""
    patterns = {
        "benchmark": "trainings/*.json",
        "evaluate": "trainings/*.json",
        "compare": "run/*/*/metrics.jsonl",
    }
    pattern = patterns.get(command, "run/metrics.jsonl")
    return lambda: sum(path.stat().st_size > 0 for path in folder.glob(pattern)) >= 1
