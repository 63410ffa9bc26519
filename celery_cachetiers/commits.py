"""When a database's transaction has ended: what must come after the commit waits for it, with Django or SQLAlchemy.

It decides which open transactions an ``on_commit=`` stands for, and drops what waits for one that is rolled back.
Neither library is imported unless it is named or in use already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from celery_cachetiers.errors import ConfigurationError

Act = Callable[[], None]
Wait = Callable[[Act], object]
"""Takes what is to be done once one transaction has been committed."""

_LEDGER = "celery_cachetiers"


def check_on_commit(on_commit: object, where: str | None = None) -> None:
    """Looks at an ``on_commit=`` before anything depends on it.

    Raises:
        ConfigurationError: True, and there is no Django; or something that is no session.
    """
    if on_commit is True and not _has_django():
        raise _no_django(where)
    orm = sys.modules.get("sqlalchemy.orm")
    if orm is not None and isinstance(on_commit, orm.sessionmaker):
        allowed = "the session in use, which a sessionmaker does not know; scoped_session(...) does"
        raise ConfigurationError("on_commit", on_commit, allowed, where)
    named = orm is not None and isinstance(on_commit, (orm.Session, orm.scoped_session))
    if not (named or on_commit is None or isinstance(on_commit, bool) or _is_function(on_commit)):
        allowed = "True, False, a SQLAlchemy session or scoped_session, or a callable that returns the session in use"
        raise ConfigurationError("on_commit", on_commit, allowed, where)


def open_transactions(on_commit: object, where: str | None = None) -> list[Wait]:
    """What has to be waited for; nothing, if no transaction is open.

    Args:
        on_commit: As the task option.

    Raises:
        ConfigurationError: True, and Django is not configured, or a connection is managed by hand.
        Exception: What a callable raises that should have returned a session.
    """
    if on_commit is False:
        return []
    if on_commit is None or on_commit is True:
        return _open_in_django(must=on_commit is True, where=where)
    session = _session_of(on_commit)
    return [] if session is None else _Ledger.of(session).open(session)


class Watch:
    """Whether a session has been committed since; unknown counts as yes, as an early invalidation does no harm.

    A body that reads once more after its commit leaves a transaction open that nobody will commit.
    """

    def __init__(self, on_commit: object) -> None:
        self._on_commit, self._ledger, self._commits = on_commit, None, 0
        if on_commit is None or isinstance(on_commit, bool):
            return
        self._ledger = self._find()
        self._commits = self._ledger.commits if self._ledger is not None else 0

    def has_committed(self) -> bool:
        """Asked where the first look was: in the same thread, about the same session."""
        if self._on_commit is None or isinstance(self._on_commit, bool):
            return False
        return self._ledger is None or self._find() is not self._ledger or self._ledger.commits != self._commits

    def _find(self) -> _Ledger | None:
        try:
            session = _session_of(self._on_commit)
        except Exception:  # not there yet, or not any more
            return None
        return _Ledger.of(session) if session is not None else None


# ---- Django ----------------------------------------------------------------------------------------------------------


def _open_in_django(*, must: bool, where: str | None) -> list[Wait]:
    """Every connection of this thread that is in an atomic block: whichever of them was written to."""
    if must:
        try:
            import django.db  # noqa: F401 - looked up below, as in the case that nobody asked for it
        except ImportError:
            raise _no_django(where) from None
    settings = getattr(sys.modules.get("django.conf"), "settings", None)
    if settings is None or not settings.configured:
        if must:
            raise _no_django(where)
        return []
    connections = getattr(sys.modules.get("django.db"), "connections", None)
    used = connections.all(initialized_only=True) if connections is not None else []
    if must and any(map(_is_manual, used)):
        allowed = (
            "Django tells of no commit after set_autocommit(False): use atomic(), or invalidate after your commit()"
        )
        raise ConfigurationError("on_commit", True, allowed, where)
    return [connection.on_commit for connection in used if connection.in_atomic_block]


def _is_manual(connection: Any) -> bool:
    """Whether somebody else commits: Django takes no ``on_commit`` then, and does not know if anything is open."""
    return not (connection.connection is None or connection.in_atomic_block or connection.autocommit)


def _has_django() -> bool:
    try:
        return "django" in sys.modules or find_spec("django") is not None
    except ImportError:
        return False


def _no_django(where: str | None) -> ConfigurationError:
    allowed = (
        "on_commit=True needs a configured Django: install it and set DJANGO_SETTINGS_MODULE, "
        "or name what to wait for: on_commit=<a SQLAlchemy session>"
    )
    return ConfigurationError("on_commit", True, allowed, where)


# ---- SQLAlchemy ------------------------------------------------------------------------------------------------------


def _is_function(value: object) -> bool:
    """A callable that may return a session, and no session of another kind (asyncio's), which has its own methods."""
    return callable(value) and not hasattr(value, "commit")


def _session_of(found: Any) -> Any:
    """The session that is named, or returned, perhaps by way of a scoped_session; ``None`` if there is none in use.

    Raises:
        TypeError: It is no session.
    """
    from sqlalchemy.orm import Session

    for _ in range(3):
        if found is None or isinstance(found, Session):
            return found
        if not callable(found):
            break
        found = found()
    raise TypeError(f"on_commit takes a SQLAlchemy session, or what returns one, not {found!r}")


class _Ledger:
    """What waits for the commits of one session. It lives in ``session.info``, and its listeners with the session.

    Concurrency: a session belongs to one thread at a time, and so does its ledger.

    Attributes:
        commits: How many transactions of the session have been committed, savepoints left out.
    """

    def __init__(self) -> None:
        self.commits = 0
        self._waiting: list[Act] = []
        self._committing = self._committed = False

    @classmethod
    def of(cls, session: Any) -> _Ledger:
        """The session's ledger, the same one every time."""
        ledger = session.info.get(_LEDGER)
        if isinstance(ledger, cls):
            return ledger
        from sqlalchemy import event

        ledger = session.info[_LEDGER] = cls()
        event.listen(session, "before_commit", ledger._before_commit)
        event.listen(session, "after_commit", ledger._after_commit)
        event.listen(session, "after_rollback", ledger._after_rollback)
        event.listen(session, "after_transaction_end", ledger._after_end)
        return ledger

    def open(self, session: Any) -> list[Wait]:
        """Waits for the session's transaction, if there is one."""
        return [self._waiting.append] if session.in_transaction() else []

    def _before_commit(self, session: Any) -> None:
        if not session.in_nested_transaction():
            self._committing = True

    def _after_rollback(self, session: Any) -> None:
        if not session.in_nested_transaction():
            self._committing = False

    def _after_commit(self, session: Any) -> None:
        if not session.in_nested_transaction():
            self.commits += 1
            self._committed = True

    def _after_end(self, session: Any, transaction: Any) -> None:
        """The whole transaction is over, and the session may be used again: what is raised here breaks nothing."""
        if transaction.parent is not None:
            return
        if self._committing and not self._committed:  # another's after_commit has raised before ours was called
            self.commits += 1
            self._committed = True
        waiting, committed = self._waiting, self._committed
        self._waiting, self._committing, self._committed = [], False, False
        if committed:
            _do_all(waiting)


def _do_all(acts: list[Act]) -> None:
    """Does each, whatever becomes of the others; raises the first of what they raised."""
    errors = []
    for act in acts:
        try:
            act()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
