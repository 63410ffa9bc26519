"""An app that never says ``CacheTiers(app)``, for what a worker says of its declarations when it starts."""

from __future__ import annotations

import os

from celery import Celery, shared_task

from celery_cachetiers import CachedTask

app = Celery("declared", broker=os.environ["DECLARED_BROKER"])
app.conf.broker_connection_retry_on_startup = True
template = os.environ["DECLARED_TEMPLATE"]


@app.task(base=CachedTask, tags=["user:{user_id}"])
def profile(user_id: int) -> int:
    return user_id


@app.task(invalidates=["user:{user_id}", template])
def rename(user_id: int) -> int:
    return user_id


@shared_task(name="shared", invalidates=["user:{uid}"])
def shared(uid: int) -> int:
    return uid
