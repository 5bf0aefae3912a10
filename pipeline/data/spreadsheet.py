"""Read small tables that people write: with commas, semicolons or tabs, as their spreadsheet saves them.

Excel saves semicolons where the decimal mark is a comma, "Unicode text" as UTF-16 with tabs, and CSV in UTF-8 behind a
byte-order mark; others leave empty columns on the right and empty rows below. Which of them it is follows from the
header, whose columns are known. Tables that programs write are read strictly, by `csv_table`.
"""
import contextlib
import pathlib

import pandas as pd

from pipeline.data.csv_table import LARGEST_TABLE_BYTES, open_text, stream_rows
from pipeline.data.zip_reader import DAMAGE
from pipeline.runtime.problem import Problem

DELIMITERS = (",", ";", "\t")
ADVICE = "correct that row"


def read_spreadsheet(path: pathlib.Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return these columns of a .csv, .csv.gz or .csv.zip, all as text without blanks around it.

    The header may have other columns too, and capitals. Raises Problem when the table is missing or damaged, when it
    lacks one of `columns` or has it twice, and when the first of `columns` is empty in a row or the same in two.
    """
    encoding = detect_encoding(path)
    delimiter = detect_delimiter(path, encoding, columns)
    try:
        rows = list(stream_rows(path, encoding, delimiter=delimiter, spreadsheet=True, advice=ADVICE))
    except FileNotFoundError:
        raise Problem(f"There is no {path}.") from None
    (_, header), *rows = rows or [(1, [])]
    names = [name.casefold() for name in header]
    for column in columns:
        if (count := names.count(column.casefold())) != 1:
            what = f"the column {column} twice" if count else f"no column {column}"
            shown = f"its first line is {','.join(header)[:80]}" if header else "it is empty"
            raise Problem(f"{path} must have the columns {','.join(columns)}, but has {what}; {shown}.")
    places = [names.index(column.casefold()) for column in columns]
    table = pd.DataFrame([[row[place] for place in places] for _, row in rows], columns=list(columns), dtype=str)
    first = table[columns[0]]
    if (empty := first == "").any():
        raise Problem(f"{path}, line {rows[empty.argmax()][0]}: {columns[0]} is empty; {ADVICE}.")
    if repeated := first[first.duplicated()].tolist():
        raise Problem(f"{path} has two rows for {columns[0]} {repeated[0][:40]}; delete one.")
    return table


def detect_encoding(path: pathlib.Path) -> str:
    """Return the encoding of a table by its first bytes: UTF-16 if every other one is 0, or it has that mark."""
    head = ""
    with contextlib.suppress(*DAMAGE, Problem):  # which reading the rows will describe
        with open_text(path, "latin-1", None, LARGEST_TABLE_BYTES) as text:
            head = text.read(2)
    if head in ("\xff\xfe", "\xfe\xff"):
        return "utf-16"
    return {head[1:]: "utf-16-le", head[:1]: "utf-16-be"}.get("\0", "utf-8-sig")


def detect_delimiter(path: pathlib.Path, encoding: str, columns: tuple[str, ...]) -> str:
    """Return what divides the header so that it has these columns; of several, what divides it most; else a comma."""
    fields_of = {}
    for delimiter in DELIMITERS:
        with contextlib.suppress(Problem, FileNotFoundError):  # a quote may be closed by another delimiter
            _, header = next(stream_rows(path, encoding, delimiter=delimiter, spreadsheet=True), (1, []))
            if {name.casefold() for name in header} >= {column.casefold() for column in columns}:
                fields_of[delimiter] = len(header)
    return max(fields_of, key=fields_of.__getitem__, default=DELIMITERS[0])
