"""Options and settings: a bad value is refused with its name, what was given and what is allowed; no secret is told."""

from __future__ import annotations

import dataclasses
import decimal
import pickle
from typing import Any

import pytest

from celery_cachetiers.errors import ConfigurationError
from celery_cachetiers.policy import Policy, Settings, near_miss

INF, NAN = float("inf"), float("nan")

SECONDS_ABOVE_ZERO: list[object] = ["5m", "300", None, True, False, 0, -1, -0.5, NAN, INF, -INF, [], 10**400, 1j]
SECONDS: list[object] = ["5m", None, True, -1, NAN, INF, -(10**400), decimal.Decimal(1)]
COUNTS: list[object] = [0, -1, 1.5, "100", True, None, NAN]
FLAGS: list[object] = [0, 1, "yes", "", None]
CALLABLES: list[object] = ["result", 1, True, [len]]
TEXTS: list[object] = ["", b"json", 1, True]
LEASES: list[object] = [0, 0.05, 3601, True, NAN, "10", None]

BAD_OPTIONS: dict[str, list[object]] = {
    "cache_enabled": FLAGS,
    "ttl": SECONDS_ABOVE_ZERO,
    "grace": SECONDS,
    "jitter": SECONDS,
    "refresh_ahead": [0, 1.1, -1, True, "0.8", NAN],
    "beta": [0, -1, True, "1", NAN, INF],
    "ttl_from": CALLABLES,
    "tags": ["user:1", b"user:1", 5, True, {"a": 1}, [1], [""], ["ok", None], None],
    "tags_from": CALLABLES,
    "key": CALLABLES,
    "ignore": ["request_id", 5, True, [1], [""], {"a": 1}],
    "version": [1.5, True, None, b"1", ["1"]],
    "invalidates": ["user:{id}", 5, [], [1], [""], {"a": 1}, False],
    "invalidate_on_failure": [1, "yes"],
    "on_commit": ["default", 5, []],
    "consistency": ["none", "", True, None, 0],
    "coalesce": ["Publish", "Wait", True, None, 0, 1],
    "lease_ttl": LEASES,
    "wait_limit": SECONDS_ABOVE_ZERO,
    "share_errors": FLAGS,
    "cache_if": CALLABLES,
    "sink": ["", "a b", "é", "x" * 65, 5, True, ["orders"]],
    "write": ["", "Through", "back", True, 1],
    "l1": FLAGS,
    "l1_ttl": SECONDS_ABOVE_ZERO,
    "l1_copy": FLAGS,
    "cache_serializer": TEXTS,
    "max_bytes": [*COUNTS, 512 * 1024**2 + 1],
    "publish_hits": FLAGS,
}

BAD_SETTINGS: dict[str, list[object]] = {
    "enabled": FLAGS,
    "url": [
        "", "localhost", "localhost:6379", "http://localhost", "amqp://localhost", "redis://", "redis:///0",
        "redis://localhost:port", "redis://localhost:99999", "redis://localhost/zero", "redis://localhost/-1",
        "unix://", "sentinel://localhost", "memory://", 6379, True, b"redis://localhost", ["redis://localhost"],
    ],
    "namespace": ["", "a b", "a{b}", "é", "x" * 65, 1, None, True, "a\n"],
    "ttl": SECONDS_ABOVE_ZERO,
    "grace": SECONDS,
    "jitter": SECONDS,
    "l1_maxsize": COUNTS,
    "l1_max_bytes": COUNTS,
    "l1_ttl": SECONDS_ABOVE_ZERO,
    "l1_tracking": FLAGS,
    "serializer": TEXTS,
    "compression": TEXTS,
    "max_bytes": [*COUNTS, 512 * 1024**2 + 1],
    "lease_ttl": LEASES,
    "wait_limit": SECONDS_ABOVE_ZERO,
    "timeout": [0, 61, -1, True, "0.25", NAN, None],
    "breaker_window": SECONDS,
    "publish_hits": FLAGS,
    "strict_keys": FLAGS,
    "journal_url": ["", "localhost", "http://localhost", 6379, True],
    "flush_every": [0, 0.05, 86_401, True, "5", NAN, None],
    "flush_queue": TEXTS,
    "report_every": [0, 0.5, 86_401, True, "60", NAN],
    "report_queue": TEXTS,
    "hit_ratio_target": [-0.1, 1.1, 90, True, "0.9", None, NAN],
}  # fmt: skip

GOOD_OPTIONS: dict[str, list[tuple[object, object]]] = {
    "ttl": [(1, 1.0), (0.5, 0.5)],
    "grace": [(0, 0.0)],
    "refresh_ahead": [(None, None), (1, 1.0), (0.8, 0.8)],
    "tags": [(["user:{id}"], ("user:{id}",)), (("a", "b"), ("a", "b")), ([], ()), (len, len)],
    "ignore": [(["a"], ("a",))],
    "invalidates": [(["user:{id}"], ("user:{id}",)), (len, len)],
    "on_commit": [(True, True), (False, False), (None, None), (len, len)],
    "version": [(2, "2"), ("v2", "v2"), ("", "")],
    "coalesce": [("wait", "wait"), ("publish", "publish"), (False, False)],
    "cache_serializer": [(None, None), ("pickle", "pickle")],
    "lease_ttl": [(0.1, 0.1), (3600, 3600.0)],
}

