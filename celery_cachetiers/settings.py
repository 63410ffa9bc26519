"""From ``app.conf`` to `Settings`: where each value is looked for, and what stands in where nothing was said."""

from __future__ import annotations

import dataclasses
import os
from typing import Any
from urllib.parse import parse_qs, urlsplit

from celery import Celery

from celery_cachetiers.errors import ConfigurationError
from celery_cachetiers.policy import PREFIX, Settings

OFF_SWITCH = "CACHETIERS_ENABLED"
_OFF, _ON = frozenset({"0", "false", "no", "off"}), frozenset({"1", "true", "yes", "on", ""})


def settings_of(app: Celery) -> Settings:
    """The app's settings, from ``app.conf.update``, ``config_from_object`` or under a namespace such as ``CELERY_``.

    Raises:
        ConfigurationError: For a bad value or a misspelt ``cachetiers_*`` name.
    """
    where = f"app {app.main!r}" if app.main else "the app"
    settings = Settings.resolve(_given(app), where)
    return dataclasses.replace(settings, enabled=settings.enabled and not switched_off())


def _given(app: Celery) -> dict[str, Any]:
    """What follows the prefix in every setting that begins with it, and the value that was said last.

    Of two spellings of one setting ``app.conf[key]`` takes the one under the namespace before Celery 5.7, and the later
    one since: hence the maps, which have the last word first.
    """
    found = {}
    spaces = ("", "celery_", (getattr(app, "namespace", None) or "").lower() + "_")
    app.conf.get(PREFIX)  # reads the configuration, if nothing has so far
    for mapping in reversed(app.conf.maps or ()):
        for key in mapping:
            before, prefix, name = str(key).lower().partition(PREFIX)
            if prefix and before in spaces:
                found[name] = mapping[key]
    return found


def switched_off() -> bool:
    """Whether the environment says so. Raises `ConfigurationError`."""
    value = os.environ.get(OFF_SWITCH, "").strip().lower()
    if value not in _OFF | _ON:
        raise ConfigurationError(OFF_SWITCH, value, "0 or 1 (an environment variable)")
    return value in _OFF


def backend_redis(app: Celery) -> tuple[str, dict[str, Any]] | None:
    """URL and TLS options of the result backend if that is one Redis server, else ``None``."""
    url: object = app.conf.result_backend
    if not isinstance(url, str):
        return None
    parts = urlsplit(url)
    if parts.scheme in ("redis", "rediss"):
        tls = app.conf.get("redis_backend_use_ssl") if parts.scheme == "rediss" else None
        return url, dict(tls) if isinstance(tls, dict) else {}
    if parts.scheme in ("socket", "redis+socket"):
        database = parse_qs(parts.query).get("virtual_host", ["0"])[0].strip("/")
        return f"unix://{parts.path}?db={database}", {}
    return None
