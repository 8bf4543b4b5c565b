"""How the documentation is built: `sphinx-build -W docs SITE`. What is built asks no other host."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

import corrq_jax

project = "corrq_jax"
author = "the corrq_jax authors"
copyright = "the corrq_jax authors, Apache-2.0"
version = release = corrq_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # pages made of one included file begin where that begins

# A docstring's `name` becomes a link where it is documented, and stays code elsewhere.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"corrq_jax {release}"
html_static_path = ["_static"]
html_css_files = ["corrq.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False


def _inline(translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(translator, node: nodes.math_block) -> None:
    mathml = convert(node.astext(), display="block")
    translator.body.append(f'<div class="math">{mathml}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Formulas become MathML, which browsers draw by themselves, without a script."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
