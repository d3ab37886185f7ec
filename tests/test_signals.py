"""Ctrl-C, SIGTERM and SIGHUP: everything ends soon, is stored, and says how to go on. tests/slow has all of them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from forgetless import interruption
from forgetless.runs import RunFolder
from processes import LONG, Command, answer_signals, is_running, is_working

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture
def start(tmp_path):
    commands = []

    def starting(name):
        commands.append(Command(LONG[name], tmp_path))
        return commands[-1]

    yield starting
    for command in commands:
        command.kill()


def test_one_signal_ends_every_process_and_says_how_to_go_on(start, tmp_path):
    command = start("compare")
    command.wait_for(is_working("compare", tmp_path))
    command.send(signal.SIGHUP, "group")
    assert command.seconds_until_gone() < 5
    code, said = command.end()
    assert code == 128 + signal.SIGHUP
    assert said.splitlines() == ["forgetless: interrupted; go on with: forgetless resume run"]
    with RunFolder(tmp_path / "run").writing():
        pass


def test_a_second_signal_ends_it_at_once(start, tmp_path):
    command = start("search")
    command.wait_for(is_working("search", tmp_path))
    command.send(signal.SIGINT, "group")
    time.sleep(0.05)
    command.send(signal.SIGINT, "group")
    assert command.seconds_until_gone() < 1
    code, said = command.end()
    assert code == 130
    assert said.splitlines() == ["forgetless: interrupted; go on with: forgetless resume run"]


def run(program):
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        preexec_fn=answer_signals,
    )


def test_a_loop_that_asks_stores_what_it_has_and_one_that_does_not_is_interrupted():
    program = """
import os, signal, time
from forgetless import interruption
interruption.GRACE_SECONDS = 0.3
for asks in (True, False):
    stored = False
    try:
        with interruption.handled():
            os.kill(os.getpid(), signal.SIGTERM)
            started = time.monotonic()
            while True:
                if asks and interruption.is_asked():
                    stored = True
                    interruption.stop_if_asked()
                time.sleep(0.01)
    except interruption.Interrupted as error:
        print(stored, error.exit_code, time.monotonic() - started < 0.2)
