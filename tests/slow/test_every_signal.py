"""Every signal, to every command that lasts, at random moments; each must end, leave no process, and go on."""

import random
import shutil
import signal
import time

import pytest
from reliability import Tally, report

from forgetless.cli import main
from processes import FINISHED, LONG, Command, is_working

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RAY = [*LONG["benchmark"], "--cluster", "local"]
COMMANDS = {**LONG, "benchmark on Ray": RAY}
LIMITS = {"one": 5.0, "two": 1.0, "SIGKILL": 10.0}
SIGKILL_ON_RAY = 90.0  # two of Ray's own processes took 50 to 65 s to notice that nobody is there any more


def attempt(name, number, to, how, folder):
    """What went wrong; nothing if nothing did."""
    command = Command(COMMANDS[name], folder)
    try:
        command.wait_for(is_working(name.split()[0], folder), seconds=120)
        time.sleep(random.uniform(0, 1.5))
        command.send(number, to)
        if how == "two":
            # A terminal that is closed may be told of twice within 0.3 s, which is one signal.
            time.sleep(random.uniform(0.35, 0.6) if number == signal.SIGHUP else random.uniform(0.02, 0.3))
            command.send(number, to)
        limit = LIMITS["SIGKILL" if number == signal.SIGKILL else how]
        if "Ray" in name and number == signal.SIGKILL:
            limit = SIGKILL_ON_RAY
        seconds = command.seconds_until_gone(limit + 10)
        if seconds > limit:
            return f"lived for {seconds:.1f} s"
        code, said = command.end()
        if number == signal.SIGKILL:
            return "" if code == -signal.SIGKILL else f"exit code {code}"
        # While the interpreter ends, a second one meets the system's own answer; a shell tells both as 128 + number.
        if code != 128 + number and not (how == "two" and code == -number):
            return f"exit code {code}: {said}"
        lines = [line for line in said.splitlines() if line]
        if "Traceback" in said or len(lines) != 1 or "interrupted; " not in lines[0]:
            return said
        return ""
    finally:
        command.kill()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished search, to be evaluated."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(FINISHED) == 0
    return folder


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_signal_ends_every_process(name, number, tmp_path, request):
    if "Ray" in name:
        pytest.importorskip("ray", reason="needs the extra ray")
    random.seed(f"{name} {number.name}")
    tally = Tally()
    trials = [(to, how) for to in ("process", "group") for how in ("one", "two")]
    for trial, (to, how) in enumerate(trials if number in SIGNALS else [("process", "one")]):
        folder = tmp_path / str(trial)
        if name == "evaluate":
            shutil.copytree(request.getfixturevalue("finished"), folder)
        else:
            folder.mkdir()
        wrong = attempt(name, number, to, how, folder)
        kind = f"{number.name} to the {to}, {how}"
        tally.add(kind, "wrong" if wrong else "identical", wrong)
    report(f"signals: {name}, part {number.name}", tally.counts)
    assert tally.wrong == []
