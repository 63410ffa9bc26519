"""Tasks that change rows, and one that shows them. The rows are in the book, which stands for a database."""

from __future__ import annotations

from typing import Any

from celery import Celery

from celery_cachetiers import CachedTask
from tests.integration.apps.worker_book import Book


def declare(app: Celery, book: Book) -> None:
    """Adds the tasks to an app."""

    def write(row: str, value: str) -> str:
        book.client.set(f"row:{row}", value)
        book.compute(f"write {row}")
        return value

    options: dict[str, Any] = {"shared": False, "invalidates": ["row:{row}"]}
    app.task(write, name="write", **options)
    app.task(write, name="write.hurried", time_limit=1, **options)
    app.task(write, name="write.cached", base=CachedTask, ttl=300, **options)

    @app.task(name="write.retried", bind=True, max_retries=1, **options)
    def retried(self: Any, row: str, value: str) -> str:
        book.client.set(f"row:{row}", f"{value} {self.request.retries}")
        if not self.request.retries:
            raise self.retry(countdown=0)
        return value

    @app.task(name="show", shared=False, base=CachedTask, ttl=300, l1=False, tags=["row:{row}"])
    def show(row: str) -> str | None:
        value: str | None = book.client.get(f"row:{row}")
        return value

    @app.task(name="look", shared=False)
    def look(row: str) -> str | None:
        value: str | None = show(row)
        return value
