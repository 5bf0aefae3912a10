"""One strict CSV reader: what it reads, what it refuses, and that a huge table is never in memory as a whole."""
import gzip
import io
import pathlib
import re
import tracemalloc
import zipfile

import pytest

from pipeline.data import csv_table
from pipeline.data.csv_table import read_table, stream_rows
from pipeline.runtime.problem import Problem

ROWS = [["id", "make"], ["a", "1"], ["b", "2"]]
DATA = b"id,make\na,1\nb,2\n"
SAME = (DATA, b"\xef\xbb\xbf" + DATA, DATA.replace(b"\n", b"\r\n"), b'"id","make"' + DATA[7:])


def write(path: pathlib.Path, data: bytes) -> pathlib.Path:
    """Write a table, packed as its suffix says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, data)
    else:
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.csv.zip"])
@pytest.mark.parametrize("data", SAME)
def test_rows_come_with_their_line_numbers(tmp_path: pathlib.Path, name: str, data: bytes) -> None:
    assert list(stream_rows(write(tmp_path / name, data))) == list(zip((1, 2, 3), ROWS))


def test_blank_lines_are_skipped_or_rows_without_fields(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "t.csv", b"id,make\n\na,1\n\n\nb,2\n")
    assert [line for line, _ in stream_rows(path)] == [1, 3, 6]
    with pytest.raises(Problem, match=r"t\.csv, line 2: 0 fields"):
        list(stream_rows(path, skip_blank=False))


@pytest.mark.parametrize(
    "data, sentence",
    [
        (DATA + b"c\n", "line 4: 1 fields, but there must be 2; try again"),
        (DATA + b"c,1,2\n", "line 4: 3 fields, but there must be 2; try again"),
        (DATA + b'c,"1\n', "cannot be read as a CSV table .*; try again"),
        (DATA + b'c,"1"2\n', "cannot be read as a CSV table .*; try again"),
        (DATA + b"\xff,1\n", "near line .: the byte 0xff .*; save it as UTF-8"),
        (DATA.decode().encode("utf-16"), "is text in UTF-16, not a CSV table; save it as ASCII or UTF-8"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, not a CSV table; .*accept the rules"),
        (gzip.compress(DATA, mtime=0), "is a gzip file, not a CSV table; rename it to end in .csv.gz"),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.csv.zip"])
def test_what_is_not_a_table_is_one_sentence(tmp_path: pathlib.Path, name: str, data: bytes, sentence: str) -> None:
    with pytest.raises(Problem, match=sentence) as caught:
        list(stream_rows(write(tmp_path / name, data), advice="try again"))
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def workbook() -> bytes:
    """The beginning of an .xlsx file."""
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return file.getvalue()


def packed_table() -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("t.csv", DATA)
    return file.getvalue()


PAGE = b"\n <html><head><title>Kaggle: Your Home for Data Science</title>"


@pytest.mark.parametrize("name, data, sentence", [
    ("t.csv", gzip.compress(DATA, mtime=0), "is a gzip file, not a CSV table; rename it to end in .csv.gz"),
    ("t.csv", packed_table(), "is a zip archive, not a CSV table; rename it to end in .csv.zip"),
    ("t.csv", workbook(), "is an Excel workbook, not a CSV table; save it as CSV"),
    ("t.csv", b"\xd0\xcf\x11\xe0" + bytes(99), "is an Excel workbook, not a CSV table; save it as CSV"),
    ("t.csv", DATA.decode().encode("utf-16-be").join([b"\xfe\xff", b""]), "is text in UTF-16"),
    ("t.csv", PAGE, "is a web page, not a CSV table; it may be Kaggle's login page"),
    ("t.csv.gz", PAGE, "is a web page, not a gzip file; it may be Kaggle's login page"),
    ("t.csv.zip", PAGE, "is a web page, not a zip archive; it may be Kaggle's login page"),
    ("t.csv.gz", DATA, "is not a gzip file, as its name says; rename it"),
    ("t.csv.zip", DATA, "is not a zip archive, as its name says; rename it"),
    ("t.csv.gz", packed_table(), "is a zip archive, not a gzip file; rename it to end in .csv.zip"),
    ("t.csv.zip", gzip.compress(DATA, mtime=0), "is a gzip file, not a zip archive; rename it to end in .csv.gz"),
    ("t.csv.zip", workbook(), "is an Excel workbook, not a zip archive; save it as CSV"),
])  # fmt: skip
def test_a_file_of_another_kind_than_its_name_is_named(
    tmp_path: pathlib.Path, name: str, data: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Problem, match=rf"{re.escape(name)} {sentence}"):
        list(stream_rows(tmp_path / name, "ascii"))


def test_a_table_in_a_folder_of_its_name_is_read_and_one_elsewhere_is_pointed_at(tmp_path: pathlib.Path) -> None:
    (tmp_path / "t.csv").mkdir()
    write(tmp_path / "t.csv/t.csv", DATA)
    assert read_table(tmp_path, "t.csv", ("id",))["id"].tolist() == ["a", "b"]
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner/u.csv.zip", DATA)
    with pytest.raises(Problem, match=rf"neither u\.csv nor u\.csv\.zip; it is in .*DATA={tmp_path}/inner"):
        read_table(tmp_path, "u.csv", ("id",))


def test_ascii_refuses_letters_and_a_byte_order_mark(tmp_path: pathlib.Path) -> None:
    for data in (b"\xef\xbb\xbf" + DATA, DATA + "\u00e9,1\n".encode()):
        with pytest.raises(Problem, match="save it as ASCII without a byte-order mark"):
            list(stream_rows(write(tmp_path / "t.csv", data), "ascii"))


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.csv.zip"])
def test_a_field_and_a_line_have_a_longest_length(
    tmp_path: pathlib.Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_table, "LONGEST_FIELD", 1000)
    with pytest.raises(Problem, match="field larger"):
        list(stream_rows(write(tmp_path / name, DATA + b"c," + b"1" * 1001)))
    with pytest.raises(Problem, match="a line has more than 2,000"):
        list(stream_rows(write(tmp_path / name, DATA + b"1," * 1000)))


@pytest.mark.parametrize("name", ["t.csv.gz", "t.csv.zip"])
def test_packed_zeros_without_end_are_refused_in_little_memory(
    tmp_path: pathlib.Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_table, "LONGEST_FIELD", 2**20)
    path = write(tmp_path / name, bytes(2**26))
    tracemalloc.start()
    with pytest.raises(Problem, match="a line has more than"):
        list(stream_rows(path))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2**25


def test_a_table_larger_than_allowed_is_refused_before_it_is_read(tmp_path: pathlib.Path) -> None:
    for name in ("t.csv", "t.csv.zip"):
        with pytest.raises(Problem, match=r"t\.csv.*16"):
            list(stream_rows(write(tmp_path / name, DATA), largest_bytes=15))


@pytest.mark.parametrize("tenths", range(10))
@pytest.mark.parametrize("name", ["t.csv.gz", "t.csv.zip"])
def test_a_packed_table_that_is_cut_short_is_a_problem(tmp_path: pathlib.Path, name: str, tenths: int) -> None:
    path = write(tmp_path / name, DATA)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * tenths // 10])
    if tenths or name.endswith("zip"):  # an empty .gz is an empty table
        with pytest.raises(Problem, match="cannot be read as a CSV table"):
            list(stream_rows(path))


def test_a_zip_holds_one_table_or_the_one_that_is_named(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "t.csv.zip", DATA)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/._t.csv", b"")
    assert [row for _, row in stream_rows(path, member="t.csv")] == ROWS
    with pytest.raises(Problem, match="holds 2 files"):
        list(stream_rows(path))
    with pytest.raises(Problem, match=r"has no member u\.csv"):
        list(stream_rows(path, member="u.csv"))


def test_a_missing_file_is_for_the_caller_to_explain(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(stream_rows(tmp_path / "t.csv"))


def test_a_table_is_all_text(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "t.csv.zip", b"id,make\n331659860e11,\n011330127438,NA\n")
    table = read_table(tmp_path, "t.csv", ("id", "make"))
    assert table.to_numpy().tolist() == [["331659860e11", ""], ["011330127438", "NA"]]


@pytest.mark.parametrize("data, sentence", [
    (b"id,id\n", "line 1: the column id stands there twice"), (b"id\na\n", "has no column make"),
    (b"id,make\n", "has no row below"), (b"", "is empty"), (DATA + b"a,3\n", "two rows for id a"),
])  # fmt: skip
def test_a_table_with_other_columns_or_rows_is_a_problem(tmp_path: pathlib.Path, data: bytes, sentence: str) -> None:
    write(tmp_path / "t.csv", data)
    with pytest.raises(Problem, match=rf"t\.csv.*{sentence}"):
        read_table(tmp_path, "t.csv", ("id", "make"))


def test_a_folder_in_place_of_a_table_is_named_without_a_number(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"cannot be read as a CSV table \(Is a directory\)"):
        list(stream_rows(tmp_path))
