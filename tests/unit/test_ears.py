"""What is heard on the backplane cannot harm the thread that hears it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from celery_cachetiers.backplane.ears import Ears
from celery_cachetiers.backplane.waiters import Waiters
from celery_cachetiers.events import Events
from celery_cachetiers.testing import FakeClock
from celery_cachetiers.tiers.memory import MemoryTier


def test_a_question_that_cannot_be_answered_is_logged_and_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def answer(question: Mapping[str, Any]) -> None:
        raise ValueError(question["ask"])

    l1 = MemoryTier(10, 10_000, FakeClock(), trusted=True)
    Ears(l1, Waiters(), Events(), answer).asked({"ask": "too much"})

    assert "ValueError: too much" in caplog.text
