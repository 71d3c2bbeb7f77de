"""Sphinx settings of the site, for `make site`: it reads the committed outputs of the notebooks and runs nothing."""

import sys
from pathlib import Path

import mathjax

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

project = "Explaining image classifiers"
author = "Nguyễn Khải Phú, Thái Cẩm Phong"
html_title = project
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "extension"]
exclude_patterns = ["README.md", "**/.ipynb_checkpoints"]  # the README is the first page's text
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # nothing from a CDN
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 120
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_static_path = ["_static", f"{mathjax.__path__[0]}/static/mathjax/es5/tex-svg.js"]
mathjax_path = "tex-svg.js"  # from the package, with its glyphs in it: no CDN, no fonts
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
templates_path = [str(DOCS / "_templates")]  # autosummary looks in the folder of the pages otherwise
