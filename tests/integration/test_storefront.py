"""The storefront example: its demo tells the truth, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.processes import ROOT, unavailable, wait_until
from tests.servers import FLAVOURS, require_executable

ENDS_WITHIN = 60.0
TMPDIR = "TMPDIR"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where the demo makes its temporary directory; it marks the demo's processes, see `_is_of`."""
    require_executable(*reversed(FLAVOURS))
    try:
        import rich  # noqa: F401 - looked for here, used by the demo
    except ImportError:
        unavailable("the demo needs rich: install the extra [demo]")
    return tmp_path


@contextmanager
def _demo(scratch: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, TMPDIR: str(scratch), "COLUMNS": "80"}
    environment.pop("CACHETIERS_ENABLED", None)
    command = [sys.executable, "-m", "examples.storefront", "--seconds", "4"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        try:
            yield demo
        finally:
            demo.kill()
            for process in _processes(scratch):
                process.kill()


def _processes(scratch: Path) -> list[psutil.Process]:
    """Every process of the demo that runs, orphans included: by its environment, or (Redis writes its title over that)
    by its working directory."""
    return [process for process in psutil.process_iter() if _is_of(process, scratch)]


def _is_of(process: psutil.Process, scratch: Path) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return process.environ().get(TMPDIR) == str(scratch) or process.cwd().startswith(str(scratch))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _read_until(text: str, demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    assert any(text in line for line in demo.stdout), demo.communicate()


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern!r} is not in:\n{text}"
    return int(found[1].replace(",", ""))


def _totals(text: str) -> list[int]:
    """Calls, L1 hits, L2 hits and what the worker answered, from the last row of the table."""
    found = re.search(r"^all((?: +[\d,]+){4})", text, re.MULTILINE)
    assert found is not None, text
    return [int(number.replace(",", "")) for number in found[1].split()]


def _counts(facts: str, text: str) -> list[int]:
    """What was acknowledged, what SQLite has, and how many products are wrong."""
    found = re.search(rf"^{facts}((?: +[\d,]+){{3}})", text, re.MULTILINE)
    assert found is not None, text
    return [int(number.replace(",", "")) for number in found[1].split()]


def test_the_demo_computes_less_than_it_is_asked_for_shows_no_stale_page_and_loses_no_count(scratch: Path) -> None:
    with _demo(scratch) as demo:
        output, errors = demo.communicate(timeout=ENDS_WITHIN)

        assert demo.returncode == 0, f"{output}\n{errors}"
        assert 0 < _number(r"([\d,]+) computes", output) < _number(r"([\d,]+) calls", output)
        calls, l1_hits, l2_hits, by_worker = _totals(output)
        assert calls == l1_hits + l2_hits + by_worker
        assert _number(r"([\d,]+) renames, ", output) > 0
        assert _number(r"([\d,]+) pages checked", output) > 0
        assert _number(r"([\d,]+) stale pages", output) == 0
        assert all(page in output for page in ("profile", "top_users", "order_report", "product"))
        assert _number(r"killed \(kill -9\) with ([\d,]+) writes in its hands", output) > 0
        for facts in ("views", "pieces sold"):
            acknowledged, stored, wrong = _counts(facts, output)
            assert (acknowledged, wrong) == (stored, 0)
        assert _counts("views", output)[0] > 0
        assert _number(r"([\d,]+) product pages show another stock", output) == 0
        stats, why = output.partition("cachetiers stats")[2].split("cachetiers why")
        assert re.search(r"^\(all\) ", stats, re.MULTILINE), stats
        assert "examples.storefront.tasks.profile(user_id=1): hit (fresh in L2)" in why
        assert errors == ""
        assert _processes(scratch) == []
        assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_neither_a_process_nor_a_file(scratch: Path, number: signal.Signals) -> None:
    with _demo(scratch) as demo:
        _read_until("visitors for", demo)
        assert len(_processes(scratch)) >= 7  # the demo, Redis, the worker and its two children, the flusher, beat

        demo.send_signal(number)
        _, errors = demo.communicate(timeout=ENDS_WITHIN)

        assert demo.returncode == 128 + number
        assert errors == "Interrupted; everything that was started has ended.\n"
        assert _processes(scratch) == []
        assert list(scratch.iterdir()) == []


def test_a_demo_interrupted_while_its_worker_starts_leaves_nothing_either(scratch: Path) -> None:
    with _demo(scratch) as demo:
        _read_until("A shop on SQLite", demo)

        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=ENDS_WITHIN)

        assert demo.returncode == 128 + signal.SIGINT
        assert _processes(scratch) == []
        assert list(scratch.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal of Linux")
def test_a_killed_demo_takes_its_processes_along(scratch: Path) -> None:
    with _demo(scratch) as demo:
        _read_until("visitors for", demo)

        demo.kill()

        wait_until(lambda: _processes(scratch) == [], timeout=20, message="end of the demo's processes")