GOOD_URLS = [
    None, "redis://localhost", "redis://localhost:6379/2", "rediss://user:pw@host:1/0", "redis://[::1]:6379/0",
    "unix:///tmp/redis.sock", "unix:///tmp/redis.sock?db=3", "redis://:p%40ss%2Fword@host/1",
]  # fmt: skip


def cases(table: dict[str, list[object]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={value!r}"[:60]) for name in table for value in table[name]]


@pytest.mark.parametrize(("option", "value"), cases(BAD_OPTIONS))
def test_a_bad_option_is_refused_with_its_name_its_value_and_what_is_allowed(option: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Policy.check({option: value}, "task proj.profile")

    error = raised.value
    assert (error.option, error.where) == (option, "task proj.profile")
    assert error.value is value
    assert error.allowed
    assert all(part in str(error) for part in (option, repr(value), "task proj.profile", error.allowed))


@pytest.mark.parametrize(("setting", "value"), cases(BAD_SETTINGS))
def test_a_bad_setting_is_refused_under_its_full_name(setting: str, value: object) -> None:
    if value is None and setting in ("url", "serializer", "compression"):
        pytest.skip("None is a value here")
    with pytest.raises(ConfigurationError) as raised:
        Settings.resolve({setting: value}, "app 'proj'")

    error = raised.value
    assert error.option == f"cachetiers_{setting}"
    assert all(part in str(error) for part in (error.option, repr(value), "app 'proj'", error.allowed))


def test_every_option_and_every_setting_is_in_these_tables() -> None:
    assert set(BAD_OPTIONS) == {field.name for field in dataclasses.fields(Policy)}
    assert {*BAD_SETTINGS, "signing_key"} == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize(
    ("option", "given", "kept"),
    [(option, *case) for option, pairs in GOOD_OPTIONS.items() for case in pairs],
)
def test_a_good_option_is_kept_in_its_one_form(option: str, given: object, kept: object) -> None:
    checked = Policy.check({option: given}, "task t")[option]

    assert checked == kept
    assert type(checked) is type(kept)


@pytest.mark.parametrize("url", GOOD_URLS)
def test_a_good_url_is_kept_as_it_is(url: str | None) -> None:
    assert Settings.resolve({"url": url}, "app").url == url


def test_the_defaults_are_those_of_the_design() -> None:
    settings = Settings.resolve({}, "app")

    assert (settings.enabled, settings.url, settings.namespace) == (True, None, "cachetiers")
    assert (settings.ttl, settings.grace, settings.jitter) == (300.0, 0.0, 0.0)
    assert (settings.l1_maxsize, settings.l1_max_bytes, settings.l1_ttl) == (10_000, 64 * 1024**2, 30.0)
    assert (settings.serializer, settings.compression, settings.max_bytes) == (None, None, 16 * 1024**2)
    assert (settings.lease_ttl, settings.wait_limit) == (10.0, 300.0)
    assert (settings.timeout, settings.breaker_window) == (0.25, 5.0)
    assert (settings.publish_hits, settings.strict_keys, settings.signing_key) == (True, False, ())


# -- which value wins --------------------------------------------------------------------------------------------------

INHERITED = {
    "cache_enabled": ("enabled", False, True),
    "ttl": ("ttl", 7.0, 8.0),
    "grace": ("grace", 7.0, 8.0),
    "jitter": ("jitter", 1.0, 2.0),
    "lease_ttl": ("lease_ttl", 7.0, 8.0),
    "wait_limit": ("wait_limit", 7.0, 8.0),
    "l1_ttl": ("l1_ttl", 7.0, 8.0),
    "cache_serializer": ("serializer", "yaml", "pickle"),
    "max_bytes": ("max_bytes", 7, 8),
    "publish_hits": ("publish_hits", False, True),
}


@pytest.mark.parametrize("option", INHERITED)
def test_a_task_option_wins_over_the_setting_and_the_setting_over_the_default(option: str) -> None:
    setting, from_app, from_task = INHERITED[option]
    settings = Settings.resolve({setting: from_app}, "app")

    assert getattr(Policy.resolve({}, Settings.resolve({}, "app"), "t"), option) == getattr(Policy(), option)
    assert getattr(Policy.resolve({}, settings, "t"), option) == from_app
    assert getattr(Policy.resolve({option: from_task}, settings, "t"), option) == from_task


def test_every_option_with_a_setting_of_the_same_meaning_inherits_it() -> None:
    assert set(INHERITED) == {field.name for field in dataclasses.fields(Policy) if field.metadata["setting"]}


@pytest.mark.parametrize(("jitter", "ttl"), [(10.0, 10.0), (11.0, 10.0)])
def test_a_jitter_that_leaves_nothing_of_the_ttl_is_refused_wherever_the_two_come_from(
    jitter: float, ttl: float
) -> None:
    for options, settings in (({"jitter": jitter, "ttl": ttl}, {}), ({"ttl": ttl}, {"jitter": jitter})):
        with pytest.raises(ConfigurationError, match=r"jitter=.*below ttl=10\.0"):
            Policy.resolve(options, Settings.resolve(settings, "app"), "task t")


def test_the_hard_ttl_is_ttl_and_grace() -> None:
    assert Policy(ttl=10.0, grace=5.0).hard_ttl == 15.0


def test_policies_and_settings_cannot_be_changed() -> None:
    for made in (Policy(), Settings()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.ttl = 5.0  # type: ignore[misc]  # what is tested


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [("ttll", "ttl"), ("l1_max_size", "l1_maxsize"), ("namspace", "namespace"), ("lease_tll", "lease_ttl")],
)
def test_an_unknown_setting_is_refused_with_the_one_that_was_meant(name: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"did you mean cachetiers_{meant}") as raised:
        Settings.resolve({name: 1}, "app")

    assert raised.value.option == f"cachetiers_{name}"


def test_an_unknown_setting_like_no_other_is_refused_without_a_guess() -> None:
    with pytest.raises(ConfigurationError, match=r"there is no setting of this name$"):
        Settings.resolve({"qqqqqq": 1}, "app")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("tag", "tags"),
        ("ttls", "ttl"),
        ("invalidate", "invalidates"),
        ("lease_tll", "lease_ttl"),
        ("cacheif", "cache_if"),
    ],
)
def test_a_misspelt_option_is_a_near_miss(name: str, meant: str) -> None:
    assert near_miss(name) == meant


@pytest.mark.parametrize("name", ["ttl", "tags", "queue", "bind", "name", "max_retries", "serializer"])
def test_our_names_and_celerys_are_no_near_misses(name: str) -> None:
    assert near_miss(name) is None


@pytest.mark.parametrize("option", sorted(Policy.NOT_BUILT))
def test_an_option_whose_feature_is_not_built_is_refused_and_not_ignored(option: str) -> None:
    assert option in Policy.names()
    with pytest.raises(ConfigurationError, match=f"^{option}=.*does not have the feature yet"):
        Policy.check({option: 1}, "task t")


# -- secrets -----------------------------------------------------------------------------------------------------------

SECRET = "s3cr3t-of-mine"

WITH_SECRETS: dict[str, dict[str, object]] = {
    "bad database": {"url": f"redis://user:{SECRET}@host/zero"},
    "no user": {"url": f"redis://:{SECRET}@host/zero"},
    "bad port": {"url": f"redis://user:{SECRET}@host:port/0"},
    "a slash in the password": {"url": f"redis://:{SECRET}/x@host/0"},
    "a slash before the rest of the password": {"url": f"redis://:x/{SECRET}@host/0"},
    "an at sign in the password": {"url": f"redis://:x@{SECRET}@host/zero"},
    "no scheme": {"url": f"user:{SECRET}@host:6379/0"},
    "another scheme": {"url": f"amqp://user:{SECRET}@host/0"},
    "bytes": {"url": f"redis://user:{SECRET}@host/0".encode()},
    "in a list": {"url": [f"redis://user:{SECRET}@host/0"]},
    "in the query": {"url": f"redis://host/zero?password={SECRET}"},
    "in a misspelt setting": {"urll": f"redis://user:{SECRET}@host/0"},
    "of the journal": {"journal_url": f"redis://user:{SECRET}@host/zero"},
    "short key": {"signing_key": SECRET[:9]},
    "short bytes": {"signing_key": SECRET[:9].encode()},
    "one short key of two": {"signing_key": [SECRET * 2, SECRET[:9]]},
    "a dict of keys": {"signing_key": {"a": SECRET * 2}},
    "a misspelt key": {"signing_keys": [SECRET * 2]},
    "another misspelt key": {"signingkey": SECRET * 2},
}


@pytest.mark.parametrize("name", WITH_SECRETS)
def test_no_secret_stands_in_an_error(name: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Settings.resolve(WITH_SECRETS[name], "app")

    told = (
        str(raised.value),
        repr(raised.value),
        repr(raised.value.value),
        repr(pickle.loads(pickle.dumps(raised.value))),
    )
    assert [text for text in told if SECRET[:9] in text] == []
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("k" * 16, (b"k" * 16,)),
        (b"k" * 16, (b"k" * 16,)),
        (["k" * 16, b"j" * 32], (b"k" * 16, b"j" * 32)),
    ],
)
def test_signing_keys_are_kept_as_bytes(given: object, kept: object) -> None:
    assert Settings.resolve({"signing_key": given}, "app").signing_key == kept


def test_no_secret_stands_in_the_repr_of_settings() -> None:
    settings = Settings.resolve({"url": f"redis://:{SECRET}@host/0", "signing_key": SECRET * 2}, "app")

    assert SECRET not in repr(settings)
