"""What an engine is made of, as its owner hands it over."""

from __future__ import annotations

from dataclasses import dataclass

from celery_cachetiers.clock import Clock
from celery_cachetiers.events import Events
from celery_cachetiers.local_port import LocalTier
from celery_cachetiers.ports import Backplane, Renewer, Store, WakeUps


@dataclass(frozen=True, slots=True)
class Parts:
    """What a cache is made of. Without a store there is neither backplane nor keeper, and L1 is all there is."""

    l1: LocalTier
    wake_ups: WakeUps
    clock: Clock
    events: Events
    store: Store | None = None
    backplane: Backplane | None = None
    keeper: Renewer | None = None
