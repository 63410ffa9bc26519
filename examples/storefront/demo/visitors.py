"""The load: visitors who ask for pages and order, and an editor who renames customers in the middle of it.

Decides what is asked for and how often, and notes for each call how long it took and who answered.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import uuid4

from celery_cachetiers import CachedResult, CachedTask
from examples.storefront import shop, tasks
from examples.storefront.demo.ledger import Ledger
from examples.storefront.demo.names import Names

PAGES: dict[str, CachedTask] = {
    "profile": tasks.profile,
    "top_users": tasks.top_users,
    "order_report": tasks.order_report,
    "product": tasks.product,
}
POPULARITY = (60, 8, 8, 24)
"""Percent of the visits of each of `PAGES`."""

VISITORS = 6
PAUSE = 0.005
"""Mean seconds between two pages of one visitor."""

REPORTED = range(77, shop.DAYS + 1)
ORDERED = 0.2
"""Part of the looks at a product that end in an order."""

RENAMED = 8
"""So many of the customers who are asked for most are renamed in turn."""

PATIENCE = 20.0
"""Seconds after which a page that has not come makes the demo fail."""


@dataclass
class Calls:
    """The calls for one page: seconds from `delay()` to the value, by who answered."""

    hits: list[float] = field(default_factory=list)
    by_worker: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.hits) + len(self.by_worker)


class Visitors:
    """Threads that ask for pages, and one that renames, for the length of a block.

    Args:
        names: The referee, which sees every page.
        ledger: The other one, which hears of everything that was acknowledged.
        seconds: How long the load will last: customers are renamed from its second fifth to its fourth.

    Concurrency: `calls` is appended to by every thread, under the interpreter's lock only, and never copied.
    """

    def __init__(self, names: Names, ledger: Ledger, seconds: float) -> None:
        self.names, self.ledger = names, ledger
        self.calls = {page: Calls() for page in PAGES}
        self._seconds = seconds
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        # Daemons: after a failure nobody waits for the one page that will never come.
        works = [*(self._visit,) * VISITORS, self._edit]
        self._threads = [threading.Thread(target=self._guarded, args=(work,), daemon=True) for work in works]

    def __enter__(self) -> Self:
        """Opens the doors."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *rest: object) -> None:
        """Lets each have the page it has asked for; raises what went wrong in a thread, unless something did here."""
        self._over.set()
        deadline = time.monotonic() + (PATIENCE if error_type is None else 2.0)
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        if error_type is None:
            self.check()

    def check(self) -> None:
        """Raises what went wrong in a thread."""
        if self._errors:
            raise self._errors[0]

    @property
    def asked(self) -> int:
        """Pages asked for so far."""
        return sum(calls.count for calls in self.calls.values())

    @property
    def hits(self) -> int:
        """Pages so far that were answered with no message."""
        return sum(len(calls.hits) for calls in self.calls.values())

    # -- what the threads do ----------------------------------------------------------------------------------------

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._errors.append(error)
            self._over.set()

    def _visit(self) -> None:
        chance = random.Random()
        users, days, products = shop.zipf(shop.USERS), shop.zipf(len(REPORTED)), shop.zipf(shop.PRODUCTS)
        while not self._over.wait(chance.expovariate(1 / PAUSE)):
            page = chance.choices(list(PAGES), weights=POPULARITY)[0]
            if page == "profile":
                self._ask(page, chance.choices(range(1, shop.USERS + 1), cum_weights=users)[0])
            elif page == "top_users":
                self._ask(page)
            elif page == "product":
                self._look(chance.choices(range(1, shop.PRODUCTS + 1), cum_weights=products)[0], chance)
            else:
                self._ask(page, chance.choices(REPORTED[::-1], cum_weights=days)[0])  # yesterday's most of all

    def _look(self, product_id: int, chance: random.Random) -> None:
        """Looks at a product, which is counted, and orders it sometimes. Noted is what has been acknowledged."""
        self._ask("product", product_id)
        tasks.count_view(product_id)
        self.ledger.viewed(product_id)
        if chance.random() < ORDERED:
            quantity = chance.randint(1, 3)
            tasks.order.delay(uuid4().hex, product_id, quantity).get(timeout=PATIENCE)
            self.ledger.ordered(product_id, quantity)

    def _edit(self) -> None:
        begin, end = time.monotonic() + self._seconds / 5, time.monotonic() + self._seconds * 4 / 5
        self._over.wait(self._seconds / 5)
        turn = 0
        while not self._over.wait(min(1.0, self._seconds / 20)) and begin <= time.monotonic() < end:
            user_id = 1 + turn % RENAMED
            tasks.rename.delay(user_id, self.names.begin(user_id)).get(timeout=PATIENCE)
            self.names.complete(user_id)
            self._ask("profile", user_id)  # at once, when an old copy would be most likely
            self._ask("top_users")
            turn += 1

    def _ask(self, page: str, *args: int) -> None:
        asked_at, started = time.monotonic(), time.perf_counter()
        result = PAGES[page].delay(*args)
        value: Any = result.get(timeout=PATIENCE)
        seconds = time.perf_counter() - started
        calls = self.calls[page]
        (calls.hits if isinstance(result, CachedResult) else calls.by_worker).append(seconds)
        if page == "profile":
            self.names.check([value], asked_at, strict=True)
        elif page == "top_users":
            self.names.check(value, asked_at, strict=False)
