"""Real server and worker processes for tests: started here, ended here, and never outliving the test run.

Decides how a process is started, tied to the life of the test run, signalled and reaped, and what happens when
its program is not installed. Leaves to `servers`, `rabbit`, `workers` and `local_engine` which programs to run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent

# The kernel sends the parent-death signal when the *thread* that started the child ends (Source: prctl(2)). Tests
# start and restart servers from threads that end at once, so one thread that lives as long as the run starts all.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="process-starter")

# What a child runs first: tie its life to ours, then become the program. A preexec_fn would do the same, but is unsafe
# (and from Python 3.12 on warned about) in a process that has threads.
_TIE = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the test run ended before its server could start")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def unavailable(reason: str) -> NoReturn:
    """Skip the test for want of a program; in CI (`CI=true`) that is a failure."""
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(f"{reason} (a skip outside CI)", pytrace=False)
    pytest.skip(reason)


class ReservedPort:
    """A free loopback port that stays ours from now until `release`, also while no server listens on it.

    On Linux a bound socket that never listens keeps everybody else away, while a server that sets `SO_REUSEADDR`, as
    they all do, may still bind the port. Elsewhere the port is only likely to be free.
    """

    def __init__(self) -> None:
        self._guard = socket.socket()
        self._guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._guard.bind(("127.0.0.1", 0))
        self.number: int = self._guard.getsockname()[1]
        if sys.platform != "linux":
            self.release()

    def release(self) -> None:
        """Give the port back. A second call does nothing."""
        self._guard.close()


class Process:
    """One operating-system process with a log file, in a session of its own, that dies with the test run.

    Args:
        command: Program and arguments. The program is looked up in the PATH of `env`.
        env: The whole environment. None hands on ours.
        cwd: Working directory.
        log: Where standard output and error are appended.

    Concurrency: start, signal and stop from any thread, but not at the same time.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self._command = list(command)
        self._env = None if env is None else dict(env)
        self._cwd = cwd
        self._popen: subprocess.Popen[bytes] | None = None
        self.log = log

    def __repr__(self) -> str:
        state = "running" if self.running else f"exited {self.returncode}" if self._popen else "not started"
        return f"<{type(self).__name__} {Path(self._command[0]).name} {state}>"

    @property
    def pid(self) -> int:
        """Process id, also after the end. Raises `RuntimeError` if never started."""
        if self._popen is None:
            raise RuntimeError(f"{self!r}: start it first")
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        return None if self._popen is None else self._popen.poll()

    def start(self) -> None:
        """Start the process, or start it again after it has ended."""
        if self.running:
            raise RuntimeError(f"{self!r}: already running")
        self._popen = _starter.submit(self._start).result()

    def _start(self) -> subprocess.Popen[bytes]:
        tie = [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid())] if sys.platform == "linux" else []
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*tie, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._cwd,
                env=self._env,
                start_new_session=True,
            )

    def send_signal(self, number: int) -> None:
        """Signal the process itself. A process that has ended is left alone."""
        if self._popen is not None:
            self._popen.send_signal(number)

    def stop(self, timeout: float = 10.0) -> None:
        """Ask for an orderly end; after `timeout` seconds kill. What is left of its group is killed as well."""
        if self._popen is None:
            return
        self.send_signal(signal.SIGCONT)
        self.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Kill -9 the process and every process of its group, and reap it."""
        if self._popen is None:
            return
        # The group first: as long as its leader is not reaped or a member lives, its number belongs to nobody else.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(10)

    def log_text(self) -> str:
        """Everything that the process has written so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        """The end of the log, for messages."""
        return "\n".join(self.log_text().splitlines()[-lines:])


def wait_until(condition: Callable[[], bool], *, timeout: float, message: str, process: Process | None = None) -> None:
    """Poll `condition` every 10 ms until it holds.

    Args:
        timeout: Seconds.
        message: What was waited for, for the error.
        process: Whose death ends the wait at once, and whose log goes into the error.

    Raises:
        TimeoutError: When the time is over.
        RuntimeError: When `process` has ended.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if process is not None and not process.running:
            raise RuntimeError(f"{message}: {process!r}\n{process.log_tail()}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{message}: not within {timeout} s\n{process.log_tail() if process else ''}")
        time.sleep(0.01)


def scratch_directory(prefix: str) -> Path:
    """A new directory, short enough for a unix socket's path. The caller removes it."""
    return Path(tempfile.mkdtemp(prefix=f"{prefix}-"))


def remove_directory(path: Path) -> None:
    """Remove a scratch directory, whatever state its owner left it in."""
    shutil.rmtree(path, ignore_errors=True)


def listens(port: int) -> bool:
    """Whether anything accepts connections on a loopback port."""
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def is_alive(pid: int) -> bool:
    """Whether a process with this id runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
