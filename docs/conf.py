"""Sphinx, for `make docs`."""

import sb3_shm

project = "sb3-shm"
author = "the sb3-shm contributors"
version = release = sb3_shm.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "results"]
html_theme = "sphinx_rtd_theme"

# Headings as GitHub names them, so that the same links work there and here
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "description"