print(interruption.is_asked(), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""
    assert run(program).stdout.splitlines() == ["True 143 True", "False 143 False", "False True"]


def test_a_process_that_nothing_ends_is_ended():
    """A signal handler waits for a long call of a library to end; the watchdog does not."""
    program = """
import os, signal, time
from forgetless import interruption
interruption.GRACE_SECONDS, interruption.LIMIT_SECONDS = 0.1, 0.5
with interruption.handled(), interruption.last_words(lambda: print("last words", flush=True)):
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        try:
            time.sleep(0.01)
        except KeyboardInterrupt:
            pass
"""
    ended = run(program)
    assert (ended.returncode, ended.stdout) == (143, "last words\n")


def test_a_second_signal_waits_for_the_last_words():
    """Which may hold a lock, as those on a terminal do: said by another thread, they would be lost."""
    program = """
import os, signal, threading, time
from forgetless import interruption
lock = threading.Lock()
def say():
    with lock:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        print("last words", flush=True)
with interruption.handled(), interruption.last_words(say):
    os.kill(os.getpid(), signal.SIGINT)
    interruption.stop_if_asked()
"""
    ended = run(program)
    assert (ended.returncode, ended.stdout) == (130, "last words\n")


def test_a_second_signal_is_heard_during_a_long_call_of_a_library():
    program = """
import hashlib, os, signal, threading, time
from forgetless import interruption
interruption.GRACE_SECONDS = interruption.LIMIT_SECONDS = 60

def twice():
    for _ in range(2):
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

with interruption.handled():
    threading.Thread(target=twice).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
    assert run(program).returncode == 143


def test_the_watch_ends_though_a_fork_lives():
    program = """
import os, time
from forgetless import interruption
with interruption.handled():
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
os.kill(pid, 9)
print("done")
"""
    assert run(program).stdout == "done\n"


def test_last_words_that_nobody_reads_do_not_keep_a_process():
    program = """
import os, signal, sys, threading
from forgetless import interruption
reader, writer = os.pipe()
sys.stderr = open(writer, "w")

def fill():
    while True:
        print("x" * 1000, file=sys.stderr, flush=True)

def say():
    print("last words", file=sys.stderr)

with interruption.handled(), interruption.last_words(say):
    threading.Thread(target=fill, daemon=True).start()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
"""
    assert run(program).returncode == 143


def test_last_words_are_said_once():
    program = """
import os, signal
from forgetless import interruption
with interruption.handled(), interruption.last_words(lambda: print("last words", flush=True)):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
"""
    for _ in range(5):
        assert run(program).stdout == "last words\n"


def test_a_closed_terminal_that_is_told_twice_is_one_signal():
    """By the shell, and by the kernel."""
    program = """
import os, signal
from forgetless import interruption
try:
    with interruption.handled():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
        interruption.stop_if_asked()
except interruption.Interrupted as error:
    print("stored", error.exit_code)
"""
    assert run(program).stdout == "stored 129\n"


def test_a_process_whose_name_is_no_text_is_no_obstacle():
    program = """
import ctypes, os, signal, time
from forgetless import interruption
pid = os.fork()
if pid == 0:
    ctypes.CDLL(None).prctl(15, b"\\xff\\xfe", 0, 0, 0)
    time.sleep(60)
    os._exit(0)
time.sleep(0.2)
try:
    with interruption.handled():
        os.kill(os.getpid(), signal.SIGTERM)
        interruption.stop_if_asked()
except interruption.Interrupted as error:
    print(error.exit_code, len(interruption._descendants()) > 0)
os.kill(pid, 9)
"""
    assert run(program).stdout == "143 True\n"


def test_an_alarm_at_the_end_leaves_nothing_behind():
    program = """
import os, signal, time
from forgetless import interruption
before = signal.getsignal(signal.SIGTERM)
for trial in range(200):
    interruption.GRACE_SECONDS = 0.001 + trial * 1e-6
    try:
        with interruption.handled():
            os.kill(os.getpid(), signal.SIGTERM)
            start = time.monotonic()
            while time.monotonic() - start < 0.001:
                pass
    except interruption.Interrupted:
        pass
    assert not interruption._State.is_handled and signal.getsignal(signal.SIGTERM) is before
print("whole")
"""
    assert run(program).stdout == "whole\n"


def test_signals_to_a_fork_are_not_its_parents():
    program = """
import os, signal, time
from forgetless import interruption
with interruption.handled():
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    for _ in range(2):
        time.sleep(0.2)
        os.kill(pid, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run(program).stdout == "143\n"


def test_what_its_children_started_is_ended_though_they_are_gone():
    """As Ray's workers when the signal ended Ray."""
    program = """
import os, signal, subprocess
from forgetless import interruption
child = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), flush=True)
with interruption.handled():
    os.kill(os.getpid(), signal.SIGTERM)
    child.kill()
    child.wait()
    os.kill(os.getpid(), signal.SIGTERM)
"""
    ended = run(program)
    assert ended.returncode == 143
    deadline = time.monotonic() + 20  # a killed process ends when the kernel comes to it; of itself it would take 60 s
    while is_running(int(ended.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(ended.stdout))


def test_a_signal_that_is_ignored_stays_ignored():
    """As SIGHUP under nohup, and Ctrl-C in the background of a script."""
    program = """
import os, signal
from forgetless import interruption
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with interruption.handled():
    os.kill(os.getpid(), signal.SIGHUP)
    print(interruption.is_asked())
"""
    assert run(program).stdout == "False\n"


def test_an_import_is_not_torn_apart(tmp_path):
    """PyTorch's modules run Python from C++, where an exception would abort the process."""
    (tmp_path / "slow_module.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "end = time.monotonic() + 0.4\n"
        "while time.monotonic() < end:\n"
        "    time.sleep(0.01)\n"
        "print('imported', flush=True)\n"
    )
    program = f"""
import sys, time
from forgetless import interruption
interruption.GRACE_SECONDS = 0.1
sys.path.append({str(tmp_path)!r})
try:
    with interruption.handled(to_the_end=True):
        import slow_module
        time.sleep(10)
except interruption.Interrupted as error:
    print(error.exit_code)
"""
    assert run(program).stdout == "imported\n130\n"


def test_a_signal_while_python_cleans_up_ends_the_process_without_a_traceback():
    program = """
import atexit, os, signal
from forgetless import interruption
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
with interruption.handled(to_the_end=True):
    pass
"""
    ended = run(program)
    assert (ended.returncode, ended.stderr) == (130, "")


def test_handlers_are_nobodys_but_the_command_lines():
    before = signal.getsignal(signal.SIGTERM)
    with interruption.handled():
        assert signal.getsignal(signal.SIGTERM) is not before
        with interruption.handled():
            pass
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert not interruption.is_asked()


def test_a_signal_while_the_program_is_still_loading(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "forgetless", *LONG["two-model"]],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        preexec_fn=answer_signals,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
