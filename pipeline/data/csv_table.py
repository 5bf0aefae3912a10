"""Read CSV tables strictly: row by row, since a submission holds 0.8 GB of run lengths, or small ones as a whole.

Quotes must be closed, and all rows must have as many fields as the first. What would flood the memory is refused
before it is read: an archive that claims gigabytes, a field or a line without end.
"""
import contextlib
import csv
import gzip
import io
import pathlib
import zipfile
from collections.abc import Iterator
from typing import IO

import pandas as pd

from pipeline.data.file_kind import ADVICE, DESCRIPTIONS, FIRST_BYTES, kind_of
from pipeline.data.zip_reader import DAMAGE, check_member, reason_of, where_to_get
from pipeline.runtime.problem import Problem

LONGEST_FIELD = 2**25  # characters of run lengths; a chequered mask of 1918x1280 pixels has 12 million
LARGEST_TABLE_BYTES = 2**29  # of a table that is read whole; the run lengths of Kaggle's 5,088 masks have 40 MB
LARGEST_STREAM_BYTES = 2**40  # of a table that is read row by row
BYTE_ORDER_MARK = "\ufeff"
UTF_8 = "UTF-8, which Excel calls CSV UTF-8"  # as a table is to be saved in messages
ENCODINGS = {"ascii": "ASCII without a byte-order mark"}  # in which a table is to be saved; any other: in UTF-8


def stream_rows(
    path: pathlib.Path, encoding: str = "utf-8-sig", *, member: str | None = None, skip_blank: bool = True,
    largest_bytes: int = LARGEST_TABLE_BYTES, advice: str = "download it again",
    delimiter: str = ",", spreadsheet: bool = False,
) -> Iterator[tuple[int, list[str]]]:  # fmt: skip
    """Yield (line number counted from 1, fields) of each row of a .csv, .csv.gz or .csv.zip, its header first.

    encoding: as Python names it. member: the name of the table inside a .zip; None: the archive's only file.
    skip_blank: skip blank lines, which otherwise are rows of no field. largest_bytes: of the unpacked table.
    advice: what to do about a damaged table. spreadsheet: `tidy` the rows. Raises Problem when the file is damaged, cut
    short, too large or not a table, and FileNotFoundError when it is missing.
    """
    csv.field_size_limit(LONGEST_FIELD)
    line, fields = 0, 0  # the last line that was read; fields of a row
    try:
        with open_text(path, encoding, member, largest_bytes) as text:
            reader = csv.reader(limited_lines(text), strict=True, delimiter=delimiter, skipinitialspace=spreadsheet)
            for row in reader:
                line = reader.line_num
                row = tidy(row, fields) if spreadsheet else row
                if not row and skip_blank:
                    continue
                fields = fields or len(row)
                if len(row) != fields:
                    raise Problem(f"{path}, line {line}: {len(row)} fields, but there must be {fields}; {advice}.")
                yield line, row
    except UnicodeDecodeError as error:
        what = f"the byte {error.object[error.start]:#x} does not belong in a table"
        raise Problem(f"{path}, near line {line + 1}: {what}; save it as {ENCODINGS.get(encoding, UTF_8)}.") from None
    except (FileNotFoundError, Problem):
        raise
    except (*DAMAGE, csv.Error) as error:
        reason = " ".join(reason_of(error).split())[:200]
        raise Problem(f"{path} cannot be read as a CSV table ({reason}); {advice}.") from None


def tidy(row: list[str], fields: int) -> list[str]:
    """Strip blanks, and drop empty fields beyond the first `fields`; [] if all are empty or it is Excel's `sep=;`."""
    row = [field.replace(BYTE_ORDER_MARK, "").strip() for field in row]  # a conversion to UTF-16 leaves a second one
    if not any(row) or row[0].casefold() == "sep=":
        return []
    while len(row) > fields and not row[-1]:
        row.pop()
    return row


def limited_lines(text: IO[str]) -> Iterator[str]:
    """Yield the lines. Raise csv.Error for an endless one, such as gigabytes of packed zeros, before all is read."""
    while line := text.readline(2 * LONGEST_FIELD):
        if len(line) == 2 * LONGEST_FIELD:
            raise csv.Error(f"a line has more than {len(line):,} characters")
        yield line


