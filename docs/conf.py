"""Sphinx configuration: ``make docs``."""

from enterprise_gateway import __version__

project = "Jupyter Enterprise Gateway"
copyright = "the project's contributors"
release = version = __version__
extensions = ["myst_parser"]
html_theme = "furo"
exclude_patterns = ["_build", "tools"]
myst_heading_anchors = 3
