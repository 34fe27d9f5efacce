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


def to_rows(lines: Lines, dtype: Any, delimiter: str | None = None) -> list[np.ndarray]:
    """Turn lines into rows of finite numbers and NaN; a `delimiter` of `None` stands for any white space."""
    rows = []
    for number, text in lines:
        try:
            row = np.loadtxt([text], dtype, comments=None, delimiter=delimiter, ndmin=1)
        except ValueError as error:
            raise ValueError(f"line {number}: {str(error).replace('row 0, ', '')}") from error
        if np.isinf(row).any():
            raise ValueError(f"line {number}: it holds an infinite number")
        rows.append(row)
    return rows


def to_table(lines: Lines, dtype: Any, delimiter: str | None = None) -> np.ndarray:
    """Turn lines of one length into a table of finite numbers and NaN, `(lines, columns)`."""
    rows = to_rows(lines, dtype, delimiter)
    for (number, _), row in zip(lines, rows, strict=True):
        if len(row) != len(rows[0]):
            raise ValueError(f"line {number}: it holds {len(row)} columns, but the first holds {len(rows[0])}")
    return np.stack(rows)
