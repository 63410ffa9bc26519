"""Asking the workers of an app, bounded in time whatever the broker does."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, Final

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.doctor.facts import WorkerAnswer, Workers
from celery_cachetiers.threads import started

PATIENCE: Final = 1.0
"""Seconds that workers have to answer."""
SECONDS: Final = 5.0
"""Seconds after which the broker is given up."""
ONE_TRY: Final = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


def ask_workers(tiers: CacheTiers) -> Workers:
    """What the workers say of themselves; never raises."""
    if tiers.app.conf.task_always_eager:
        return Workers(unknown="task_always_eager: the app has no workers")
    try:
        return within(SECONDS, lambda: _ask(tiers.app))
    except TimeoutError:
        return Workers(broker_away=f"it has not answered within {SECONDS:g} s")
    except Exception as error:
        return Workers(broker_away=f"it cannot be reached: {type(error).__name__}")  # the text may have the URL


def _ask(app: Any) -> Workers:
    with app.connection_for_write(connect_timeout=PATIENCE) as connection:
        connection.ensure_connection(**ONE_TRY, timeout=PATIENCE)
        stats: dict[str, Any] = app.control.inspect(timeout=PATIENCE, connection=connection).stats() or {}
        tasks: dict[str, Any] = {}
        if stats:  # those who have answered are waited for, and nobody else
            asking = app.control.inspect(timeout=PATIENCE, connection=connection, limit=len(stats))
            tasks = asking.registered() or {}
    return Workers({name: _answer(told, tasks.get(name)) for name, told in sorted(stats.items())})


def _answer(told: Any, tasks: Any) -> WorkerAnswer:
    tells = told.get("cachetiers") if isinstance(told, dict) else None
    names = frozenset(str(name).partition(" ")[0] for name in tasks) if isinstance(tasks, list) else None
    return WorkerAnswer(tells if isinstance(tells, dict) else {}, names)


def within(seconds: float, act: Callable[[], Workers]) -> Workers:
    """What a function returns, or raises, if it does so in time; it goes on in a daemon thread if it does not.

    Raises:
        TimeoutError: It does not.
    """
    done: queue.SimpleQueue[Workers | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put(act())
        except Exception as error:
            done.put(error)

    if started("cachetiers-doctor", run) is None:
        raise TimeoutError
    try:
        outcome = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
