"""Beat sends the flush by itself, whatever its scheduler is and whoever else writes into its schedule."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task
from celery.beat import Scheduler, Service
from celery.signals import beat_init

from celery_cachetiers.schedule import entries
from celery_cachetiers.tasks import PERIODIC_HEADER
from celery_cachetiers.write_behind import ON_ITS_WAY, on_its_way
from tests.integration.apps.behind_tasks import BehindDeployment
from tests.integration.apps.worker_setup import new_name
from tests.processes import ROOT, Process, ReservedPort, remove_directory, scratch_directory, wait_until
from tests.servers import RedisServers

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

FLUSH = "celery_cachetiers.flush"
SENT = f"Scheduler: Sending due task {FLUSH} ({FLUSH})"
OWN = {"nap-often": {"task": "nap", "schedule": 0.5}}

Deploy = Callable[..., BehindDeployment]


@pytest.fixture
def deploy(servers: RedisServers) -> Iterator[Deploy]:
    """`deploy(**settings)`: the app here, with `cachetiers_flush_every` half a second."""
    made: list[BehindDeployment] = []

    def make(**settings: Any) -> BehindDeployment:
        made.append(BehindDeployment(servers(), **{"cachetiers_flush_every": 0.5, **settings}))
        return made[-1]

    yield make
    for each in made:
        each.__exit__()


def wait_for(process: Process, text: str, times: int = 1) -> None:
    wait_until(lambda: process.log_text().count(text) >= times, timeout=30, message=text, process=process)


def sent(deployment: BehindDeployment, queue: str | None = None) -> list[dict[str, Any]]:
    """The messages in a queue, the first sent first."""
    with deployment.server.client(1, decode_responses=True) as broker:
        found = broker.lrange(queue or f"{deployment.namespace}-queue", 0, -1)
    return [json.loads(each) for each in reversed(found)]


# ---- Celery's own scheduler ------------------------------------------------------------------------------------------


def test_beat_sends_the_flush_by_itself_and_none_while_one_waits_in_the_queue(deploy: Deploy) -> None:
    deployment = deploy()
    with deployment.beat() as beat:
        wait_for(beat, SENT, 4)
        assert "Traceback" not in beat.log_text()
        [headers] = [message["headers"] for message in sent(deployment)]
        assert headers["task"] == FLUSH
        assert headers["expires"]

        with deployment.worker() as worker:
            wait_until(
                lambda: worker.log_text().count(f"Task {FLUSH}[") >= 4, timeout=30, message=f"more\n{worker.log_tail()}"
            )


def test_a_flush_that_is_sent_by_hand_is_sent_whatever_waits(deploy: Deploy) -> None:
    deployment = deploy()
    flush, periodic = deployment.app.tasks[FLUSH], entries(deployment.tiers)[FLUSH]["options"]
    assert flush.apply_async((), **periodic) is not None
    assert flush.apply_async((), **periodic) is None
    flush.delay()
    flush.delay()
    assert len(sent(deployment)) == 3

    flush.apply(headers=periodic["headers"])  # it has begun
    assert flush.apply_async((), **periodic) is not None


def test_what_could_not_be_sent_is_not_waited_for(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = deploy()
    flush, periodic = deployment.app.tasks[FLUSH], entries(deployment.tiers)[FLUSH]["options"]
    with monkeypatch.context() as patch:
        patch.setattr(Task, "apply_async", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            flush.apply_async((), **periodic)

    assert flush.apply_async((), **periodic) is not None


def test_where_the_journal_is_away_each_is_sent(deploy: Deploy) -> None:
    port = ReservedPort()
    deployment = deploy(cachetiers_journal_url=f"redis://127.0.0.1:{port.number}/0")
    flush, periodic = deployment.app.tasks[FLUSH], entries(deployment.tiers)[FLUSH]["options"]

    assert [flush.apply_async((), **periodic) is not None for _ in range(2)] == [True, True]
    assert flush.apply(headers=periodic["headers"]).get() == {}
    port.release()


def test_two_beats_are_one_too_many_and_break_nothing(deploy: Deploy) -> None:
    deployment = deploy()
    rows = [new_name() for _ in range(20)]
    order = deployment.task("order")
    with deployment.beat() as one, deployment.beat() as other:
        wait_for(one, SENT)
        wait_for(other, SENT)
        assert len(sent(deployment)) == 1
        with deployment.worker() as worker:
            for row in rows:
                order.cache.put((row,), "put")
            wait_until(lambda: not deployment.pending(), timeout=30, message=f"the flush\n{worker.log_tail()}")
            wait_for(one, SENT, 4)
            wait_for(other, SENT, 4)
        assert "Traceback" not in one.log_text() + other.log_text() + worker.log_text()

    assert {row: deployment.values(row) for row in rows} == {row: ["put"] for row in rows}


@pytest.mark.parametrize("when", ["beat_schedule", "behind_schedule"])
def test_it_does_so_beside_the_apps_own_schedule_assigned_before_or_after(deploy: Deploy, when: str) -> None:
    with deploy(**{when: OWN}).beat() as beat:
        wait_for(beat, SENT)
        wait_for(beat, "Sending due task nap-often (nap)")


def test_an_own_entry_of_the_same_name_stays(deploy: Deploy) -> None:
    own = {FLUSH: {"task": "nap", "schedule": 0.5}}
    deployment = deploy(behind_schedule=own)
    with deployment.beat() as beat:
        wait_for(beat, f"Scheduler: Sending due task {FLUSH} (nap)", 2)

        assert SENT not in beat.log_text()


def test_a_scheduler_that_keeps_its_schedule_in_a_file_goes_on_after_a_restart(deploy: Deploy, tmp_path: Path) -> None:
    kept = f"--schedule={tmp_path}/kept"
    for _ in range(2):
        with _beat(deploy(), kept) as beat:
            wait_for(beat, SENT, 2)
            assert "Traceback" not in beat.log_text()


class _beat:
    """A beat whose schedule outlives it."""

    def __init__(self, deployment: BehindDeployment, *options: str, **env: str) -> None:
        self.directory = scratch_directory("beat")
        command = [sys.executable, "-m", "celery", "-A", deployment.module, "beat", "--loglevel=DEBUG"]
        command += ["--max-interval=1", f"--pidfile={self.directory}/pid", *options]
        environment = {**os.environ, **deployment.environment(), **env}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(self.directory)])
        self.process = Process(command, log=self.directory / "log", env=environment, cwd=self.directory)

    def __enter__(self) -> Process:
        self.process.start()
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.stop()
        remove_directory(self.directory)


def test_the_queue_of_the_flushes_can_be_named(deploy: Deploy) -> None:
    queue = new_name()
    deployment = deploy(cachetiers_flush_queue=queue)
    with deployment.beat() as beat:
        wait_for(beat, SENT)
        wait_until(lambda: bool(sent(deployment, queue)), timeout=10, message="a message", process=beat)

    assert sent(deployment, queue)[0]["headers"]["task"] == FLUSH
    assert sent(deployment) == []


def test_a_worker_with_a_beat_in_it_flushes_what_waits(deploy: Deploy, tmp_path: Path) -> None:
    deployment = deploy()
    row = new_name()
    deployment.task("order").cache.put((row,), "put")
    with deployment.worker("--beat", f"--schedule={tmp_path}/kept") as worker:
        wait_until(lambda: deployment.values(row) == ["put"], timeout=30, message=f"the flush\n{worker.log_tail()}")


# ---- what is in the entry --------------------------------------------------------------------------------------------


def test_a_sink_that_may_not_wait_so_long_shortens_it(deploy: Deploy) -> None:
    deployment = deploy(cachetiers_flush_every=5, behind_sink={"max_delay": 1.5})

    entry = entries(deployment.tiers)[FLUSH]
    assert (entry["schedule"], entry["options"]) == (1.5, {"expires": ON_ITS_WAY, "headers": {PERIODIC_HEADER: True}})
    assert on_its_way(2 * ON_ITS_WAY) == 2 * ON_ITS_WAY


def test_one_that_may_wait_longer_does_not_lengthen_it(deploy: Deploy) -> None:
    assert entries(deploy(behind_sink={"max_delay": 60}).tiers)[FLUSH]["schedule"] == 0.5


def test_without_a_sink_nothing_is_sent(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = deploy()
    monkeypatch.setattr("celery_cachetiers.sinks._names", {})
    assert FLUSH in entries(deployment.tiers)  # its tasks write behind, though this process has not imported the sink

    for name in [name for name, task in deployment.app.tasks.items() if getattr(type(task), "write", None)]:
        del deployment.app.tasks[name]
    assert FLUSH not in entries(deployment.tiers)


def test_an_app_without_the_extension_is_left_alone() -> None:
    plain = Celery("plain", set_as_current=False)
    service = Service(plain, scheduler_cls=Scheduler)
    service.scheduler = Scheduler(plain)  # type: ignore[misc]
    beat_init.send(sender=service)

    assert FLUSH not in service.scheduler.schedule


# ---- other schedulers ------------------------------------------------------------------------------------------------


def test_redbeat_sends_it_and_goes_on_after_a_restart(deploy: Deploy) -> None:
    pytest.importorskip("redbeat")
    deployment = deploy()
    settings = {"redbeat_redis_url": deployment.server.url(5), "redbeat_lock_key": None}
    for _ in range(2):
        with deployment.beat("--scheduler=redbeat.RedBeatScheduler", **settings) as beat:
            wait_for(beat, SENT, 2)
            assert "Traceback" not in beat.log_text()


DJANGO = """
    SECRET_KEY = "tests"
    INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat"]
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "DIRECTORY/db"}}
    DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
    USE_TZ = True
