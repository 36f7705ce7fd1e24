"""Sphinx settings of the documentation: `make docs` builds docs/_site/index.html."""

from archloop.version import __version__

project = "archloop"
release = __version__
extensions = ["myst_parser"]
root_doc = "index"
exclude_patterns = ["_site"]
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "sidebar_width": "250px"}
myst_heading_anchors = 3
# Pages are read in the repository too, and so refer to files that are no pages.
suppress_warnings = ["myst.xref_missing", "myst.header"]
