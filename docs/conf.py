"""Settings of the site, whose sources are the Markdown pages and notebooks: `sphinx-build -W -c docs . build/site`."""

import re

from sphinx.util import inspect

NAVIGATION = {
    "Start": {
        "Quickstart": "docs/quickstart",
        "First steps": "examples/notebooks/first_steps",
        "Wearables": "examples/notebooks/wearables",
        "Examples": "examples/README",
    },
    "Which line to type": {
        "Is it worth it?": "docs/compare",
        "Choosing a teacher": "docs/teachers",
        "Cost": "docs/cost",
        "Few labels": "docs/few-labels",
        "Troubleshooting": "docs/troubleshooting",
    },
    "Guides": {
        "Your recordings": "docs/recordings",
        "Your recordings: a notebook": "examples/notebooks/recordings",
        "Few labels: a notebook": "examples/notebooks/few_labels",
        "Callbacks and pictures": "docs/callbacks",
        "Search": "docs/search",
        "Search: a notebook": "examples/notebooks/search",
        "Export": "docs/export",
        "Uncertainty": "docs/uncertainty",
        "Several devices": "docs/devices",
        "Data sets": "docs/data",
    },
    "Reference": {
        "Options": "docs/options",
        "Keras features": "docs/contract",
        "Models and habits": "docs/models",
        "keras_ssd": "docs/api",
        "keras_ssd.callbacks": "docs/api/callbacks",
        "keras_ssd.guidance": "docs/api/guidance",
        "keras_ssd.augmentation": "docs/api/augmentation",
        "keras_ssd.datasets": "docs/api/datasets",
        "keras_ssd.plotting": "docs/api/plotting",
        "keras_ssd.tuner": "docs/api/tuner",
    },
    "Evidence": {
        "What to expect": "docs/evidence",
        "The paper": "docs/paper",
        "Every regime": "benchmarks/README",
        "Accuracy in detail": "benchmarks/accuracy/README",
        "Protocol": "benchmarks/accuracy/protocol",
        "New people": "benchmarks/new_people",
        "Few labels: protocol": "benchmarks/few_labels",
        "What a step costs": "benchmarks/step_cost",
    },
    "Development": {
        "Design": "docs/design",
        "Contributing": "CONTRIBUTING",
        "Do the tests notice?": "docs/mutations",
        "Changelog": "CHANGELOG",
    },
}

project = html_title = "keras-ssd"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "benchmarks/**.md", "examples/**.md", "examples/notebooks/*.ipynb"]
exclude_patterns = ["README.md", ".*", "build", "dist", "keras_ssd", "results", "tests", "venv"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

html_theme = "furo"
html_static_path = ["_site/style.css"]
html_css_files = ["style.css"]
html_extra_path = ["_site/index.html"]  # leads from the folder of the site to its first page
html_copy_source = html_show_copyright = html_show_sphinx = html_use_index = html_domain_indices = False
pygments_style, pygments_dark_style = "default", "monokai"
copybutton_exclude = ".linenos, .gp, .go"  # prompts and outputs

myst_heading_anchors = 4  # as a repository host makes them
nb_execution_mode = "off"  # the stored outputs are shown

# Docstrings are Markdown to their readers: `name` is code.
default_role = "code"
autodoc_typehints = "none"
maximum_signature_line_length = 80
napoleon_attr_annotations = napoleon_numpy_docstring = napoleon_use_rtype = False
napoleon_use_ivar = True


def add_navigation(app, docname, source):
    """Append the navigation to the first page, which stays readable on a repository host without it."""
    if docname == root_doc:
        for caption, pages in NAVIGATION.items():
            entries = "\n".join(f"{title} </{page}>" for title, page in pages.items())
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def as_list_table(found):
    """Return a Markdown table in the syntax of docstrings' parser."""
    head, _, *rows = (re.split(r" *(?<!\\)\| *", line.strip()[1:-1]) for line in found[0].splitlines())
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [head, *rows]:
        lines += [("   * - " if number == 0 else "     - ") + cell.strip() for number, cell in enumerate(row)]
    return "\n".join(found[1] + line for line in lines)


def from_markdown(app, what, name, obj, options, lines):
    """Convert what docstrings have beside `code`: Markdown tables, `Layer`s, `**kwargs` explained with others."""
    text = re.sub(r"^( *)\|.*\|(\n *\|.*\|)+$", as_list_table, "\n".join(lines), flags=re.M)
    text = re.sub(r"(`+[^`]+`+)(\w?)", lambda found: found[1] + "\\ " * bool(found[2]) + found[2], text)
    lines[:] = re.sub(r"(?<![\\`])\*\*(?=\w+[,:])", r"\*\*", text).split("\n")


def own_signature(app, what, name, obj, options, signature, return_annotation):
    """Return the arguments of a class of Keras, whose `__new__` takes any."""
    if what == "class" and signature == "(*args, **kwargs)":
        own = inspect.signature(obj.__init__, bound_method=True)
        return inspect.stringify_signature(own, show_annotation=False), return_annotation


def setup(app):
    app.connect("source-read", add_navigation)
    app.connect("autodoc-process-docstring", from_markdown)
    app.connect("autodoc-process-signature", own_signature)
