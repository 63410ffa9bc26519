"""Which apps of this process have the extension, and which of them is meant where none is named."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, Final

from celery import _state

from celery_cachetiers.errors import ConfigurationError

if TYPE_CHECKING:
    from celery_cachetiers.app import CacheTiers

EVERYWHERE: Final[weakref.WeakSet[CacheTiers]] = weakref.WeakSet()


def installed() -> CacheTiers:
    """The extension of the current app, else of the process' only app that has it.

    Raises:
        ConfigurationError: None has it, or several have and none is current.
    """
    app: Any = _state.get_current_app()  # the stubs lack `autofinalize` and `finalized`
    if not hasattr(app, "_cachetiers") and app.autofinalize and not (app.finalized or is_fallback(app)):
        app.finalize()  # its tasks are bound then, and those that are cached install the extension
    current: CacheTiers | None = getattr(app, "_cachetiers", None)
    if current is not None:
        return current
    everywhere = list(EVERYWHERE)
    if len(everywhere) == 1:
        return everywhere[0]
    allowed = "exactly one app with CacheTiers(app) or a CachedTask; or call CacheTiers(app).invalidate_tag(...)"
    raise ConfigurationError("app", [each.app.main for each in everywhere], allowed)


def is_fallback(app: Any) -> bool:
    """Whether Celery has made the app itself, as no other is current: in threads it is there beside the user's."""
    return app.main == "default" and app is _state.default_app  # type: ignore[attr-defined]  # not in the stubs


def _reset_children() -> None:
    for extension in list(EVERYWHERE):
        extension.reset_after_fork()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows, which does not fork
    os.register_at_fork(after_in_child=_reset_children)
