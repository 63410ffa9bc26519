"""Write-behind in one process of an app: its journal, its flushers, what beat and a worker's start and end ask of them.

It wires; how a value is written is `outlet`'s matter, how a batch is delivered `flush`'s and `delivery`'s.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.exceptions import SoftTimeLimitExceeded

from celery_cachetiers.breaker import Breaker
from celery_cachetiers.client import RedisClient
from celery_cachetiers.dead_letter import DeadLetter
from celery_cachetiers.delivery import Flushed
from celery_cachetiers.errors import ConfigurationError, TierUnavailable
from celery_cachetiers.events import Event
from celery_cachetiers.flush import Flusher
from celery_cachetiers.journal.redis import RedisJournal
from celery_cachetiers.journal_port import Backlog, Journal, Record
from celery_cachetiers.journaling import LocalSequences, SafeJournal, Unnoted
from celery_cachetiers.leases.repeat import repeating
from celery_cachetiers.outlet import TaskOutlet
from celery_cachetiers.policy import Policy
from celery_cachetiers.records import unpacked
from celery_cachetiers.sinks import Sink, find, registered
from celery_cachetiers.tag_names import key_of_tag, key_tag
from celery_cachetiers.threads import started
from celery_cachetiers.writes import Write

if TYPE_CHECKING:
    from celery_cachetiers.app import CacheTiers

logger = logging.getLogger("celery_cachetiers")

FLUSH = "celery_cachetiers.flush"
LARGEST = 512 * 1024**2
ASKED_SECONDS = 1.0
"""How long a flush goes on that a full batch has asked for: while writes keep coming there is one for each batch, and
they must not take all slots of a worker."""
FLUSH_SECONDS = 30.0
"""How long one flush goes on: it holds a slot of its worker meanwhile, and the next one helps it."""

ON_ITS_WAY = 60.0
"""Seconds after which a periodic flush that no worker has begun expires, and another one is sent; see `on_its_way`."""

DRAIN_PATIENCE = 5.0
"""Seconds that a worker which ends waits for the last batch: a sink may hang for as long as its ``time_limit``."""

ONE_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
"""Whoever writes does not wait for a broker that is away. (Without any retry, kombu takes its own 6 s to give up.)"""


class WriteBehind:
    """The journal of an app's extension, in this process.

    Concurrency: made once under the extension's lock; connects at the first write or flush, anew after a fork.
    """

    def __init__(self, tiers: CacheTiers) -> None:
        self._tiers = tiers
        self.sequences, self.unnoted = LocalSequences(tiers.clock), Unnoted()
        self._safe: SafeJournal | None = None
        journal = self._connect()
        self.journal: Journal | None = journal
        self._safe = SafeJournal(journal, self.send_flush, tiers.clock.monotonic) if journal is not None else None
        # Records of all tasks: a task may allow larger values than the app does.
        self._codec = tiers.codec(Policy(max_bytes=LARGEST))
        self._lock = threading.Lock()
        self._flushers: dict[str, Flusher] = {}

    def _connect(self) -> RedisJournal | None:
        settings, where = self._tiers.settings, self._tiers.where_writes_wait()
        if where is None:
            return None
        url, options = where
        # Of its own: the cache may answer while the journal's server does not.
        breaker = Breaker(settings.breaker_window, self._tiers.clock, self._told)
        client = RedisClient(url, settings.timeout, breaker, **options)
        return RedisJournal(client, settings.namespace, beside_entries=where == self._tiers.where())

    def _told(self, opened: bool) -> None:
        _tell(opened)
        if self._safe is not None and not opened:
            self._safe.look_again()

    def outlet(self, task: str, policy: Policy) -> TaskOutlet:
        """The way of one task's values. Raises `ConfigurationError` for a sink that nobody has registered."""
        assert policy.sink is not None
        journal = self._safe if policy.write == "behind" else None
        if policy.write == "behind" and journal is None and not self._tiers.in_memory:
            logger.warning("celery-cachetiers: %s: no Redis for the journal: written through instead", task)
        return TaskOutlet(
            task, find(policy.sink, f"task {task}"), self._tiers.codec(policy), self._tiers.clock, self._tiers.events,
            self.sequences, self.unnoted, journal=journal, numbers=self.journal, pump=self,
        )  # fmt: skip

    def check(self) -> None:
        """What a worker must know before it starts.

        Raises:
            ConfigurationError: The journal's server would evict what waits in it; a task names a sink that nobody has
                registered.
        """
        behind = False
        for task in self._tiers.app.tasks.values():
            name = getattr(type(task), "sink", None)
            if isinstance(name, str) and hasattr(task, "memoized"):
                find(name, f"task {task.name}")
                behind = behind or getattr(type(task), "write", None) == "behind"
        if behind and self._safe is not None:
            with suppress(TierUnavailable):  # the first write looks again
                self._safe.check()

    # -- flushing ---------------------------------------------------------------------------------------------------

    def flush(self, sink: str | None = None, seconds: float = FLUSH_SECONDS) -> dict[str, Flushed]:
        """Hands what waits to the sinks (or one of them) until nothing is due, or time is up.

        Returns:
            What became of the records, by sink.

        Raises:
            ConfigurationError: There is no such sink, or no journal.
            TierUnavailable: The journal is away.
        """
        journal = self._needed()
        sinks = [find(sink)] if sink is not None else list(registered().values())
        deadline = self._tiers.clock.monotonic() + seconds
        if self._safe is not None:
            self._safe.look_in_passing()
        for each in sinks:
            self.unnoted.tell(journal, each.name, must_try=True)
        return {
            each.name: self._flusher(each).flush(max(deadline - self._tiers.clock.monotonic(), 0.0)) for each in sinks
        }

    def backlog(self, sink: str) -> Backlog:
        """How much waits for a sink, and how much was given up. Raises as `flush`. Costs: 1 round trip."""
        return self._needed().backlog(find(sink).name)

    def dead_letter(self, sink: str) -> DeadLetter:
        """The writes that a sink was never able to take. Raises as `flush`."""
        return DeadLetter(find(sink).name, self._needed(), self._read, self.send_flush)

    def _needed(self) -> Journal:
        if self.journal is None:
            raise ConfigurationError("cachetiers_journal_url", None, "a Redis: there is none to keep a journal in")
        return self.journal

    def flush_key(self, sink: Sink, key: str) -> Flushed:
        """Hands one record to its sink, as far as that can be done now."""
        if self.journal is None:
            return Flushed()
        try:
            return self._flusher(sink).flush_key(key)
        except TierUnavailable as error:
            self._tiers.events.emit(Event.FAILED_OPEN, step="flush a key", error=str(error))
            return Flushed()

    def flush_batch(self, sink: Sink) -> Flushed:
        """Hands one batch to its sink. Raises `TierUnavailable`."""
        return self._flusher(sink).flush(0.0)

    def send_flush(self, sink: str) -> None:
        """Asks a worker to flush a sink; nobody's write fails if it cannot be asked, as beat's flush comes anyway."""
        settings = self._tiers.settings
        options: dict[str, Any] = {"queue": settings.flush_queue} if settings.flush_queue is not None else {}
        if self._tiers.app.conf.task_always_eager:
            return
        try:
            task: Any = self._tiers.app.tasks[FLUSH]
            expires = max(settings.flush_every, 1.0)
            options |= {"expires": expires, "retry_policy": ONE_RETRY}
            task.apply_async((sink, ASKED_SECONDS), add_to_parent=False, ignore_result=True, **options)
        except Exception as error:
            logger.warning("celery-cachetiers: no worker could be asked to flush %s: %r", sink, error)

    def announce(self) -> bool:
        """Whether a periodic flush is to be sent: not while one waits in its queue; if nobody can tell, it is."""
        try:
            return self.journal is None or self.journal.announce(on_its_way(self._tiers.settings.flush_every))
        except TierUnavailable:
            return True

    def arrived(self) -> None:
        """One has begun, or was not sent after all."""
        if self.journal is not None:
            with suppress(TierUnavailable):  # its time runs out
                self.journal.arrived()

    def drain(self, seconds: float, patience: float = DRAIN_PATIENCE) -> None:
        """Flushes at the end of a worker; what is left then waits for the next one.

        Args:
            seconds: No batch is begun after it.
            patience: Seconds that the last batch may take longer than that. The process may end while a sink still has
                it; another flusher hands it over again, once the claim on it has run out.
        """
        if self.journal is None or not registered():
            return
        thread = started("cachetiers-drain", partial(self._drain, seconds))
        if thread is None:
            return
        thread.join(seconds + patience)
        if thread.is_alive():
            logger.warning("celery-cachetiers: the journal is not drained: a sink has not taken its batch in time")

    def _drain(self, seconds: float) -> None:
        try:
            self.flush(seconds=seconds)
        except Exception as error:
            logger.warning("celery-cachetiers: the journal could not be drained: %r", error)

    def _flusher(self, sink: Sink) -> Flusher:
        assert self.journal is not None
        with self._lock:
            found = self._flushers.get(sink.name)
            if found is None:
                found = self._flushers[sink.name] = Flusher(
                    self.journal, sink, self._unpacked, self._invalidate,
                    repeat=repeating, clock=self._tiers.clock, events=self._tiers.events,
                    interrupts=(SoftTimeLimitExceeded,),
                )  # fmt: skip
            return found

    def _read(self, record: Record) -> Write:
        return unpacked(self._codec, record)[0]

    def _unpacked(self, record: Record) -> tuple[Write, tuple[str, ...]]:
        """A write and what is invalidated with it: of a deletion its own key too, as the body found it until now."""
        write, tags = unpacked(self._codec, record)
        return write, (*tags, key_tag(write.key)) if write.deleted else tags

    def _invalidate(self, names: Iterable[str]) -> None:
        keys = {name: digest for name in names if (digest := key_of_tag(name)) is not None}
        self._tiers.cache.invalidate(sorted(set(names) - keys.keys()))
        self._tiers.cache.invalidate_keys(list(keys.values()))

    # -- the process ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes connections that lie idle."""
        if self.journal is not None:
            self.journal.close()

    def reset_after_fork(self) -> None:
        """Leaves the parent's connections and flushers alone."""
        self._lock, self._flushers = threading.Lock(), {}
        self.sequences.reset_after_fork()
        self.unnoted.reset_after_fork()
        if self.journal is not None:
            self.journal.reset_after_fork()
        if self._safe is not None:
            self._safe.reset_after_fork()

    def __repr__(self) -> str:
        return f"<WriteBehind: {self.journal!r}, sinks {sorted(registered())}>"


def on_its_way(every: float) -> float:
    """How long a periodic flush may be on its way, where one is due every so many seconds."""
    return max(every, ON_ITS_WAY)


def _tell(opened: bool) -> None:
    if opened:
        logger.warning(
            "celery-cachetiers: the journal cannot be reached; what is written goes to its sink at once until it can"
        )
    else:
        logger.info("celery-cachetiers: the journal answers again")
