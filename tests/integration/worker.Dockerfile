# The worker of `pytest tests/integration --engine=docker`: the package under test and what its tests import.
FROM python:3.12-slim

ARG CELERY_VERSION

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

COPY pyproject.toml README.md LICENSE /src/
COPY celery_cachetiers /src/celery_cachetiers
RUN pip install --no-cache-dir "/src[test]" "celery==${CELERY_VERSION}"

RUN useradd --create-home worker
USER worker
WORKDIR /app
