"""The site: `make docs` reads the pages of this folder and the docstrings of `imle`, without a network.

Sphinx, for it is what the packages below us use (torch, numpy, scipy), has been maintained since 2008, and is the tool
that reads docstrings by importing the code: a function that `imle.decorator` makes has its options in its signature.
The others that we looked at rest on one author (pdoc, mkdocs). MyST lets the pages be the Markdown that a repository
shows; furo is quiet, and brings its fonts and scripts along.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import imle

project = "Adaptive I-MLE"
author = copyright = "the authors of adaptive-imle"
version = release = imle.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
suppress_warnings = ["ref.python"]  # `imle.wrapper` has names that `imle.target` has as well
myst_heading_anchors = 3

default_role = "code"  # docstrings have single backticks around code
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
viewcode_line_numbers = True

html_theme = "furo"
html_title = project
html_static_path = html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def show_formulas(app, what, name, obj, options, lines):
    """Make literal blocks of the indented paragraphs of a docstring, which are formulas and drawings."""
    shown = []
    for before, line in zip(["", *lines], lines):
        starts = not before.strip() and line.startswith("    ") and not line.lstrip().startswith(">>>")
        last = next((earlier for earlier in reversed(shown) if earlier.strip()), "")
        if starts and not last.startswith(" ") and not last.startswith(".. "):
            shown += [".. code-block:: text", ""]
        shown.append(line)
    lines[:] = shown


def stay_in_the_site(app, page, source):
    """Let links to files of the repository that have a page here lead to it."""
    for file, here in (("data/README", "data"), ("CONTRIBUTING", "contributing")):
        source[0] = source[0].replace(f"../{file}.md)", f"{here}.md)")


def setup(app):
    """Connect the two; our reading of docstrings comes before napoleon's."""
    app.connect("source-read", stay_in_the_site)
    app.connect("autodoc-process-docstring", show_formulas, priority=400)
