"""Reads columns of CSV files; an error names file, line and cause, and lists the columns that are there."""

import numpy as np
import pandas as pd


def read_columns(path, numbers, words=(), separator=","):
    """The named columns of a CSV file with a header: finite numbers in float64, words as strings."""
    table = read_text(path, separator, header=0)
    table.columns = [str(name).strip() for name in table.columns]
    missing = [name for name in [*numbers, *words] if name not in table]
    if missing:
        raise ValueError(f"{path} should have the columns {missing}. Received: {list(table.columns)}")
    columns = {name: to_numbers(path, table[name], first_line=2) for name in numbers}
    for name in words:
        empty = (table[name].str.strip() == "").to_numpy()
        if empty.any():
            raise ValueError(f"{path}, line {empty.argmax() + 2}: {name} is missing")
        columns[name] = table[name].str.strip()
    return pd.DataFrame(columns)


def read_text(path, separator=",", header=None):
    """All cells of a CSV file as strings, without blank lines at its end."""
    try:
        options = dict(dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig")
        table = pd.read_csv(path, sep=separator, header=header, **options).fillna("")
    except ValueError as error:  # of pandas' parser, or of another encoding
        raise ValueError(f"{path} cannot be read: {error}") from error
    filled = (table != "").any(axis=1).to_numpy()
    return table[: len(filled) - filled[::-1].argmax()] if filled.any() else table[:0]


def to_numbers(path, column, first_line):
    """A column of strings as finite float64; `first_line` is the line of its first cell, for errors."""
    values = pd.to_numeric(column, errors="coerce").to_numpy("float64")
    faulty = ~np.isfinite(values)
    if faulty.any():
        place = faulty.argmax()
        what = f"{column.iloc[place]!r} is no finite number" if column.iloc[place].strip() else "a value is missing"
        raise ValueError(f"{path}, line {place + first_line}, column {str(column.name)!r}: {what}")
    return values
