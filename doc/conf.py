"""Settings of the documentation."""

import os
import sys
from importlib import metadata
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import draw_house  # noqa: E402
import families_page  # noqa: E402
import next_steps_page  # noqa: E402

(HERE / "generated").mkdir(exist_ok=True)
(HERE / "generated" / "house.svg").write_text(draw_house.svg())
(HERE / "generated" / "families.md").write_text(families_page.page())
(HERE / "generated" / "next_steps.md").write_text(next_steps_page.page())

project = "sklearn_implicitreg"
author = "the sklearn_implicitreg developers"
copyright = f"2026, {author}"
release = metadata.version("sklearn_implicitreg")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "offline",
]
exclude_patterns = [
    "generated/next_steps.md",
    "generated/families.md",
    "_build",
    "**sg_execution_times.rst",
]
templates_path = ["_templates"]
default_role = "py:obj"

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "plot_",
    "ignore_pattern": r"(^|/)(shared|run)\.py$",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,  # a page that loads scripts from the network
    "abort_on_example_error": True,
}

html_theme = "pydata_sphinx_theme"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = project
html_theme_options = {
    "header_links_before_dropdown": 4,
    "navigation_with_keys": False,
    "show_prev_next": False,
}
html_sidebars = {
    "*": [],  # pages without others below them
    "auto_examples/**": ["sidebar-nav-bs"],
    "generated/**": ["sidebar-nav-bs"],
}
