"""A real `celery worker` as a subprocess, for what needs a pool: prefork, threads, solo or gevent.

Decides how the worker is started, found ready, broken and ended. Which app it runs is the test's affair: the app is a
module under `tests`, configured through environment variables.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from tests.processes import ROOT, Process, remove_directory, scratch_directory, wait_until

READY_TIMEOUT = 60.0


class Worker:
    """One `celery worker` process, with its pool's children.

    Args:
        app: Module path of the app, as `celery -A` takes it: `"tests.integration.apps.reports"`.
        *options: More options of `celery worker`, `"--prefetch-multiplier=1"`.
        pool: prefork, threads, solo or gevent.
        concurrency: Size of the pool.
        queues: Queues to consume from; none means the app's default.
        name: Node name before the `@`; unique by itself.
        env: Environment variables on top of ours.
        log: File for what the worker writes; None keeps it in a directory that `close` removes.
    """

    def __init__(
        self,
        app: str,
        *options: str,
        pool: str = "prefork",
        concurrency: int = 1,
        queues: Sequence[str] = (),
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self.hostname = f"{name or f'worker-{uuid.uuid4().hex[:8]}'}@localhost"
        self._directory = scratch_directory("worker")
        command = [sys.executable, "-m", "celery", "-A", app, "worker", f"--hostname={self.hostname}"]
        command += ["--loglevel=INFO", f"--pool={pool}", f"--concurrency={concurrency}"]
        command += ["--without-mingle", "--without-gossip"]  # saves a second per start
        command += [f"--queues={','.join(queues)}"] if queues else []
        self._process = Process(
            [*command, *options],
            log=log or self._directory / "log",
            env={**os.environ, **_ENVIRONMENT, **(env or {})},
            cwd=self._directory,
        )
        self._log_start = 0

    def __repr__(self) -> str:
        return f"<Worker {self.hostname} {self._process!r}>"

    def __enter__(self) -> Self:
        self.start()
        return self.wait_ready()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the main process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.running

    @property
    def returncode(self) -> int | None:
        """Exit status of the main process; None while it runs, negative after a signal."""
        return self._process.returncode

    def children(self) -> list[int]:
        """Process ids of the pool's children (prefork only), oldest first."""
        try:
            found = psutil.Process(self.pid).children()
        except psutil.NoSuchProcess:
            return []
        return sorted(child.pid for child in found if child.status() != psutil.STATUS_ZOMBIE)

    # -- life and death -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process; `wait_ready` tells when it consumes."""
        self._log_start = len(self._process.log_text())
        self._process.start()

    def wait_ready(self, timeout: float = READY_TIMEOUT) -> Self:
        """Return when the worker consumes, which it says in its log."""
        self.wait_for_log(f"{self.hostname} ready.", timeout)
        return self

    def wait_for_log(self, text: str, timeout: float = 10.0) -> None:
        """Return when the worker has logged `text` since its last start."""
        wait_until(
            lambda: text in self._process.log_text()[self._log_start :],
            timeout=timeout,
            message=f"{text!r} in the log of {self.hostname}",
            process=self._process,
        )

    def stop(self, timeout: float = 30.0) -> int | None:
        """SIGTERM: a warm shutdown, running tasks finish first. Returns the exit status."""
        self._process.stop(timeout)
        return self.returncode

    def terminate(self) -> None:
        """SIGTERM without waiting for the end."""
        self._process.send_signal(signal.SIGTERM)

    def quit(self) -> None:
        """SIGQUIT: a cold shutdown, running tasks are cut short. Does not wait for the end."""
        self._process.send_signal(signal.SIGQUIT)

    def kill(self) -> None:
        """SIGKILL for the main process and its children: power off."""
        self._process.kill()

    def restart(self) -> None:
        """Stop, start, and wait until it is ready."""
        self.stop()
        self.start()
        self.wait_ready()

    def pause(self) -> None:
        """SIGSTOP the main process; its children go on."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT the main process."""
        self._process.send_signal(signal.SIGCONT)

    def kill_child(self, pid: int) -> None:
        """SIGKILL one child, as the kernel does when memory runs out."""
        self._signal_child(pid, signal.SIGKILL)

    def pause_child(self, pid: int) -> None:
        """SIGSTOP one child: it is there, holds what it holds, and does nothing."""
        self._signal_child(pid, signal.SIGSTOP)

    def resume_child(self, pid: int) -> None:
        """SIGCONT one child."""
        self._signal_child(pid, signal.SIGCONT)

    def _signal_child(self, pid: int, number: int) -> None:
        if pid not in self.children():
            raise ValueError(f"{pid} is no child of {self!r}, whose children are {self.children()}")
        os.kill(pid, number)

    def close(self) -> None:
        """End whatever still runs and remove the directory. A second call does nothing."""
        self._process.kill()
        remove_directory(self._directory)

    def log_text(self) -> str:
        """Everything that the worker has written, in all its lives."""
        return self._process.log_text()

    def log_tail(self, lines: int = 40) -> str:
        """The end of the log, for messages."""
        return self._process.log_tail(lines)


# The working directory is a scratch one, so that nothing the worker writes lands in the repository.
_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
}
