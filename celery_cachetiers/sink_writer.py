"""The thread that a sink lives in: what it is asked to write, what it has opened, and how it ends.

Decides in which thread and process the user's object is made, used and closed. Leaves to `sinks` when that begins and
ends, and how long anybody waits.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Final

from celery_cachetiers.errors import SinkRejected, SinkUnavailable
from celery_cachetiers.sink_definition import nothing, object_of
from celery_cachetiers.threads import started
from celery_cachetiers.writes import Write

logger = logging.getLogger("celery_cachetiers")


class Batch:
    """Writes on their way through the thread, for one who waits for them.

    Concurrency: either it is finished before it is given up, and the waiter has the outcome, or the other way round.
    """

    def __init__(self, writes: list[Write]) -> None:
        self.writes = writes
        self._error: BaseException | None = None
        self._finished, self._given_up = threading.Event(), False
        self._lock = threading.Lock()  # before _error, _finished and _given_up

    def finish(self, error: BaseException | None) -> bool:
        """The writer's last word; false if nobody waits for it any more."""
        with self._lock:
            if self._given_up:
                return False
            self._error = error
            self._finished.set()
            return True

    def give_up(self) -> bool:
        """The waiter's last word; false if it came too late, as the batch is finished."""
        with self._lock:
            self._given_up = not self._finished.is_set()
            return self._given_up

    def wait(self, seconds: float) -> bool:
        """Whether it is finished within so many seconds."""
        return self._finished.wait(seconds)

    def outcome(self) -> None:
        """Raises what the sink raised, if it did."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it holds this frame, which holds it


class SinkWriter:
    """One thread and what it has opened there: open, write and close all run in it, in the order they were asked for.

    An object is opened with the first batch, and anew after one that failed: what a broken connection or a half-done
    transaction leaves is not the next batch's. `SinkRejected` is an outcome like success, and closes nothing.

    Args:
        name: The sink's, for the log.
        definition: What the user registered.
        ended: Called in the thread, as its last act.
    """

    def __init__(self, name: str, definition: Any, ended: Callable[[SinkWriter], None]) -> None:
        self._name, self._definition, self._ended = name, definition, ended
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._object: Any = None
        self._write: Callable[[list[Write]], object] | None = None
        self._ident: int | None = None
        self._thread: threading.Thread | None = None
        self.pid = os.getpid()
        self.abandoned = False
        self.gone = threading.Event()

    def __repr__(self) -> str:
        state = "gone" if self.gone.is_set() else "abandoned" if self.abandoned else "open" if self._write else "closed"
        return f"<SinkWriter {self._name} {state} of process {self.pid}>"

    @property
    def here(self) -> bool:
        """Whether the caller runs in its thread."""
        return self._ident == threading.get_ident() and not self.gone.is_set()

    def start(self) -> bool:
        """Whether the process could have one more thread."""
        self._thread = started(f"cachetiers-sink-{self._name}", self._run)
        return self._thread is not None

    def put(self, batch: Batch) -> None:
        """Queues a batch."""
        self._batches.put(batch)

    def stop(self) -> None:
        """Close, and end, once all that is queued has been written."""
        self._batches.put(None)

    def write(self, writes: list[Write]) -> None:
        """Writes at once; only in its own thread."""
        if self._write is None:
            self._write = self._open()
        self._write(writes)

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            while (batch := self._batches.get()) is not None:
                self._take(batch)
                del batch
        finally:
            self._close()
            self.gone.set()
            self._ended(self)

    def _take(self, batch: Batch) -> None:
        error: BaseException | None = None
        try:
            self.write(batch.writes)
        except BaseException as raised:  # it is the waiter's, whatever it is
            error = raised
        try:
            if not batch.finish(error):
                fate = f"failed: {error!r}" if error else "has been written after all"
                logger.warning("celery-cachetiers: a batch of sink %s that was given up %s", self._name, fate)
            if error is not None and not isinstance(error, SinkRejected):
                self._close()
        finally:
            del error  # it holds this frame, which holds it

    def _open(self) -> Callable[[list[Write]], object]:
        if (made := object_of(self._definition)) is None:
            return self._definition  # type: ignore[no-any-return]  # a callable, as `sink` has checked
        self._object = made  # before it opens anything: see `keep_for_ever`
        try:
            getattr(made, "open", nothing)()
        except SinkUnavailable:
            raise
        except Exception as error:  # whatever it is, it says nothing of what is to be written
            raise SinkUnavailable(f"sink {self._name} could not be opened: {error!r}") from error
        return made.write  # type: ignore[no-any-return]

    def _close(self) -> None:
        made, was_open = self._object, self._write is not None
        self._object = self._write = None
        if not was_open or made is None or made is self._definition:  # what was not opened here is not closed here
            return
        try:
            getattr(made, "close", nothing)()
        except Exception:
            logger.exception("celery-cachetiers: sink %s could not be closed", self._name)


_KEPT: Final[list[object]] = []


def keep_for_ever(thing: object) -> None:
    """Holds what belongs to the parent process, so that this one never finalizes it, not even as it exits.

    An SQLite connection that a child closes may take with it the write-ahead log that its parent writes to.
    """
    _KEPT.append(thing)
    try:
        from ctypes import py_object, pythonapi

        pythonapi.Py_IncRef(py_object(thing))  # the list is emptied when the interpreter ends
    except (ImportError, AttributeError):  # pragma: no cover - not CPython
        pass
