"""A memoized task for the worker of pytest-celery, which brings its own app, broker and backend."""

from __future__ import annotations

import uuid

from celery import shared_task

from celery_cachetiers import CachedTask

ECHO = f"{__name__}.echo"


@shared_task(name=ECHO, base=CachedTask, ttl=300, tags=["text:{text}"])
def echo(text: str) -> str:
    """The text and a word that no other compute gives."""
    print(f"computing {text}")
    return f"{text} {uuid.uuid4().hex}"
