"""What celery-cachetiers costs, measured beside other caches: ``python -m benchmarks [name ...] [--quick]``.

One module per question; the docstring of each says what is measured and how to read its table. Nothing here asserts a
time: a table says what was measured on the machine in its header, and whether a target was met on it.
"""
