"""How the documentation is built: `make docs`, warnings are errors, and the examples run against a real Redis."""

from __future__ import annotations

import doctest
import sys
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("_ext", "_examples")]

project = "celery-cachetiers"
author = "celery-cachetiers contributors"
project_copyright = author
release = installed_version("celery-cachetiers")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "options",  # _ext/options.py: settings and task options, from the dataclasses
]
if find_spec("sphinx_copybutton") is not None:
    extensions.append("sphinx_copybutton")

exclude_patterns = ["_build", "_examples", "_ext"]
default_role = "code"  # docstrings name things in single backticks
smartquotes = False  # many of our words are code

# -- Markdown ---------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

# -- docstrings -------------------------------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Costs", "Concurrency", "Source"]

# -- examples ---------------------------------------------------------------------------------------------------------

doctest_default_flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
doctest_test_doctest_blocks = "default"
doctest_global_setup = """
import examples_redis
from examples_redis import here, settle, with_worker
__name__ = "proj"
"""
doctest_global_cleanup = "examples_redis.end_page()"

# -- HTML -------------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"celery-cachetiers {release}"
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
