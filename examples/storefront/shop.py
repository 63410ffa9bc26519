"""The source of truth: customers, products, orders and counts in SQLite. `python -m examples.storefront.shop` makes it.

Decides the tables, the queries and the life of a connection. Knows neither Celery nor the cache.
"""

from __future__ import annotations

import itertools
import os
import random
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATABASE = "STOREFRONT_DATABASE"
"""Environment variable with the path of the database."""

USERS, PRODUCTS, ORDERS, DAYS = 400, 240, 100_000, 90
DELIVERED = 10_000
"""Pieces of each product that there were when the shop was opened."""

_FIRST = (
    *("Ada", "Alan", "Barbara", "Claude", "Donald", "Edith", "Frances", "Grace"),
    *("Hedy", "Ida", "John", "Katherine", "Linus", "Margaret", "Niklaus", "Olga"),
)
_LAST = (
    *("Allen", "Bartik", "Codd", "Dijkstra", "Elion", "Franklin", "Goldberg"),
    *("Hopper", "Iverson", "Johnson", "Knuth", "Liskov", "Meitner", "Noether"),
)
_CATEGORIES = ("books", "coffee", "garden", "lamps", "music", "paper", "tea", "tools", "toys", "wool")

_SCHEMA = """
    CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT NOT NULL, category TEXT NOT NULL, cents INTEGER NOT NULL);
    CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL, day INTEGER NOT NULL);
    CREATE TABLE lines (order_id INTEGER NOT NULL, product_id INTEGER NOT NULL, quantity INTEGER NOT NULL);
    -- Facts, each under an id of its own: one that comes twice is one row. What is counted is counted from them.
    CREATE TABLE views (id TEXT PRIMARY KEY, product_id INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE sales (id TEXT PRIMARY KEY, product_id INTEGER NOT NULL, quantity INTEGER NOT NULL) WITHOUT ROWID;
    -- How many facts came in each batch, and how many of them were new.
    CREATE TABLE batches (facts TEXT NOT NULL, handed_over INTEGER NOT NULL, new INTEGER NOT NULL);
    -- One row for each body that ran: what the cache saved is measured against these, not against its own counters.
    CREATE TABLE computations (page TEXT NOT NULL, seconds REAL NOT NULL, pid INTEGER NOT NULL);
"""
_INDEXES = """
    CREATE INDEX orders_of_user ON orders (user_id);
    CREATE INDEX lines_of_order ON lines (order_id);
    CREATE INDEX sales_of_product ON sales (product_id);
"""


def path() -> Path:
    """Where the database is: `STOREFRONT_DATABASE`, else `storefront.db` in the working directory."""
    return Path(os.environ.get(DATABASE, "storefront.db"))


@contextmanager
def connect() -> Iterator[sqlite3.Connection]:
    """A connection for the length of a block.

    Concurrency: opened, used and closed in one thread of one process. An SQLite connection that lives on through a
    fork can lose committed rows, and a prefork worker forks.

    Raises:
        FileNotFoundError: The shop was not made yet.
    """
    if not path().exists():
        raise FileNotFoundError(f"no shop at {path().absolute()}: make it with python -m examples.storefront.shop")
    with closing(sqlite3.connect(path(), timeout=10)) as db:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA synchronous = NORMAL")
        yield db


# -- pages ------------------------------------------------------------------------------------------------------------


def profile(db: sqlite3.Connection, user_id: int) -> dict[str, Any]:
    """Name, number of orders, cents spent and favourite product of one customer."""
    user = db.execute("SELECT id AS user_id, name FROM users WHERE id = ?", (user_id,)).fetchone()
    totals = db.execute(
        """
        SELECT COUNT(DISTINCT orders.id) AS orders, COALESCE(SUM(quantity * cents), 0) AS cents
        FROM orders JOIN lines ON order_id = orders.id JOIN products ON products.id = product_id
        WHERE user_id = ?
        """,
        (user_id,),
    ).fetchone()
    favourite = db.execute(
        """
        SELECT products.name FROM orders JOIN lines ON order_id = orders.id JOIN products ON products.id = product_id
        WHERE user_id = ? GROUP BY products.id ORDER BY SUM(quantity) DESC, products.id LIMIT 1
        """,
        (user_id,),
    ).fetchone()
    return {**user, **totals, "favourite": favourite["name"] if favourite else None}


