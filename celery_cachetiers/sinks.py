"""Sinks: where values that are written go, each under a name.

Decides which sink a name stands for, how long a batch may take, and what becomes of an open sink when the process forks
or ends. Leaves to the flusher what goes into a batch and what follows from a failure.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

from celery.signals import worker_process_shutdown

from celery_cachetiers import options as rules
from celery_cachetiers.errors import ConfigurationError, SinkTimeout, SinkUnavailable
from celery_cachetiers.sink_definition import Definition, place, refuse_unusable
from celery_cachetiers.sink_policy import SinkPolicy
from celery_cachetiers.sink_writer import Batch, SinkWriter, keep_for_ever, logger
from celery_cachetiers.writes import Write

__all__ = ["Sink", "SinkPolicy", "find", "registered", "sink"]

FORK_PATIENCE: Final = 1.0
"""Seconds that a fork waits for the batches under way: a child must not inherit an open database."""

CLOSE_PATIENCE: Final = 5.0
"""Seconds that the end of a process waits for its sinks to close."""

HANGING_LIMIT: Final = 16
"""Threads of one sink that may hang in a process before no more are started."""


class Sink:
    """One sink: what was registered under a name, and its thread in this process.

    Args:
        name: Its name.
        definition: A callable over a list of `Write`, or a class or an object with ``write``; see `sink`.
        options: How it is to be treated.

    Concurrency: one batch at a time. What is opened is opened in a thread of the sink's own, with the first batch, and
    is closed before a fork.
    """

    def __init__(self, name: str, definition: object, options: SinkPolicy) -> None:
        self.name, self.definition, self.options = name, definition, options
        self._reset()
        _everywhere.add(self)

    @property
    def batch_size(self) -> int:
        """Writes at most in one call."""
        return self.options.batch_size

    @property
    def attempts(self) -> int:
        """How often a write may fail alone before it is buried."""
        return self.options.attempts

    @property
    def backoff(self) -> float:
        """Seconds before what has failed once is tried again."""
        return self.options.backoff

    def _reset(self) -> None:
        self._turn = threading.Lock()  # held for the length of a batch
        self._lock = threading.Lock()  # before _writer, and between handing over a batch and ending a writer
        self._writer: SinkWriter | None = None
        self._writers: set[SinkWriter] = set()  # all whose threads have not ended

    def __repr__(self) -> str:
        return f"<Sink {self.name} {self._writer or 'not open'}, {self._hanging()} given up>"

    def _hanging(self) -> int:
        return sum(writer.abandoned for writer in list(self._writers))

    def write(self, writes: list[Write]) -> None:
        """Hands a batch to the sink, and returns when it has it.

        Raises:
            SinkTimeout: It took longer than ``time_limit``: its thread is left to itself, the next batch has a new one.
            SinkUnavailable: No more threads may be started for it; or raised by the sink itself.

            And whatever the sink raises, as it raised it.

        Concurrency: any thread; they wait for each other. An exception that interrupts the wait, such as Celery's soft
        time limit, leaves the batch as a timeout does.
        """
        inside = next((writer for writer in list(self._writers) if writer.here), None)
        if inside is not None:  # the sink itself writes through to itself
            inside.write(writes)
        elif writes:
            with self._turn:
                batch = self._written(Batch(writes))
            batch.outcome()

    def _written(self, batch: Batch) -> Batch:
        try:
            self._hand_over(batch)
            finished = batch.wait(self.options.time_limit)
        except BaseException:
            self._abandon(batch)
            raise
        if not finished and self._abandon(batch):
            raise SinkTimeout(self.name, self.options.time_limit)
        return batch

    def _hand_over(self, batch: Batch) -> None:
        if self._writer is not None and self._writer.pid != os.getpid():
            self.reset_after_fork()  # a fork that Python was not told of
        with self._lock:
            if self._writer is None:
                self._writer = self._new_writer()
            self._writer.put(batch)

    def _new_writer(self) -> SinkWriter:
        if self._hanging() >= HANGING_LIMIT:
            raise SinkUnavailable(f"{HANGING_LIMIT} threads of sink {self.name} hang in this process: restart it")
        _close_at_exit()
        writer = SinkWriter(self.name, self.definition, self._ended)
        self._writers.add(writer)
        if not writer.start():
            self._writers.discard(writer)
            raise SinkUnavailable(f"no thread could be started for sink {self.name}")
        return writer

    def _ended(self, writer: SinkWriter) -> None:
        self._writers.discard(writer)

    def _abandon(self, batch: Batch) -> bool:
        """Leaves a thread to its batch; false if that is finished after all."""
        if not batch.give_up():
            return False
        with self._lock:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.abandoned = True
                writer.stop()
        return True

    def redefine(self, definition: object, options: SinkPolicy) -> None:
        """Stands for something else from the next batch on, for everybody who has found it. Closes what is open."""
        with self._lock:
            self.definition, self.options = definition, options
            self._stop_locked()
        self._wait_until_gone(time.monotonic() + CLOSE_PATIENCE)

    def close(self) -> None:
        """Closes what is open, after the batch under way; a later write opens it anew. Waits five seconds at most."""
        self._stop()
        self._wait_until_gone(time.monotonic() + CLOSE_PATIENCE)

    def _stop(self) -> None:
        with self._lock:
            self._stop_locked()

    def _stop_locked(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.stop()

    def _wait_until_gone(self, deadline: float) -> bool:
        """Whether every thread has ended, the caller's aside; those that were given up are not waited for."""
        others = [writer for writer in list(self._writers) if not writer.here]
        for writer in others:
            writer.gone.wait(0.0 if writer.abandoned else max(0.0, deadline - time.monotonic()))
        return all(writer.gone.is_set() for writer in others)

    def reset_after_fork(self) -> None:
        """Forgets the parent's thread and object, and neither closes nor frees them."""
        for writer in list(self._writers):
            keep_for_ever(writer)
        self._reset()


