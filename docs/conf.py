"""Sphinx settings of the documentation: `make docs` builds docs/_site/index.html.

Two pages are made of the code when the site is built: recipes.md and commands.md.
"""

from pathlib import Path

from archloop.cli import reference as commands
from archloop.search.recipe import reference as recipes
from archloop.version import __version__

for _name, _page in (("recipes", recipes.markdown()), ("commands", commands.markdown())):
    (Path(__file__).parent / f"{_name}.md").write_text(_page, encoding="utf-8")

project = "archloop"
release = __version__
extensions = ["myst_parser"]
root_doc = "index"
exclude_patterns = ["_site"]
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "sidebar_width": "250px"}
myst_heading_anchors = 3
# Pages are read in the repository too, and so refer to files that are no pages.
suppress_warnings = ["myst.xref_missing", "myst.header", "toc.not_included"]
