"""The public names: what `__all__` promises is there, and what is there is promised."""

from __future__ import annotations

import importlib.metadata
import inspect

import celery_cachetiers


def test_all_names_exactly_what_is_public() -> None:
    public = {
        name
        for name, value in vars(celery_cachetiers).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    promised = {name for name in celery_cachetiers.__all__ if not name.startswith("_")}

    # A name may be loaded when it is first asked for, so __all__ may hold more than the module does, never less.
    assert public - {"annotations"} <= promised
    assert [name for name in promised if not hasattr(celery_cachetiers, name)] == []


def test_all_has_every_name_once_and_in_order() -> None:
    assert list(celery_cachetiers.__all__) == sorted(set(celery_cachetiers.__all__), key=_order)


def _order(name: str) -> tuple[int, str]:
    """Constants, classes, functions: the order in which ruff (RUF022) sorts `__all__`."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


def test_the_version_is_that_of_the_distribution() -> None:
    assert celery_cachetiers.__version__ == importlib.metadata.version("celery-cachetiers")
