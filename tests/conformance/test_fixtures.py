"""The fixtures that users' tests load, as a project of their own loads them: in another pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.servers import RedisServer

CONFTEST = 'pytest_plugins = ["celery_cachetiers.testing.fixtures"]\n'

APP = """
from celery import Celery
from celery_cachetiers import CachedTask

app = Celery("proj", broker="memory://", backend="cache+memory://")
app.conf.update(task_always_eager=True, cachetiers_url={url!r}, cachetiers_namespace={namespace!r})
calls = []

@app.task(base=CachedTask, tags=["user:{{user_id}}"])
def profile(user_id):
    calls.append(user_id)
    return {{"id": user_id, "call": len(calls)}}
"""

OFF = """
import celery_cachetiers
from proj import app, calls, profile

def test_off(cachetiers_off):
    assert profile.delay(1).get()["call"] != profile.delay(1).get()["call"]
    assert profile(1)["call"] != profile(1)["call"]
    assert profile.cache.get(1) is celery_cachetiers.MISSING

def test_on_again():
    assert profile(2) == profile(2)

def test_apps_of_the_test_itself(cachetiers_off):
    from celery import Celery
    own = Celery("own", set_as_current=False)
    runs = []

    @own.task(base=celery_cachetiers.CachedTask)
    def task():
        runs.append(1)

    task()
    task()
    assert len(runs) == 2
"""

IN_MEMORY = """
import pytest
from proj import app, calls, profile
from celery_cachetiers import CacheTiers, invalidate_tag

@pytest.mark.parametrize("run", [1, 2])
def test_fresh_in_every_test(cachetiers_in_memory, run):
    before = len(calls)
    assert profile(1) == profile(1)
    assert len(calls) == before + 1
    CacheTiers(app).invalidate_tag("user:1")
    profile(1)
    assert len(calls) == before + 2
    assert CacheTiers(app).cache.parts.store is None

def test_gone_afterwards():
    assert CacheTiers(app).cache.parts.store is not None
"""

CLEAR = """
import pytest
from proj import app, calls, profile

def test_before():
    profile(1)

def test_clear(cachetiers_clear):
    before = len(calls)
    profile(1)
    profile(1)
    assert len(calls) == before + 1
"""

CLEAR_FIRST = """
from proj import app, calls, profile

def test_clear(cachetiers_clear):
    profile(1)
    assert calls == [1]
"""

DEAD = "redis://127.0.0.1:1/0"


def run(directory: Path, url: str, namespace: str, tests: str) -> subprocess.CompletedProcess[str]:
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "proj.py").write_text(APP.format(url=url, namespace=namespace))
    (directory / "test_project.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-W", "error", "."]
    return subprocess.run(
        command, cwd=directory, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False
    )


def test_cachetiers_off_runs_every_task_as_if_it_were_not_cached(
    tmp_path: Path, redis_server: RedisServer, namespace: str
) -> None:
    done = run(tmp_path, redis_server.url(), namespace, OFF)

    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_cachetiers_in_memory_needs_no_redis_and_begins_empty(tmp_path: Path, namespace: str) -> None:
    done = run(tmp_path, DEAD, namespace, IN_MEMORY)

    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


@pytest.mark.parametrize(("tests", "passed"), [(CLEAR, "2 passed"), (CLEAR_FIRST, "1 passed")])
def test_cachetiers_clear_leaves_nothing_of_earlier_tests_or_runs(
    tmp_path: Path, redis_server: RedisServer, namespace: str, tests: str, passed: str
) -> None:
    for _ in range(2):
        done = run(tmp_path, redis_server.url(), namespace, tests)

        assert done.returncode == 0, done.stdout
        assert passed in done.stdout


def test_cachetiers_clear_says_so_where_l2_cannot_be_reached(tmp_path: Path, namespace: str) -> None:
    done = run(tmp_path, DEAD, namespace, CLEAR_FIRST)

    assert "1 error" in done.stdout
    assert "TierUnavailable" in done.stdout
