"""How the extension sees a task that only invalidates: by Celery's own hook for a task that is bound to its app.

To look when the app is finalized would be too late for a direct call, which needs no finalized app.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

from celery import Celery, Task, _state

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.declaration import has_sink, misspelt_invalidates
from celery_cachetiers.errors import ConfigurationError
from celery_cachetiers.invalidating import declare

logger = logging.getLogger("celery_cachetiers")


def _install_where_declared(app: Celery) -> None:
    """Installs the extension in an app that only invalidates, for tasks that were bound before this was imported."""
    tasks = app._tasks.values()  # type: ignore[attr-defined]  # `tasks` would finalize
    if any(_declares(type(task)) for task in tasks):
        CacheTiers(app)


def _declares(cls: type) -> bool:
    return getattr(cls, "invalidates", None) is not None or has_sink(cls)


_warned: weakref.WeakSet[type] = weakref.WeakSet()
_on_bound = Task.on_bound.__func__  # type: ignore[attr-defined]  # of the classmethod


def _bound(cls: Any, app: Celery) -> None:
    """Sees every task as it is bound to an app, which is before its first call, however early that is.

    Celery calls this hook for "additional actions when the task class is bound to an app", and has none itself.
    """
    _on_bound(cls, app)
    task = app._tasks.get(cls.name)  # type: ignore[attr-defined]
    if type(task) is not cls:
        return
    _warn_of_near_miss(cls)
    if not (_declares(cls) or hasattr(app, "_cachetiers")):
        return
    try:
        declare(CacheTiers(app), task)
    except ConfigurationError:
        app._tasks.pop(cls.name, None)  # type: ignore[attr-defined]  # else the next look would find it, and it would run
        raise


def _warn_of_near_miss(cls: Any) -> None:
    """Once, as Celery binds a task anew when its app is finalized. A cached task has been refused before."""
    misspelt = misspelt_invalidates(cls)
    if misspelt is not None and cls not in _warned:
        _warned.add(cls)
        logger.warning("celery-cachetiers: invalidate=%r of task %s: did you mean invalidates=?", misspelt, cls.name)


def see_every_task() -> None:
    """Sees every task that is bound from now on, and those of every app when that is finalized."""
    Task.on_bound = classmethod(_bound)  # type: ignore[assignment,method-assign]
    _state.connect_on_app_finalize(_install_where_declared)
