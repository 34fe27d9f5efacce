"""Tables of numbers in text files; errors name the faulty line and its fault."""

from typing import Any

import numpy as np

Lines = list[tuple[int, str]]


def read_lines(path: Any) -> Lines:
    """Return the lines of a UTF-8 text file that are not blank, as `(number, text)` with numbers from 1."""
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


def to_numbers(lines: Lines, dtype: Any, delimiter: str | None = None) -> np.ndarray:
    """Turn lines into a table of finite numbers and NaN, of shape `(lines, columns)`.

    Args:
        lines: list of `(number, text)`, as `read_lines` returns it.
        dtype: the table's dtype.
        delimiter: string between two numbers. Defaults to any white space.

    Raises:
        ValueError: if a line holds a field that is not a number, or more or fewer numbers than the first line.
    """
    options: dict[str, Any] = {"dtype": dtype, "delimiter": delimiter, "comments": None, "ndmin": 2}
    try:
        table = np.loadtxt([text for _, text in lines], **options)
    except ValueError as error:
        raise ValueError(_first_fault(lines, options) or str(error)) from error
    infinite = np.isinf(table).any(axis=1)
    if infinite.any():
        raise ValueError(f"line {lines[infinite.argmax()][0]}: it holds an infinite number")
    return table


def _first_fault(lines: Lines, options: dict[str, Any]) -> str | None:
    """Describe the first line with a field that is not a number, or of another length than the first; else `None`."""
    n_columns = len(lines[0][1].strip("\r\n").split(options["delimiter"]))
    for number, text in lines:
        fields = text.strip("\r\n").split(options["delimiter"])
        for column, field in enumerate(fields, start=1):
            try:
                np.loadtxt([field], **options) if field.strip() else float("")
            except ValueError:
                kind = "whole number" if np.issubdtype(options["dtype"], np.integer) else "number"
                return f"line {number}: {field.strip()!r} in column {column} is not a {kind}"
        if len(fields) != n_columns:
            return f"line {number}: it holds {len(fields)} columns, but the lines before it hold {n_columns}"
    return None
