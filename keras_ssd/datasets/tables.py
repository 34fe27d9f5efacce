"""Tables of numbers in text files, read so that an error names the line and what is wrong with it."""

import numpy as np


def read_lines(path):
    """Read the lines of a text file that are not blank.

    Args:
        path: A `pathlib.Path`, or what reads like one.

    Returns:
        List of `(number, text)`, numbers counted from 1 as editors do.

    Raises:
        ValueError: If the file is not UTF-8 text, or holds nothing.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it should be UTF-8 text: {error}") from error
    if "\0" in text:
        raise ValueError("it should be text. Received: bytes of value 0")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise ValueError("it is empty")
    return lines


def to_numbers(lines, dtype, delimiter=None):
    """Turn lines into a table of numbers, of which none is infinite.

    Args:
        lines: List of `(number, text)`, as `read_lines` returns it.
        dtype: The table's dtype.
        delimiter: String between two numbers. Defaults to any white space.

    Returns:
        Array of shape `(lines, columns)`.

    Raises:
        ValueError: If a line holds what is no number, or more or fewer numbers than the first.
    """
    options = {"dtype": dtype, "delimiter": delimiter, "comments": None, "ndmin": 2}
    try:
        table = np.loadtxt([text for _, text in lines], **options)
    except ValueError as error:
        raise ValueError(_first_fault(lines, dtype, delimiter) or str(error)) from error
    infinite = np.isinf(table).any(axis=1)
    if infinite.any():
        raise ValueError(f"line {lines[infinite.argmax()][0]}: it holds an infinite number")
    return table


def _first_fault(lines, dtype, delimiter):
    """Describe the first line that cannot be read like the first one; `None` if each can."""
    n_columns = None
    kind = "whole number" if np.issubdtype(dtype, np.integer) else "number"
    for number, text in lines:
        fields = text.strip("\r\n").split(delimiter)
        for column, field in enumerate(fields, start=1):
            try:
                np.loadtxt([field], dtype=dtype, delimiter=delimiter, comments=None) if field.strip() else float("")
            except ValueError:
                return f"line {number}: {field.strip()!r} in column {column} is no {kind}"
        n_columns = n_columns or len(fields)
        if len(fields) != n_columns:
            return f"line {number}: it holds {len(fields)} columns, the lines before it {n_columns}"
    return None
