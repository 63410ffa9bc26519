"""The shop's pages, each a cached task, and the tasks that change what they show or are counted.

Decides what is cached, for how long, and what it depends on; and what is written behind. What a page says, and how it
is stored, is `shop`'s matter.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from celery_cachetiers import CachedTask, Write, sink
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


@app.task(base=CachedTask, ttl=300, tags=["product:{product_id}"], consistency="strict")
def product(product_id: int) -> dict[str, Any]:
    """One product: name, price, how many pieces are left."""
    with shop.computation("product") as db:
        return shop.product(db, product_id)


# The body commits; then, before anybody can see that the task is done, both tags are invalidated: whatever is computed
# after that reads the new name.
@app.task(invalidates=["user:{user_id}", "users"])
def rename(user_id: int, name: str) -> None:
    """Gives a customer a new name: once this task has its result, nobody is shown the old one."""
    shop.rename(user_id, name)


# -- counted, and written behind --------------------------------------------------------------------------------------
#
# A value waits in the journal under its key, and a key holds its last value only. "views = 5" would therefore be no way
# to count: of two processes that read 4, both would write 5. So what is written is a fact with a key of its own, "this
# view", "this order", and SQL counts. That is exact, however often a fact is handed over.


@sink("views")
def save_views(writes: list[Write]) -> None:
    """One transaction for each batch."""
    shop.add_views([write.value for write in writes])


@sink("orders")
def save_orders(writes: list[Write]) -> None:
    """One transaction for each batch."""
    shop.add_sales([write.value for write in writes])


# Nobody asks for one view again: what is not cached goes to the sink all the same.
@app.task(base=CachedTask, sink="views", write="behind", cache_enabled=False)
def view(view_id: str, product_id: int) -> dict[str, Any]:
    """One look at a product."""
    return {"id": view_id, "product_id": product_id}


def count_view(product_id: int) -> None:
    """Counts a look at a product from a web process: one round trip to Redis, no message, no SQL."""
    view_id = uuid4().hex
    view.cache.put((view_id, product_id), {"id": view_id, "product_id": product_id})


# The number is the customer's: one who clicks twice, or whose message is delivered twice, has ordered once. The pages
# of the product are invalidated with the answer, and once more when SQL has the order.
@app.task(base=CachedTask, sink="orders", write="behind", invalidates=["product:{product_id}"])
def order(number: str, product_id: int, quantity: int) -> dict[str, Any]:
    """Sells some pieces. Its result is there as soon as the journal has it, before SQL does."""
    return {"id": number, "product_id": product_id, "quantity": quantity}
