"""Users' own harness: memoized tasks on the worker that pytest-celery sets up."""

from __future__ import annotations

from types import ModuleType

import pytest
from celery import group
from pytest_celery import RESULT_TIMEOUT, CeleryTestSetup

from tests.integration.apps import worker_plugin
from tests.integration.apps.worker_setup import new_name

# Celery's Redis backend calls redis-py's setex, which redis-py 8.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


@pytest.fixture
def default_worker_tasks(default_worker_tasks: set[ModuleType]) -> set[ModuleType]:
    return default_worker_tasks | {worker_plugin}


def test_duplicates_on_the_plugins_worker_are_computed_once(celery_setup: CeleryTestSetup) -> None:
    text, queue = new_name(), celery_setup.worker.worker_queue

    together = group(worker_plugin.echo.s(text).set(queue=queue) for _ in range(6)).apply_async()
    values = together.get(timeout=RESULT_TIMEOUT)
    later = celery_setup.app.send_task(worker_plugin.ECHO, (text,), queue=queue).get(timeout=RESULT_TIMEOUT)

    assert len(values) == 6
    assert {*values, later} == {values[0]}
    celery_setup.worker.assert_log_exists(f"computing {text}")
    assert celery_setup.worker.logs().count(f"computing {text}") == 1
