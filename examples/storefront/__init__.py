"""A small shop whose pages are cached tasks; `celery -A examples.storefront` finds its app here.

The example is `app`, `celeryconfig`, `tasks` and `shop`. The subpackage `demo` only drives it, for
`python -m examples.storefront`.
"""

from examples.storefront.app import app

__all__ = ["app"]