def top_users(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """The ten customers who spent most, the first first."""
    rows = db.execute(
        """
        SELECT users.id AS user_id, users.name, COUNT(DISTINCT orders.id) AS orders, SUM(quantity * cents) AS cents
        FROM users JOIN orders ON user_id = users.id JOIN lines ON order_id = orders.id
            JOIN products ON products.id = product_id
        GROUP BY users.id ORDER BY SUM(quantity * cents) DESC LIMIT 10
        """
    )
    return [dict(row) for row in rows]


def order_report(db: sqlite3.Connection, day: int) -> list[dict[str, Any]]:
    """Each category's revenue on a day, beside its average and its best day until then: all orders so far are read."""
    rows = db.execute(
        """
        WITH daily AS (
            SELECT category, day, SUM(quantity * cents) AS cents, COUNT(DISTINCT user_id) AS buyers
            FROM orders JOIN lines ON order_id = orders.id JOIN products ON products.id = product_id
            WHERE day <= :day GROUP BY category, day
        )
        SELECT category, SUM(cents) FILTER (WHERE day = :day) AS cents, SUM(buyers) FILTER (WHERE day = :day) AS buyers,
            AVG(cents) AS average, MAX(cents) AS best
        FROM daily GROUP BY category ORDER BY category
        """,
        {"day": day},
    )
    return [dict(row) for row in rows]


def product(db: sqlite3.Connection, product_id: int) -> dict[str, Any]:
    """One product, and how many pieces are left."""
    row = db.execute("SELECT id AS product_id, name, category, cents FROM products WHERE id = ?", (product_id,))
    sold = db.execute("SELECT COALESCE(SUM(quantity), 0) FROM sales WHERE product_id = ?", (product_id,))
    return {**row.fetchone(), "stock": DELIVERED - sold.fetchone()[0]}


def rename(user_id: int, name: str) -> None:
    """Gives a customer a new name, and commits."""
    with connect() as db, db:
        db.execute("UPDATE users SET name = ? WHERE id = ?", (name, user_id))


def names() -> dict[int, str]:
    """The name of every customer."""
    with connect() as db:
        return {row["id"]: row["name"] for row in db.execute("SELECT id, name FROM users")}


# -- counting ---------------------------------------------------------------------------------------------------------


def add_views(views: Sequence[Mapping[str, Any]]) -> None:
    """Notes that products were looked at; a view that is known already changes nothing."""
    _add("views", "INSERT INTO views VALUES (:id, :product_id) ON CONFLICT (id) DO NOTHING", views)


def add_sales(sales: Sequence[Mapping[str, Any]]) -> None:
    """Notes that pieces were sold; a sale that is known already changes nothing."""
    _add("sales", "INSERT INTO sales VALUES (:id, :product_id, :quantity) ON CONFLICT (id) DO NOTHING", sales)


def _add(table: str, statement: str, facts: Sequence[Mapping[str, Any]]) -> None:
    with connect() as db, db:
        new = db.executemany(statement, facts).rowcount
        db.execute("INSERT INTO batches VALUES (?, ?, ?)", (table, len(facts), new))


def views() -> dict[int, int]:
    """How often each product was looked at; those that were not are left out."""
    with connect() as db:
        return dict(map(tuple, db.execute("SELECT product_id, COUNT(*) FROM views GROUP BY product_id")))


def sold() -> dict[int, int]:
    """How many pieces of each product were sold; those that were not are left out."""
    with connect() as db:
        return dict(map(tuple, db.execute("SELECT product_id, SUM(quantity) FROM sales GROUP BY product_id")))


def batches(table: str) -> tuple[int, int, int]:
    """Of `views` or `sales`: batches that came, facts in them, and how many of those were there already."""
    with connect() as db:
        totals = "SELECT COUNT(*), COALESCE(SUM(handed_over), 0), COALESCE(SUM(handed_over - new), 0) FROM batches"
        count, facts, known = db.execute(f"{totals} WHERE facts = ?", (table,)).fetchone()
        return count, facts, known


# -- what was really computed -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Computations:
    """How often a page's body ran, and the seconds of each run."""

    seconds: Sequence[float] = ()

    @property
    def count(self) -> int:
        return len(self.seconds)

    @property
    def mean(self) -> float:
        """Seconds; 0 without a run."""
        return sum(self.seconds) / len(self.seconds) if self.seconds else 0.0


@contextmanager
def computation(page: str) -> Iterator[sqlite3.Connection]:
    """A connection for one page's queries; that they ran, and how long, becomes a row of `computations`."""
    started = time.perf_counter()
    with connect() as db:
        try:
            yield db
        finally:
            with db:
                row = (page, time.perf_counter() - started, os.getpid())
                db.execute("INSERT INTO computations (page, seconds, pid) VALUES (?, ?, ?)", row)


def computations(page: str) -> Computations:
    """All computations of a page so far, in any process."""
    with connect() as db:
        rows = db.execute("SELECT seconds FROM computations WHERE page = ?", (page,))
        return Computations([row["seconds"] for row in rows])


# -- seeding ----------------------------------------------------------------------------------------------------------


def seed() -> str:
    """Makes the shop, the same one every time, and returns what is in it in words. Replaces a file that is there."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path()}{suffix}").unlink(missing_ok=True)
    chance = random.Random(4711)
    with closing(sqlite3.connect(path())) as db, db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")  # of this connection: nothing is lost that cannot be seeded again
        db.executescript(_SCHEMA)
        db.executemany("INSERT INTO users VALUES (?, ?)", _some_users())
        db.executemany("INSERT INTO products VALUES (?, ?, ?, ?)", _some_products(chance))
        db.executemany("INSERT INTO orders VALUES (?, ?, ?)", _some_orders(chance))
        db.executemany("INSERT INTO lines VALUES (?, ?, ?)", _some_lines(chance))
        db.executescript(_INDEXES)
        lines = db.execute("SELECT COUNT(*) FROM lines").fetchone()[0]
    return f"{USERS} customers, {PRODUCTS} products, {ORDERS:,} orders with {lines:,} lines"


def zipf(count: int, exponent: float = 1.1) -> list[float]:
    """Cumulative weights of ranks 1 to `count`, for `random.choices`: a few are asked for most of the time."""
    return list(itertools.accumulate(1 / rank**exponent for rank in range(1, count + 1)))


def _some_users() -> Iterator[tuple[int, str]]:
    for user_id in range(1, USERS + 1):
        round_, place = divmod(user_id - 1, len(_FIRST) * len(_LAST))
        name = f"{_FIRST[place % len(_FIRST)]} {_LAST[(place + place // len(_FIRST)) % len(_LAST)]}"
        yield user_id, name if not round_ else f"{name} {'I' * (round_ + 1)}"


def _some_products(chance: random.Random) -> Iterator[tuple[int, str, str, int]]:
    for product_id in range(1, PRODUCTS + 1):
        category = _CATEGORIES[product_id % len(_CATEGORIES)]
        yield product_id, f"{category} no. {product_id}", category, chance.randrange(199, 9999)


def _some_orders(chance: random.Random) -> Iterator[tuple[int, int, int]]:
    users = chance.choices(range(1, USERS + 1), cum_weights=zipf(USERS, 0.5), k=ORDERS)
    for order_id, user_id in enumerate(users, 1):
        yield order_id, user_id, 1 + order_id * DAYS // (ORDERS + 1)


def _some_lines(chance: random.Random) -> Iterator[tuple[int, int, int]]:
    products = iter(chance.choices(range(1, PRODUCTS + 1), k=5 * ORDERS))
    for order_id in range(1, ORDERS + 1):
        for _ in range(1 + order_id % 5):
            yield order_id, next(products), 1 + chance.getrandbits(2)


if __name__ == "__main__":
    print(f"{path().absolute()}: {seed()}")
