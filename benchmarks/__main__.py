"""``python -m benchmarks [name ...] [--quick]``: runs the named benchmarks, or all of them."""

from __future__ import annotations

import argparse
import importlib
import inspect
import signal
import sys
import time

from benchmarks import machine
from benchmarks.server import redis_server

NAMES = (
    "l1_hit",
    "l2_hit",
    "miss",
    "worker_cpu",
    "stampede",
    "wakeup",
    "waiting",
    "invalidate",
    "evict",
    "write_behind",
    "counters",
)


def main() -> None:
    """Prints the header, then the tables of each benchmark."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and workers end with us
    with redis_server() as server:
        print(machine.header(server), flush=True)
    for name in arguments.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        began = time.monotonic()
        print(f"\n== {name} ==\n\n{inspect.getdoc(module)}\n", flush=True)
        module.run(quick=arguments.quick)
        print(f"({time.monotonic() - began:.0f} s)", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What celery-cachetiers costs.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; none means all")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns, nothing with a million entries")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in NAMES]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return arguments


if __name__ == "__main__":  # processes that a benchmark spawns import this module too
    main()
