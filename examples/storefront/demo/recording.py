"""`python -m examples.storefront.demo.recording docs/outputs`: what the commands say of the storefront, for the
documentation, and the plot of the hit ratio.

Decides what is asked, and when; what a reader's machine would have otherwise (port, directory, name) is left out.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
import time
from functools import partial
from pathlib import Path

from celery_cachetiers import CacheTiers
from examples.storefront import shop, tasks
from examples.storefront.app import app
from examples.storefront.demo.ledger import Ledger, drained
from examples.storefront.demo.names import Names
from examples.storefront.demo.servers import DemoFailed, Servers
from examples.storefront.demo.visitors import Visitors

SECONDS = 60.0
PROFILE = "examples.storefront.tasks.profile"

WHILE_BUSY = {
    "top": ("cachetiers", "top", "--once"),
    "doctor": ("cachetiers", "doctor"),
}
AFTERWARDS = {
    "stats": ("cachetiers", "stats"),
    "why-hit": ("cachetiers", "why", PROFILE, "--args", "[2]"),
    "report": ("cachetiers", "report"),
}
AFTER_A_RENAME = {"why-invalidated": ("cachetiers", "why", PROFILE, "--args", "[2]")}
PLOT = "hit-ratio.png"
LONGEST = 160
"""Letters of a line in the documentation; the rest is cut."""


def main() -> int:
    """Writes a text file for each command, and the plot, into the directory that is named."""
    if len(sys.argv) != 2:
        print("usage: python -m examples.storefront.demo.recording DIRECTORY", file=sys.stderr)
        return 2
    directory = Path(sys.argv[1]).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with Servers() as servers:
            _record(servers, directory)
    except DemoFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def _record(servers: Servers, directory: Path) -> None:
    servers.start_redis()
    workers = servers.start_worker(), servers.start_flusher()
    shop.seed()
    for each in workers:
        each.wait_until(partial(each.said, " ready."), 30)
    servers.start_beat()
    save = partial(_save, servers, directory)
    try:
        with Visitors(Names(shop.names()), Ledger(), SECONDS):
            began = time.monotonic()
            time.sleep(SECONDS / 2)
            save(WHILE_BUSY)
            time.sleep(max(began + SECONDS - time.monotonic(), 0.0))
        drained()
        tasks.profile.delay(2).get(timeout=20)
        CacheTiers(app).counting.end()
        save(AFTERWARDS)
        servers.celery("cachetiers", "report", "--plot", str(directory / PLOT))
        tasks.rename.delay(2, "Ada King").get(timeout=20)
        save(AFTER_A_RENAME)
    finally:
        CacheTiers(app).reset()
        app.close()


def _save(servers: Servers, directory: Path, commands: dict[str, tuple[str, ...]]) -> None:
    for name, command in commands.items():
        printed = _anywhere(servers.celery(*command, or_one=True), servers)
        (directory / f"{name}.txt").write_text(f"$ celery -A examples.storefront {shlex.join(command)}\n{printed}")


def _anywhere(text: str, servers: Servers) -> str:
    """Without what differs from one machine to the next."""
    port = os.environ["STOREFRONT_CACHE"].rpartition(":")[2].partition("/")[0]
    text = text.replace(f":{port}", ":6379").replace(str(servers.path), "/srv/shop")
    text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "host", text)
    return "\n".join(_cut(line.rstrip()) for line in text.splitlines()) + "\n"


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else line[: LONGEST - 4] + " ..."


if __name__ == "__main__":
    sys.exit(main())
