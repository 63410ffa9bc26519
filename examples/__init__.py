"""Examples, each a package that runs from the root of the source tree."""
