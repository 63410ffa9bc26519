"""Celery apps that the integration tests run, in this process or in others."""
