"""Another process that uses the cache, commanded over its stdin: one JSON line in, one out.

python -m tests.integration.apps.neighbour URL NAMESPACE [SETTINGS, a JSON object]
"""

from __future__ import annotations

import json
import sys
from typing import Any

from celery_cachetiers import MISSING, CachedTask, CacheTiers
from tests.integration.apps.local import cached_app, close, wait_listening

COMPUTED: list[str] = []


def main() -> None:
    url, namespace, *settings = sys.argv[1:]
    app = cached_app(namespace, url, **json.loads(settings[0] if settings else "{}"))
    tiers = CacheTiers(app)

    @app.task(base=CachedTask, name="page", tags=["user:{user}"])
    def page(user: str) -> str:
        COMPUTED.append(user)
        return f"page of {user}"

    def in_l1(user: str) -> Any:
        value = tiers.cache.recall(page._memoized.call((user,), {}))
        return None if value is MISSING else value

    acts = {
        "listen": lambda: wait_listening(app),
        "page": page,
        "in_l1": in_l1,
        "computed": lambda: len(COMPUTED),
        "invalidate_tag": tiers.invalidate_tag,
        "put": lambda user, value: page.cache.put((user,), value),
        "invalidate": page.cache.invalidate,
        "refresh": page.cache.refresh,
        "clear": tiers.clear,
    }
    for line in sys.stdin:
        name, *args = json.loads(line)
        print(json.dumps(acts[name](*args)), flush=True)
    close(app)


if __name__ == "__main__":
    main()
