"""How `make docs` builds the site: Markdown by MyST, the API reference by AutoAPI, which reads the source unimported.

No module is listed by hand: a module that moves takes its page along. Formulas become MathML, which browsers show
without a script from another host.
"""

import re
import runpy
from pathlib import Path

from docutils.utils.math import latex2mathml

ROOT = Path(__file__).resolve().parent.parent

project = "iwes_mpi"
author = "The iwes_mpi developers"
release = version = runpy.run_path(str(ROOT / "iwes_mpi" / "version.py"))["__version__"]

extensions = ["myst_parser", "sphinx.ext.napoleon", "autoapi.extension"]
exclude_patterns = ["_build"]
default_role = "py:obj"  # docstrings put names between single backticks
nitpicky = False

html_theme = "furo"
html_title = f"{project} {release}"
html_math_renderer = "mathml"
html_show_copyright = False

# -- Markdown ----------------------------------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3  # links to headings work as on GitHub, and are checked

# -- API reference -----------------------------------------------------------------------------------------------

autoapi_dirs = [str(ROOT / "iwes_mpi")]
autoapi_root = "api"
autoapi_add_toctree_entry = False  # index.md has it
autoapi_options = ["members", "undoc-members", "show-inheritance", "show-module-summary"]
autoapi_python_class_content = "class"
autoapi_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True  # attributes that a docstring lists are found in the source too
suppress_warnings = [
    "autoapi.python_import_resolution",  # of names that a tuple is assigned to
    "ref.python",  # a type such as State in a docstring, where two modules have one
]

_LITERAL = re.compile(r"(``.+?``|`[^`]+`|^\s*\* )")  # and bullets


def escape_docstring(app, what, name, obj, options, lines):
    """Docstrings are read in editors first: bars and stars are mathematics and file names there, not markup."""
    for number, line in enumerate(lines):
        parts = _LITERAL.split(line)
        parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
        lines[number] = "".join(parts)


# -- formulas ----------------------------------------------------------------------------------------------------


def show_inline(translator, node):
    """A formula within a line, as MathML."""
    translator.body.append(latex2mathml.tex2mathml(node.astext()))
    raise translator.nodes_skip


def show_block(translator, node):
    """A formula of its own, as MathML."""
    translator.body.append(f"<div class='math'>{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>")
    raise translator.nodes_skip


def setup(app):
    """Connect the above."""
    from docutils import nodes
    from sphinx.writers.html5 import HTML5Translator

    HTML5Translator.nodes_skip = nodes.SkipNode
    app.add_html_math_renderer("mathml", (show_inline, None), (show_block, None))
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)  # before napoleon