_everywhere: WeakSet[Sink] = WeakSet()


# -- names ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    sink: Sink
    place: tuple[object, ...]


_names: dict[str, _Entry] = {}


def sink(
    name: str,
    *,
    batch_size: int = 500,
    max_delay: float | None = None,
    attempts: int = 8,
    backoff: float = 1.0,
    time_limit: float = 30.0,
    max_pending: int = 100_000,
    when_full: str = "block",
    durability: str | None = None,
) -> Callable[[Definition], Definition]:
    """Registers what it decorates, or is called with, as the sink of that name, and returns it unchanged.

    A callable over a list of `Write`; or a class or an object with ``write(self, writes)`` and perhaps ``open(self)``
    and ``close(self)``. A class is made without arguments, an object that has ``open`` is copied (shallowly), each time
    it is opened: once per process, in a thread of the sink's own, and again after a batch that failed.

    Args:
        name: 1 to 64 letters, digits or any of ``_ . -``.

    Raises:
        ConfigurationError: A bad option; something that cannot be a sink; a name that is another sink's.
    """
    checked = str(rules.SINK_NAME.check("sink", name, None))
    given: dict[str, object] = {
        "batch_size": batch_size,
        "max_delay": max_delay,
        "attempts": attempts,
        "backoff": backoff,
        "time_limit": time_limit,
        "max_pending": max_pending,
        "when_full": when_full,
        "durability": durability,
    }
    policy = SinkPolicy.resolve(given, f"sink {checked}")
    caller = sys._getframe(1)
    line = (caller.f_code.co_filename, caller.f_lineno)
    del caller

    def register(definition: Definition) -> Definition:
        refuse_unusable(definition, f"sink {checked}")
        _register(checked, definition, policy, line)
        return definition

    return register


def find(name: str, where: str | None = None) -> Sink:
    """The sink of that name.

    Args:
        where: The task that names it, for the error.

    Raises:
        ConfigurationError: There is none.
    """
    if name in _names:
        return _names[name].sink
    known = ", ".join(sorted(_names)) or "none yet"
    raise ConfigurationError("sink", name, f"the name of a sink that this process has imported ({known})", where)


def registered() -> dict[str, Sink]:
    """All sinks of this process, by name."""
    return {name: entry.sink for name, entry in _names.items()}


def _register(name: str, definition: object, policy: SinkPolicy, line: tuple[object, ...]) -> None:
    found = place(definition, line)
    before = _names.get(name)
    if before is not None:
        if before.sink.definition is not definition and before.place != found:
            allowed = f"a name of its own: {before.sink.definition!r} has this one"
            raise ConfigurationError("sink", name, allowed, repr(definition))
        before.sink.redefine(definition, policy)
    _names[name] = _Entry(before.sink if before is not None else Sink(name, definition, policy), found)


# -- the end of a process, and forks ----------------------------------------------------------------------------------

_exits: set[int] = set()  # processes that have been told to close at their end


def _close_at_exit() -> None:
    if os.getpid() not in _exits:
        _exits.clear()
        _exits.add(os.getpid())
        atexit.unregister(close_all)  # a forked process has it from its parent
        atexit.register(close_all)
        # A pool process of a worker ends by os._exit, past atexit.
        worker_process_shutdown.connect(close_all, weak=False, dispatch_uid="celery_cachetiers.sinks")


def close_all(**_signal: object) -> None:
    """Closes every sink, in no more than five seconds together."""
    deadline = time.monotonic() + CLOSE_PATIENCE
    everywhere = list(_everywhere)
    for each in everywhere:
        each._stop()
    for each in everywhere:
        if not each._wait_until_gone(deadline):
            logger.warning("celery-cachetiers: sink %s was not closed in time", each.name)


_held: dict[int, list[Sink]] = {}  # thread that forks → sinks whose locks it holds


def _close_before_fork() -> None:
    """No child inherits an open sink, unless it is busy for too long.

    SQLite keeps in each process which files it has locked; a child that inherits that takes its parent's locks for its
    own, and loses what it commits when the parent closes the file, whatever the child does with the inherited
    connection (99 of 100 rows, reproducible).
    """
    deadline = time.monotonic() + FORK_PATIENCE
    held = _held[threading.get_ident()] = []
    everywhere = list(_everywhere)
    for each in everywhere:
        if each._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            held.append(each)  # until the fork is over: nothing is opened meanwhile
            each._stop_locked()
    for each in everywhere:
        if not each._wait_until_gone(deadline):
            logger.warning("celery-cachetiers: the process forks while sink %s is open and busy", each.name)


def _after_fork_in_parent() -> None:
    for each in _held.pop(threading.get_ident(), ()):
        each._lock.release()


def _after_fork_in_child() -> None:
    _held.clear()
    for each in list(_everywhere):
        each.reset_after_fork()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows, which does not fork
    os.register_at_fork(
        before=_close_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
