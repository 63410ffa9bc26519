"""What one process asks of others over the backplane: of all in its namespace, or of its worker's own.

A question is a JSON object on the channel of invalidations, where an announcement is a list. Whoever listens does what
it is asked and, if the asker collects answers, leaves one in a list in Redis that lives for a minute. A process that
does not listen has no L1 that it trusts, so that there is nothing to ask of it: it has not used the cache yet, has lost
Redis, or is about to connect.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Set
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from celery_cachetiers.client import was_answered
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.metrics.totals import totals_here
from celery_cachetiers.tiers.layout import Layout

if TYPE_CHECKING:
    from celery_cachetiers.app import CacheTiers
    from celery_cachetiers.tiers.redis_server import RedisServerInfo

PATIENCE: Final = 0.5
"""Seconds that answers are waited for: half of what `celery inspect` waits for a worker."""
KEPT: Final = 60_000
"""Milliseconds that answers nobody has read are kept."""
PAUSE: Final = 0.01

MERGE, TELL, CLEAR = "merge", "tell", "clear"


class RollCall:
    """The questions of one process, and its answers.

    Attributes:
        family: What a worker's main process and the children that it forks have in common.
    """

    def __init__(self, tiers: CacheTiers) -> None:
        self._tiers = tiers
        self.family = os.urandom(8).hex()

    def merged(self, server: RedisServerInfo, patience: float = PATIENCE) -> int:
        """Has all processes that listen merge what they have counted; returns how many have not done so in time.

        Where Redis refuses the question nobody is late: the sums are as each has merged them by itself.

        Raises:
            TierUnavailable: Redis was not reached.

        Costs: 1 round trip, and 1 for each hundredth of a second until all have merged.
        """
        try:
            return self._merged(server, patience)
        except TierUnavailable as error:
            if not was_answered(error):
                raise
            return 0

    def _merged(self, server: RedisServerInfo, patience: float) -> int:
        to, deadline = self._new_list(), time.monotonic() + patience
        left = asked = self._publish(server, {"ask": MERGE, "to": to})
        while left and time.monotonic() < deadline:
            time.sleep(PAUSE)
            left = asked - int(server.ask("LLEN", to))
        server.ask("UNLINK", to)
        return max(left, 0)

    def collect(self, what: str, pids: Set[int], patience: float = PATIENCE) -> dict[int, dict[str, Any]]:
        """What the family's processes with these ids have answered, in time.

        Raises:
            TierUnavailable: Redis was not reached.

        Costs: 1 round trip, and 1 for each hundredth of a second until all have answered.
        """
        server = self._tiers.server() if pids else None
        if server is None:
            return {}
        to, deadline = self._new_list(), time.monotonic() + patience
        answers: dict[int, dict[str, Any]] = {}
        try:
            self._publish(server, {"ask": what, "of": self.family, "to": to})
            while not pids <= answers.keys() and time.monotonic() < deadline:
                time.sleep(PAUSE)
                found = [json.loads(each) for each in server.ask("LRANGE", to, "0", "-1")]
                answers = {each["pid"]: each for each in found}
            server.ask("UNLINK", to)
        finally:
            server.close()
        return {pid: answers[pid] for pid in sorted(pids & answers.keys())}

    def answer(self, question: Mapping[str, Any]) -> None:
        """Does what this process is asked to; called in the backplane's thread, and fails in silence without Redis."""
        what, reply = question.get("ask"), partial(self._reply, str(question.get("to", "")))
        if question.get("of", self.family) != self.family:
            return
        if what == MERGE:
            self._tiers.counting.merger.hurry(partial(reply, {"pid": os.getpid()}))
        elif what == TELL:
            reply(tell(self._tiers))
        elif what == CLEAR:
            reply(clear(self._tiers))

    def _reply(self, to: str, answer: Mapping[str, Any]) -> None:
        server = self._tiers.server() if to else None
        if server is None:
            return
        with suppress(TierUnavailable):  # the asker does without
            server.ask_all([("RPUSH", to, json.dumps(answer)), ("PEXPIRE", to, KEPT)])
        server.close()

    def _new_list(self) -> str:
        return self._layout.stats(f"@answers:{os.urandom(8).hex()}")

    @property
    def _layout(self) -> Layout:
        return Layout(self._tiers.settings.namespace)

    def _publish(self, server: RedisServerInfo, question: Mapping[str, str]) -> int:
        """How many listen."""
        return int(server.ask("PUBLISH", self._layout.announcements, json.dumps(question)))

    def __repr__(self) -> str:
        return f"<RollCall of {self.family}>"


def tell(tiers: CacheTiers) -> dict[str, Any]:
    """What this process has counted since it began, and what is true of it now."""
    return {"pid": os.getpid(), "here": tiers.counting.here(), **totals_here(tiers.counters).as_dict()}


def clear(tiers: CacheTiers) -> dict[str, Any]:
    """Empties this process' L1, and nothing else."""
    l1 = tiers.counting.l1
    entries = 0 if l1 is None else len(l1)
    if l1 is not None:
        l1.clear()
    return {"pid": os.getpid(), "entries": entries}
