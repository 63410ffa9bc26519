"""The shop's pages, each a cached task, and the one task that changes what they show.

Decides what is cached, for how long, and what it depends on. What a page says is `shop`'s matter.
"""

from __future__ import annotations

from typing import Any

from celery_cachetiers import CachedTask
from examples.storefront import shop
from examples.storefront.app import app


# A customer looks at this page right after saving it. "strict" has even an L1 hit compared with Redis, in one round
# trip, so that no process shows the old name for the milliseconds that the announcement of an invalidation takes.
@app.task(base=CachedTask, ttl=300, tags=["user:{user_id}"], consistency="strict")
def profile(user_id: int) -> dict[str, Any]:
    """One customer: name, number of orders, money spent, favourite product."""
    with shop.computation("profile") as db:
        return shop.profile(db, user_id)


@app.task(base=CachedTask, ttl=300, tags=["users"])
def top_users() -> list[dict[str, Any]]:
    """The ten customers who spent most. Any customer may be among them, hence one tag for all."""
    with shop.computation("top_users") as db:
        return shop.top_users(db)


@app.task(base=CachedTask, ttl=300)
def order_report(day: int) -> list[dict[str, Any]]:
    """Revenue of one day by category, beside the average and the best day until then. Orders of the past stay."""
    with shop.computation("order_report") as db:
        return shop.order_report(db, day)


# The body commits; then, before anybody can see that the task is done, both tags are invalidated: whatever is computed
# after that reads the new name.
@app.task(invalidates=["user:{user_id}", "users"])
def rename(user_id: int, name: str) -> None:
    """Gives a customer a new name: once this task has its result, nobody is shown the old one."""
    shop.rename(user_id, name)
