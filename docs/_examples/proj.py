import time
from pathlib import Path

from celery import Celery

from celery_cachetiers import CachedTask

app = Celery("proj", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
app.conf.cachetiers_url = "redis://localhost:6379/2"


def file_of(user_id):
    return Path(f"user-{user_id}.txt")  # stands for a database


@app.task(base=CachedTask, ttl=300, tags=["user:{user_id}"])
def profile(user_id):
    time.sleep(2)  # a slow query
    name = file_of(user_id).read_text() if file_of(user_id).exists() else "Ada"
    return {"user_id": user_id, "name": name, "computed_at": time.strftime("%H:%M:%S")}


@app.task(invalidates=["user:{user_id}"])
def rename(user_id, name):
    file_of(user_id).write_text(name)
