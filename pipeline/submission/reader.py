"""Read the rows of a submission or a solution one by one: such a file may hold 0.8 GB of run lengths."""
import pathlib
from collections.abc import Iterator

from pipeline.data.csv_table import LARGEST_STREAM_BYTES, stream_rows
from pipeline.runtime.problem import Problem

ADVICE = "make it again with `make predict`, or name another file"
INDEX_COLUMNS = ("", "Unnamed: 0", "index")  # what pandas writes and reads as the name of an index


def read_rows(path: pathlib.Path, header: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number counted from 1, fields) of each row below the header of a .csv, .csv.gz or .csv.zip.

    The columns may stand in any order in the file; the fields come in that of `header`. Raises Problem when the file
    is missing or damaged, its first line does not have the columns of `header`, or a row has other than `len(header)`
    fields.
    """
    rows = all_rows(path)
    _, first = next(rows, (1, list[str]()))
    if first == list(header):
        yield from rows
        return
    if sorted(first) != sorted(header):
        shown = repr(",".join(first)[:60]) if first else "nothing"
        advice = ""
        if extra := [name for name in first if name not in header] if set(header) < set(first) else []:
            advice = f"; remove the column {extra[0][:40]!r}"
            if extra[0] in INDEX_COLUMNS:
                advice = "; write it without its index, to_csv(..., index=False)"
        raise Problem(f"{path}, line 1: the header must be {','.join(header)}, not {shown}{advice}.")
    places = [first.index(name) for name in header]
    for line, fields in rows:
        yield line, [fields[place] for place in places]


def read_header(path: pathlib.Path) -> list[str]:
    """Return the fields of the first line."""
    return next(all_rows(path), (1, list[str]()))[1]


def all_rows(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    try:
        yield from stream_rows(path, "ascii", skip_blank=False, largest_bytes=LARGEST_STREAM_BYTES, advice=ADVICE)
    except FileNotFoundError:
        raise Problem(f"There is no {path}; {ADVICE}.") from None
