"""Sphinx configuration of the documentation site; ``make site`` builds it."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
# Importing the modules that are documented must not reserve an accelerator's memory.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

# jaxtyping makes the names of its types from this one: "Float[Array, 'E H A']".
jax.Array.__name__ = jax.Array.__qualname__ = "Array"

import pomcp_jax  # noqa: E402

project = "pomcp_jax"
author = "The pomcp_jax authors"
project_copyright = f"{author}, Apache-2.0"
version = release = pomcp_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "repository_links",
    "notebook_pages",
    "api_reference",
]
exclude_patterns = ["_ext", "_build"]
# Docstrings write code in single backticks, as Markdown does.
default_role = "literal"
suppress_warnings = ["misc.highlighting_failure"]

myst_heading_anchors = 4

# A reference of a docstring that has no target is a warning.
nitpicky = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Shapes in annotations are strings for jaxtyping; evaluating them would print whole classes.
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"pomcp_jax {version}"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
# Browsers read code blocks without prompts; these do not copy.
copybutton_exclude = ".linenos, .gp, .go"
