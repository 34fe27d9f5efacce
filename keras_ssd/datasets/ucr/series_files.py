"""Files of the UCR archive: the archive's own layout (.tsv) and that of aeon and sktime (.ts)."""

import re
from collections.abc import Iterable
from decimal import Context, Decimal
from typing import Any

import numpy as np

from keras_ssd.datasets import tables

# Numbers as they are usually written; `007`, `1_000` and `inf`, which `float` also accepts, count as words.
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_EXACT = Context(prec=10**6)  # digits: no label has more


def read(path: Any) -> tuple[np.ndarray, list[str]]:
    """Read the series and labels of a .tsv or .ts file; an error names file, line and cause.

    A line of a .tsv file is a label and values, separated by tabs, as many in each line. A line of a .ts file, after a
    header up to @data, is values, separated by commas, a colon and a label.

    Returns:
        Floats of shape `(rows, steps)`, NaN where a value or the tail is missing, and a list of the classes' names.
    """
    try:
        return _read_ts(path) if path.suffix == ".ts" else _read_tsv(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_tsv(path: Any) -> tuple[np.ndarray, list[str]]:
    rows, labels = [], []
    for number, line in tables.read_lines(path):
        label, _, values = line.rstrip("\t\r ").partition("\t")  # a tab at the end of the line starts no value
        if not values:
            raise ValueError(f"line {number}: it should hold a label and a series, separated by tabs")
        labels.append(_label(number, label))
        rows.append((number, values))
    return tables.to_table(rows, "float32", "\t"), labels


def _read_ts(path: Any) -> tuple[np.ndarray, list[str]]:
    lines = tables.read_lines(path)
    header = next((place for place, (_, line) in enumerate(lines) if line.strip().lower() == "@data"), len(lines))
    rows, labels = [], []
    for number, line in lines[header + 1 :]:
        values, colon, label = line.rpartition(":")
        if not colon:
            raise ValueError(f"line {number}: it should end in a colon and a label")
        labels.append(_label(number, label))
        rows.append((number, values.replace("?", "nan")))
    if not rows:
        raise ValueError("no line follows @data")
    series = tables.to_rows(rows, "float32", ",")
    length = max(map(len, series))
    return np.stack([np.pad(one, (0, length - len(one)), constant_values=np.nan) for one in series]), labels


def _label(number: int, text: str) -> str:
    if text.strip().lower() in ("", "?", "nan"):
        raise ValueError(f"line {number}: its label is missing. Received: {text.strip()!r}")
    return label_name(text)


def label_name(label: str) -> str:
    """Return the name of a class, the same from both layouts: `1`, `1.0` and `1.0000000e+00` are one class.

    Numbers are compared by all of their digits, however many there are; any other text is a word.
    """
    label = label.strip()
    if not _NUMBER.fullmatch(label):
        return label
    return f"{_EXACT.normalize(_EXACT.add(Decimal(label), 0)):f}"  # -0 + 0 is 0


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Return the distinct names of classes in order: numerical if all are numbers, else alphabetical."""
    distinct = set(labels)
    are_numbers = all(_NUMBER.fullmatch(label) for label in distinct)
    return sorted(distinct, key=Decimal if are_numbers else None)
