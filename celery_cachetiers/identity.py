"""By what two processes of one deployment can be told to agree: version, namespace, and where L2 is."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from celery_cachetiers.address import address_of
from celery_cachetiers.app import CacheTiers

DISTRIBUTION: Final = "celery-cachetiers"
MEMORY_ONLY: Final = "memory"


def told_by(tiers: CacheTiers) -> dict[str, Any]:
    """What a process says of its extension, without secrets; ready for JSON. Raises `ConfigurationError`."""
    where = tiers.where()
    return {
        "version": version(DISTRIBUTION),
        "enabled": tiers.settings.enabled,
        "namespace": tiers.settings.namespace,
        "l2": MEMORY_ONLY if where is None else str(address_of(where[0])),
    }
