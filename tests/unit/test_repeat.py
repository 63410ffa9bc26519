"""A claim is kept by a thread that nothing discourages, and that ends with its block."""

from __future__ import annotations

import logging
import threading

import pytest

from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.leases.repeat import repeating

WAIT = 10.0


def test_it_acts_again_and_again_whatever_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = [TierUnavailable("away"), ValueError("broken")]
    third = threading.Event()

    def act() -> None:
        if errors:
            raise errors.pop(0)
        third.set()

    with caplog.at_level(logging.ERROR, "celery_cachetiers"), repeating(act, 0.001):
        assert third.wait(WAIT)

    assert caplog.text.count("keeping a claim failed") == 1


@pytest.mark.parametrize("error", [None, KeyError])
def test_the_thread_ends_with_the_block(error: type[Exception] | None) -> None:
    threads: list[threading.Thread] = []
    acted = threading.Event()

    def act() -> None:
        threads.append(threading.current_thread())
        acted.set()

    def block() -> None:
        with repeating(act, 0.001):
            assert acted.wait(WAIT)
            if error:
                raise error

    if error:
        with pytest.raises(error):
            block()
    else:
        block()

    threads[0].join(WAIT)
    assert not threads[0].is_alive()


def test_a_block_without_a_thread_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_cachetiers.leases.repeat.started", lambda name, run: None)
    with repeating(lambda: None, 0.001):
        pass
