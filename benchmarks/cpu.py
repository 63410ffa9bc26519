"""CPU time of a process and all below it, from /proc: to 10 ms, so measure seconds."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")


def seconds_of_tree(pid: int) -> float:
    """User and system seconds of the process, its descendants, and those of them that have ended."""
    stats = _stats()
    members, ticks = [pid], 0
    for member in members:  # grows while it is walked
        ticks += stats[member][1] if member in stats else 0
        members += [child for child, (parent, _) in stats.items() if parent == member]
    return ticks / os.sysconf("SC_CLK_TCK")


def _stats() -> dict[int, tuple[int, int]]:
    """Parent and ticks by process."""
    found = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:  # it has just ended
                continue
            fields = text.rpartition(")")[2].split()
            found[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    return found
