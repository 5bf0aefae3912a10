"""Read the rows of a submission or a solution one by one: such a file may hold 0.8 GB of run lengths."""
import pathlib
from collections.abc import Iterator

from pipeline.data.csv_table import LARGEST_STREAM_BYTES, stream_rows
from pipeline.runtime.problem import Problem

ADVICE = "make it again with `make predict`, or name another file"


def read_rows(path: pathlib.Path, header: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number counted from 1, fields) of each row below the header of a .csv, .csv.gz or .csv.zip.

    Raises Problem when the file is missing or damaged, its first line is not `header`, or a row has other than
    `len(header)` fields.
    """
    rows = stream_rows(path, "ascii", skip_blank=False, largest_bytes=LARGEST_STREAM_BYTES, advice=ADVICE)
    try:
        _, first = next(rows, (1, None))
    except FileNotFoundError:
        raise Problem(f"There is no {path}; {ADVICE}.") from None
    if first != list(header):
        shown = "nothing" if first is None else repr(",".join(first)[:60])
        raise Problem(f"{path}, line 1: the header must be {','.join(header)}, not {shown}.")
    yield from rows
