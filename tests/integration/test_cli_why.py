"""`celery -A proj cachetiers why`, `get` and `tags`: what they print, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest
from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers, sink
from tests.integration.apps.command_line import Run, command_line
from tests.integration.apps.local import Count, cached_app, closing
from tests.integration.apps.worker_setup import Deployment, new_name
from tests.processes import ROOT
from tests.proxy import RedisProxy
from tests.servers import RedisServer

pytestmark = pytest.mark.usefixtures("own_tasks")


@pytest.fixture
def app(namespace: str, redis_proxy: RedisProxy) -> Iterator[Celery]:
    with closing(cached_app(namespace, redis_proxy.url())) as app:
        yield app


@pytest.fixture
def count() -> Count:
    return Count()


@pytest.fixture
def profile(app: Celery, count: Count) -> Any:
    @app.task(base=CachedTask, name="proj.profile", tags=["user:{user_id}"], l1=False)
    def profile(user_id: int, kind: str = "short") -> dict[str, Any]:
        count(user_id)
        return {"user": user_id, "kind": kind}

    @app.task(base=CachedTask, name="proj.accounting.invoices.monthly.charge")
    def charge() -> None: ...

    return profile


@pytest.fixture
def run(app: Celery) -> Run:
    return command_line(app)


# ---- why -------------------------------------------------------------------------------------------------------------


def test_why_prints_what_the_task_says(profile: Any, run: Run) -> None:
    profile(1)
    done = run("why", "proj.profile", "--args", "[1]")

    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == "proj.profile(user_id=1, kind='short'): hit (fresh in L2)"
    assert "  key      " + profile.cache.key(1) + " of proj.profile" in done.stdout


def test_that_the_command_itself_has_nothing_in_memory_is_not_told_as_a_fault(app: Celery, run: Run) -> None:
    @app.task(base=CachedTask, name="proj.page")
    def page() -> int:
        return 1

    said = run("why", "proj.page").stdout

    assert "  L1       this command's own process has none: ask a worker or web process" in said
    assert "not trusted" not in said


def test_why_takes_keywords_and_a_mode_and_gives_all_of_it_as_json(profile: Any, count: Count, run: Run) -> None:
    done = run("why", "proj.profile", "--args", "[1]", "--kwargs", '{"kind": "long"}', "--mode", "only", "--json")
    given = json.loads(done.stdout)

    assert (given["verdict"], given["cause"], given["mode"]) == ("miss", "no entry", "only")
    assert given["arguments"] == {"user_id": 1, "kind": "long"}
    assert given["key"] == profile.cache.key(1, "long")
    assert set(given) == set(profile.cache.why(1).as_dict())
    assert len(count) == 0


def test_why_with_redis_away_says_so_and_is_no_failure(profile: Any, run: Run, redis_proxy: RedisProxy) -> None:
    redis_proxy.refuse()
    done = run("why", "proj.profile", "--args", "[1]")

    assert done.exit_code == 0
    assert "Redis away" in done.stdout


@pytest.mark.parametrize("command", ["why", "get"])
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["profile"], "is it proj.profile?"),
        (["charge"], "is it proj.accounting.invoices.monthly.charge?"),
        (["proj.profil"], "is it proj.profile?"),
        (["nothing.like.it"], "there is no task nothing.like.it\n"),
        (["celery.backend_cleanup"], "is not memoized"),
        (["proj.profile", "--args", "[1"], "is not JSON"),
        (["proj.profile", "--args", '{"user_id": 1}'], "is not JSON such as [1,"),
        (["proj.profile", "--kwargs", "[1]"], 'is not JSON such as {"'),
        ([], "Missing argument 'TASK'"),
    ],
)
def test_what_cannot_be_a_call_ends_with_2(
    profile: Any, run: Run, command: str, arguments: list[str], complaint: str
) -> None:
    done = run(command, *arguments)

    assert done.exit_code == 2
    assert complaint in done.stderr
    assert done.stdout == ""


def test_the_celery_command_has_it(redis_server: RedisServer) -> None:
    if "cachetiers" not in entry_points(group="celery.commands").names:
        pytest.skip("the package was installed before it had the command")
    with Deployment(redis_server) as deployment:
        name = new_name()
        deployment.task("work.plain")(name)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "celery", "-A", deployment.module, "cachetiers"),
                *("why", "work.plain", "--args", json.dumps([name]), "--json"),
            ],
            env={**os.environ, **deployment.environment(), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

        assert done.returncode == 0, done.stderr
        given = json.loads(done.stdout)
        assert (given["verdict"], given["cause"]) == ("hit", "fresh in L2")
        assert deployment.book.computes(name) == 1


# ---- get -------------------------------------------------------------------------------------------------------------


def test_get_prints_the_value_and_counts_nothing(profile: Any, run: Run, app: Celery) -> None:
    profile(1)
    before = profile.cache.info()
    plain, programs = run("get", "proj.profile", "--args", "[1]"), run("get", "proj.profile", "--args", "[1]", "--json")

    assert (plain.exit_code, plain.stdout) == (0, "{'user': 1, 'kind': 'short'}\n")
    given = json.loads(programs.stdout)
    assert (given["found"], given["value"]) == (True, {"user": 1, "kind": "short"})
    assert profile.cache.info() == before


def test_get_of_nothing_ends_with_1_and_computes_nothing(profile: Any, count: Count, run: Run) -> None:
    plain, programs = run("get", "proj.profile", "--args", "[1]"), run("get", "proj.profile", "--args", "[1]", "--json")

    assert (plain.exit_code, plain.stdout) == (1, "")
    assert "miss (no entry)" in plain.stderr
    assert programs.exit_code == 1
    assert json.loads(programs.stdout) == {"found": False, "value": None, "verdict": "miss", "cause": "no entry"}
    assert len(count) == 0


def test_get_prints_nothing_that_was_invalidated(profile: Any, app: Celery, run: Run) -> None:
    profile(1)
    CacheTiers(app).invalidate_tag("user:1")
    done = run("get", "proj.profile", "--args", "[1]")

    assert (done.exit_code, done.stdout) == (1, "")


def test_get_tells_none_from_nothing(app: Celery, run: Run) -> None:
    @app.task(base=CachedTask, name="none")
    def none() -> None: ...

    none.cache.put((), None)
    done = run("get", "none")

    assert (done.exit_code, done.stdout) == (0, "None\n")


def test_get_gives_a_value_as_json_whose_keys_are_no_text(app: Celery, run: Run) -> None:
    app.conf.accept_content = ["json", "pickle"]

    @app.task(base=CachedTask, name="board", cache_serializer="pickle")
    def board() -> dict[Any, Any]:
        return {(1, 2): "x", 3: ["y"]}

    board()
    done = run("get", "board", "--json")

    assert json.loads(done.stdout)["value"] == {"(1, 2)": "x", "3": ["y"]}


def test_get_prints_what_waits_for_its_sink(app: Celery, run: Run, own_sinks: None) -> None:
    sink("rows")(lambda writes: None)

    @app.task(base=CachedTask, name="row", sink="rows", write="behind", tags=["rows"])
    def row(number: int) -> int:
        return number

    row.cache.put((7,), 70)
    CacheTiers(app).invalidate_tag("rows")

    assert run("get", "row", "--args", "[7]").stdout == "70\n"


# ---- tags ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def declared(app: Celery) -> Celery:
    @app.task(base=CachedTask, name="basket", tags=["user:{owner}", "shop:{shop}"])
    def basket(owner: int, shop: int) -> None: ...

    @app.task(base=CachedTask, name="page", tags=["user:{user_id}"])
    def page(user_id: int) -> None: ...

    @app.task(name="rename", invalidates=["user:{user_id}", "stock"])
    def rename(user_id: int) -> None: ...

    return app


def test_tags_lists_who_depends_and_who_invalidates(declared: Celery, run: Run) -> None:
    CacheTiers(declared).invalidate_tags(["user:1", "user:2"])
    done = run("tags")

    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].split("  ")[0] == "tag"
    table = {line.split("  ")[0]: line for line in lines[1:4]}
    assert "basket, page" in table["user:{}"]
    assert "rename" in table["user:{}"]
    assert table["user:{}"].endswith("2")
    assert "basket" in table["shop:{}"]
    assert "(no task)" in table["shop:{}"]
    assert "(nobody)" in table["stock"]
    assert "Never invalidated, as far as was counted: shop:{}." in lines
    assert "Invalidated, and no task here depends on it: stock." in lines


def test_tags_for_programs(declared: Celery, run: Run) -> None:
    CacheTiers(declared).invalidate_tag("shop:1")
    given = json.loads(run("tags", "--json").stdout)

    assert [each["tag"] for each in given["tags"]] == ["shop:{}", "stock", "user:{}"]
    assert given["tags"][2] == {
        "tag": "user:{}",
        "templates": ["user:{owner}", "user:{user_id}"],
        "dependants": ["basket", "page"],
        "invalidators": ["rename"],
        "invalidated": 0,
    }
    assert given["tags"][0]["invalidated"] == 1
    assert given["unused"] == ["stock"]
    assert given["computed"] == given["computed_invalidators"] == []


def test_tags_that_no_declaration_tells_are_named_by_their_tasks(declared: Celery, run: Run) -> None:
    @declared.task(base=CachedTask, name="top", tags_from=lambda result: ["x"])
    def top() -> None: ...

    @declared.task(name="import", invalidates=lambda arguments, result: ["y"])
    def load() -> None: ...

    output = run("tags").stdout

    assert "made by a callable or a result: top." in output
    assert "Invalidate what a callable says: import." in output
    assert "no task here depends on it" not in output  # nobody can know


def test_tags_with_redis_away_are_listed_without_their_counts(
    declared: Celery, run: Run, redis_proxy: RedisProxy
) -> None:
    redis_proxy.refuse()
    done, programs = run("tags"), run("tags", "--json")

    assert done.exit_code == 0
    assert "How often they were invalidated is not known: Redis cannot be reached: " in done.stdout
    assert "Never invalidated" not in done.stdout
    assert json.loads(programs.stdout)["tags"][0]["invalidated"] is None


def test_an_app_without_tags_says_so(app: Celery, run: Run) -> None:
    assert run("tags").stdout.splitlines()[0] == "No task of the app declares a tag."
