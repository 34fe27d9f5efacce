"""Writes the tables of docs/options.md from `wrap`'s docstring and the defaults: `python tools/options_table.py`."""

import inspect
import pathlib
import re

import keras_ssd
from keras_ssd.settings import OPTIONS, resolve

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "options.md"
BEGIN, END = "<!-- written by tools/options_table.py -->\n", "<!-- end -->\n"
KINDS = ["self", "ema", "model", "snapshot"]
CALLED = {"model": "a model", "snapshot": '`"snapshot"`'}


def described():
    """Group, name and text of each option, as in the `Args` of `wrap`'s docstring and in their order."""
    arguments = inspect.getdoc(keras_ssd.wrap).split("\nArgs:\n")[1].split("\n\n| ")[0]
    group = ""
    for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n(?! {4}\w+: ).*)*)", arguments, flags=re.M):
        text = " ".join(text.split())
        if found := re.match(r"\((\w+)\) ", text):
            group, text = found[1], text[found.end() :]
        if name in OPTIONS:
            yield group, name, text


def default(kind, name, text):
    """The default with a kind of teacher, as the settings hold it; of `None`, what it stands for."""
    value = getattr(resolve(kind), name)
    if value is None:
        return "by cost" if name == "kd_fraction" else re.search(r"Defaults to `None`: (.+?)\.(?: |$)", text)[1]
    return f'`"{value}"`' if isinstance(value, str) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def defaults(name, text):
    """The default of `"self"` and `"ema"`, which is the same, and those of other kinds where they differ from it."""
    of_kinds = {kind: default(kind, name, text) for kind in KINDS}
    usual = of_kinds.pop("self")
    assert of_kinds.pop("ema") == usual
    others = {}
    for kind, value in of_kinds.items():
        if value != usual:
            others.setdefault(value, []).append(CALLED[kind])
    return "<br>".join([usual, *(f"{', '.join(kinds)}: {value}" for value, kinds in others.items())])


def table():
    lines, last = [], ""
    for group, name, text in described():
        if group != last:
            lines += ["", f"## Options of the {group}", "", "| option | default | meaning |", "|---|---|---|"]
            last = group
        meaning = re.split(r"(?<=\.) (?=[A-Z])", text)[0].rstrip(".")
        lines.append(f"| `{name}` | {defaults(name, text)} | {meaning} |")
    return "\n".join(lines[1:]) + "\n"


def whole():
    """The page with the table as it should be."""
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


def main():
    PAGE.write_text(whole())


if __name__ == "__main__":
    main()
