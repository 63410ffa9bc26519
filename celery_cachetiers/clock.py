"""Time as an argument; it decides nothing, so that every deadline can be tested without waiting."""

from __future__ import annotations

import random
import time as _time
from typing import Final, Protocol

chance: Final = random.SystemRandom()
"""The library's own source of chance: has no state, so neither a fork nor a user's seed touches it, nor it theirs."""


class Clock(Protocol):
    """Where the library takes its time from."""

    def time(self) -> float:
        """Epoch seconds: for instants that other processes read."""

    def monotonic(self) -> float:
        """Seconds that never go back: for limits inside this process."""


class SystemClock:
    """The machine's own clocks."""

    time = staticmethod(_time.time)
    monotonic = staticmethod(_time.monotonic)