"""
LOOK = """
    import django; django.setup()
    from django_celery_beat.models import PeriodicTask
    task = PeriodicTask.objects.get(name="celery_cachetiers.flush")
    report = PeriodicTask.objects.get(name="celery_cachetiers.report")
    print(task.enabled, task.interval.every, task.expire_seconds, task.queue)
    print(report.enabled, report.interval.every, report.expire_seconds, report.queue)
"""


def test_the_scheduler_of_django_celery_beat_has_it_in_its_database_and_may_turn_it_off(
    deploy: Deploy, tmp_path: Path
) -> None:
    if find_spec("django_celery_beat") is None:  # not imported here: Django would stay behind, without settings
        pytest.skip("django-celery-beat is not installed")
    (tmp_path / "beat_settings.py").write_text(textwrap.dedent(DJANGO).replace("DIRECTORY", str(tmp_path)))
    env = {"DJANGO_SETTINGS_MODULE": "beat_settings", "PYTHONPATH": f"{ROOT}:{tmp_path}"}

    def django(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env={**os.environ, **env}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    django("-m", "django", "migrate", "--verbosity=0")
    deployment, scheduler = deploy(), "--scheduler=django_celery_beat.schedulers:DatabaseScheduler"
    setup = {**env, "DJANGO_SETTINGS_MODULE": "beat_settings"}
    with _django_beat(deployment, scheduler, setup) as beat:
        wait_for(beat, SENT, 2)
        assert "Traceback" not in beat.log_text()
    assert django("-c", textwrap.dedent(LOOK)) == "True 1 60 None\nTrue 60 60 None"
    assert sent(deployment)[0]["headers"]["expires"]

    off = textwrap.dedent(LOOK).replace("print(task", "PeriodicTask.objects.update(enabled=False); print(task")
    django("-c", off)
    with _django_beat(deployment, scheduler, setup) as beat:
        wait_for(beat, "beat: Waking up", 2)
        assert SENT not in beat.log_text()
    assert django("-c", textwrap.dedent(LOOK)) == "False 1 60 None\nFalse 60 60 None"


class _django_beat(_beat):
    def __init__(self, deployment: BehindDeployment, scheduler: str, env: dict[str, str]) -> None:
        super().__init__(deployment, scheduler, **env)
        environment = self.process._env
        assert environment is not None
        environment["PYTHONPATH"] = env["PYTHONPATH"]
