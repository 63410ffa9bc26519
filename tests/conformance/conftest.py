"""What the conformance tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytest.register_assert_rewrite("celery_cachetiers.testing.conformance")


@pytest.fixture
def process(namespace: str) -> Iterator[Callable[..., Any]]:
    """``process(url, **options)`` gives a process' side of a server, in the test's namespace; see `redis_process`."""
    from tests.conformance.redis_process import redis_process  # after the suites were registered, which it imports

    with ExitStack() as stack:
        yield lambda url, **options: stack.enter_context(redis_process(url, namespace, **options))
