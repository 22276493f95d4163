"""Sphinx configuration: MyST pages, furo, formulas as MathML, nothing loaded from the network."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

project = "Steering strength"
author = "The ufm-steering authors"
copyright = author

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",
    "generated",
    "mathml",
]
exclude_patterns = ["_build"]
nb_execution_mode = "off"  # the tests run the notebooks

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
# Words of signatures such as "name" or "v" are attributes of several classes: they lead to none of them.
suppress_warnings = ["ref.python"]
python_use_unqualified_type_names = True
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = project
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["math.css"]
html_copy_source = False
