"""Sphinx settings of the documentation: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # Sphinx runs this file without its folder on the path

import make_reference

import kt_ray

project, author, release = "kt_ray", "the authors of kt_ray", kt_ray.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"kt_ray {release}"
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests execute the tutorial
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
suppress_warnings = ["myst.xref_missing"]  # links into the repository, which the site does not hold

make_reference.write(Path(__file__).parent / "reference")
