"""The second referee of the demo: what was acknowledged to visitors, against what SQLite has in the end.

Decides what counts as acknowledged, and when a count is right: to the unit, for each product.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from celery_cachetiers import CacheTiers
from examples.storefront import shop, tasks
from examples.storefront.app import app

SINKS = ("views", "orders")
DRAIN_SECONDS = 30.0
"""How long the last writes may need: the claims of a killed flusher run out after 10 s."""


@dataclass(frozen=True, slots=True)
class Count:
    """One kind of fact, in the end.

    Attributes:
        acknowledged: What visitors were told is written.
        stored: What SQLite has.
        wrong: Products whose numbers differ.
        batches: Batches that the sink has taken.
        again: Facts in them that SQLite had already.
    """

    facts: str
    acknowledged: int
    stored: int
    wrong: int
    batches: int
    again: int


class Ledger:
    """What visitors have looked at and ordered, as far as it was acknowledged.

    Concurrency: any thread notes, under the lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views, self._sold = Counter[int](), Counter[int]()
        self.orders = 0

    def viewed(self, product_id: int) -> None:
        """A view was counted: the call has returned."""
        with self._lock:
            self._views[product_id] += 1

    def ordered(self, product_id: int, quantity: int) -> None:
        """An order was placed: its task has its result."""
        with self._lock:
            self._sold[product_id] += quantity
            self.orders += 1

    def compare(self) -> list[Count]:
        """Everything that was acknowledged, against SQLite."""
        return [
            _count("views", self._views, shop.views(), "views"),
            _count("pieces sold", self._sold, shop.sold(), "sales"),
        ]

    def stale_stocks(self) -> Iterable[int]:
        """Products that were ordered and whose page does not show what SQLite has left."""
        sold = shop.sold()
        for product_id in self._sold:
            page: Any = tasks.product.delay(product_id).get(timeout=20)
            if page["stock"] != shop.DELIVERED - sold.get(product_id, 0):
                yield product_id


def _count(facts: str, acknowledged: Counter[int], stored: dict[int, int], table: str) -> Count:
    wrong = sum(acknowledged[each] != stored.get(each, 0) for each in {*acknowledged, *stored})
    batches, _, again = shop.batches(table)
    return Count(facts, acknowledged.total(), sum(stored.values()), wrong, batches, again)


def waiting() -> int:
    """Writes that no sink has taken yet."""
    return sum(CacheTiers(app).writes.backlog(sink).pending for sink in SINKS)


def drained() -> float:
    """Waits until beat has had everything flushed, and returns how many seconds that took."""
    began = time.monotonic()
    while waiting() and time.monotonic() < began + DRAIN_SECONDS:
        time.sleep(0.05)
    return time.monotonic() - began
