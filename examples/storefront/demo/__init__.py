"""What `python -m examples.storefront` adds to the example: servers of its own, visitors, a table of the outcome."""
