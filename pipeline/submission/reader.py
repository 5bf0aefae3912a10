"""The rows of a submission or a solution, read one by one: such a file may hold 0.8 GB of run lengths."""
import contextlib
import csv
import gzip
import io
import pathlib
import zipfile
from collections.abc import Iterator
from typing import IO

from pipeline.data.zip_reader import DAMAGE, check_member
from pipeline.runtime.problem import Problem

LONGEST_FIELD = 32 * 2**20  # characters; a chequered mask of 1918x1280 pixels has 12 million
LARGEST_BYTES = 2**40  # of a table, which is read line by line


def read_rows(path: pathlib.Path, header: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number counted from 1, fields) of each row below the header of a .csv, .csv.gz or .csv.zip.

    Raises Problem when the file is missing, cut or no such table, or a row has another number of fields.
    """
    csv.field_size_limit(LONGEST_FIELD)
    line = 0  # that was read last
    try:
        with open_text(path) as text:
            reader = csv.reader(lines_of(text), strict=True)
            found = next(reader, None)
            if found != list(header):
                shown = "nothing" if found is None else repr(",".join(found)[:60])
                raise Problem(f"{path}, line 1: the header must be {','.join(header)}, not {shown}.")
            for row in reader:
                line = reader.line_num
                if len(row) != len(header):
                    where = f"{path}, line {reader.line_num}"
                    raise Problem(f"{where}: {len(row)} fields, but there must be {len(header)}.")
                yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise Problem(
            f"{path}, near line {line + 1}: a byte {error.object[error.start]:#x} is no plain letter; "
            "save it as ASCII, without a byte-order mark."
        ) from None
    except FileNotFoundError:
        raise Problem(f"There is no {path}; make it with `make predict`, or name another file.") from None
    except (*DAMAGE, csv.Error) as error:
        raise Problem(f"{path} is not a whole CSV table ({' '.join(str(error).split())}).") from None


def lines_of(text: IO[str]) -> Iterator[str]:
    """The lines; csv.Error for one that never ends, as in a packed file of nothing but zeros, before it is all read."""
    while line := text.readline(2 * LONGEST_FIELD):
        if len(line) == 2 * LONGEST_FIELD:
            raise csv.Error(f"a line has more than {len(line):,} characters")
        yield line


@contextlib.contextmanager
def open_text(path: pathlib.Path) -> Iterator[IO[str]]:
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="ascii", newline="") as text:
            yield text
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            if len(archive.namelist()) != 1:
                raise Problem(f"{path} holds {len(archive.namelist())} files, but it must hold the one CSV.")
            check_member(archive.infolist()[0], LARGEST_BYTES)
            with archive.open(archive.infolist()[0]) as member:
                yield io.TextIOWrapper(member, encoding="ascii", newline="")
    else:
        with open(path, encoding="ascii", newline="") as text:
            yield text