@contextlib.contextmanager
def open_text(path: pathlib.Path, encoding: str, member: str | None, largest_bytes: int) -> Iterator[IO[str]]:
    """Open a .csv, .csv.gz or .csv.zip as text, unpacked while it is read."""
    packed = {".gz": "gzip", ".zip": "zip"}.get(path.suffix, "")
    with open(path, "rb") as file:
        check_kind(file.read(FIRST_BYTES), packed, str(path), encoding)
    if path.suffix == ".gz":
        with gzip.open(path) as unpacked:
            check_kind(unpacked.peek(FIRST_BYTES), "", f"{path}, unpacked,", encoding)
            yield io.TextIOWrapper(unpacked, encoding, newline="")
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if member is None and len(names) != 1:
                raise Problem(f"{path} holds {len(names)} files, but it must hold the one CSV.")
            if member is not None and member not in names:
                raise Problem(f"{path} has no member {member}; download it again.")
            info = archive.getinfo(names[0] if member is None else member)
            check_member(info, largest_bytes)
            with archive.open(info) as unpacked:
                first = unpacked.peek(FIRST_BYTES)  # type: ignore[attr-defined]
                check_kind(first, "", f"{path}, member {info.filename},", encoding)
                yield io.TextIOWrapper(unpacked, encoding, newline="")
    else:
        if path.stat().st_size > largest_bytes:
            raise Problem(f"{path} has {path.stat().st_size:,} bytes, but the largest table has {largest_bytes:,}.")
        with open(path, encoding=encoding, newline="") as text:
            yield text


def check_kind(first: bytes, expected: str, where: str, encoding: str) -> None:
    """Raise Problem if these first bytes are of a known kind of file, but not the expected one; "": of a table.

    encoding: of the table; where it is not one of ENCODINGS or UTF-8, the table may be in UTF-16.
    """
    kind, wanted = kind_of(first), DESCRIPTIONS.get(expected, "a CSV table")
    is_readable = kind == "UTF-16" and not expected and encoding not in (*ENCODINGS, "utf-8-sig")
    if kind and kind != expected and not is_readable:
        raise Problem(f"{where} is {DESCRIPTIONS[kind]}, not {wanted}; {ADVICE.get(kind, 'name the table itself')}.")
    if first and expected and not kind:
        raise Problem(f"{where} is not {wanted}, as its name says; rename it if it is a plain table, or get it again.")


def find_table(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """`folder/metadata.csv` or `folder/metadata.csv.zip`, whichever is there first.

    Else `folder/metadata.csv/metadata.csv`: some programs unpack an archive into a folder of its name.
    """
    paths = (folder / name, folder / f"{name}.zip", folder / name / name)
    return next((path for path in paths if path.is_file()), None)


def read_table(folder: pathlib.Path, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a table of the competition, all columns as text: the car `331659860e11` is not a number.

    Raises Problem when the table is missing or damaged, when it lacks one of `columns` or has it twice, when two rows
    have the same first of `columns`, and when it has no row.
    """
    path = find_table(folder, name)
    if path is None:
        raise Problem(f"{folder} holds neither {name} nor {name}.zip; {where_to_get(folder, name)}.")
    header, *rows = [fields for _, fields in stream_rows(path, member=name)] or [[]]
    if not header:
        raise Problem(f"{path} is empty; download it again.")
    if repeated := [column for column in columns if header.count(column) > 1]:
        raise Problem(f"{path}, line 1: the column {repeated[0]} stands there twice; download it again.")
    if missing := [column for column in columns if column not in header]:
        raise Problem(f"{path} has no column {missing[0]}; its first line is {','.join(header)[:80]}.")
    if not rows:
        raise Problem(f"{path} has no row below its first line; download it again.")
    table = pd.DataFrame(rows, columns=header, dtype=str)
    if repeated := table[columns[0]][table[columns[0]].duplicated()].tolist():
        raise Problem(f"{path} has two rows for {columns[0]} {repeated[0][:40]}.")
    return table
