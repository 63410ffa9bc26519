"""pytest fixtures for the tests of projects that use the library.

``pytest_plugins = ["celery_cachetiers.testing.fixtures"]`` in the outermost ``conftest.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import _state

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.installed import EVERYWHERE

pytest.register_assert_rewrite("celery_cachetiers.testing.conformance")


@pytest.fixture
def cachetiers_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task runs as if it were not cached, for the length of the test."""
    _switch_on(monkeypatch, "suspended")


@pytest.fixture
def cachetiers_in_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tasks are cached in memory only, without Redis: empty when the test begins, gone when it ends."""
    with pytest.MonkeyPatch.context() as patch:
        _switch_on(patch, "in_memory")
        _reset_all()
        yield
    _reset_all()


@pytest.fixture
def cachetiers_clear() -> None:
    """L1 and L2 are empty when the test begins. Raises `TierUnavailable` if L2 cannot be reached."""
    for extension in _extensions():
        extension.clear()


def _extensions() -> list[CacheTiers]:
    """The extension of every app that has it; lazily bound tasks are bound first, as that is what installs it."""
    for app in _state._get_active_apps():  # type: ignore[attr-defined]  # not in celery-types 0.26
        if app.autofinalize:
            app.finalize(auto=True)
    return list(EVERYWHERE)


def _switch_on(patch: pytest.MonkeyPatch, switch: str) -> None:
    for extension in _extensions():  # before the class, whose value pytest 8 would give them back
        patch.setattr(extension, switch, True)
    patch.setattr(CacheTiers, switch, True)  # for apps that are installed during the test


def _reset_all() -> None:
    for extension in list(EVERYWHERE):
        extension.reset()
