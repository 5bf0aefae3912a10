"""A small table is read as spreadsheets save it, and nothing is guessed."""
import gzip
import pathlib

import pytest

from pipeline.data import relabel
from pipeline.data.csv_table import read_table
from pipeline.data.image_folder import read_groups
from pipeline.data.spreadsheet import read_spreadsheet
from pipeline.runtime.problem import Problem

COLUMNS = ("image", "group")
TEXT = "image,group\na.jpg,1\nb.jpg,Müller\n"
SAVED = {
    "plain": TEXT.encode(),
    "semicolons": TEXT.replace(",", ";").encode(),
    "tabs": TEXT.replace(",", "\t").encode(),
    "CRLF": TEXT.replace("\n", "\r\n").encode(),
    "CR": TEXT.replace("\n", "\r").encode(),
    "no last line end": TEXT[:-1].encode(),
    "UTF-8 with its mark": TEXT.encode("utf-8-sig"),
    "Excel's Unicode text": TEXT.replace(",", "\t").replace("\n", "\r\n").encode("utf-16"),
    "converted to UTF-16": TEXT.encode("utf-8-sig").decode().encode("utf-16"),
    "UTF-16 without its mark": TEXT.encode("utf-16-le"),
    "UTF-16 big-endian": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "UTF-16 big-endian without its mark": TEXT.encode("utf-16-be"),
    "Excel's own first line": b"sep=;\r\n" + TEXT.replace(",", ";").encode(),
    "all quoted": "\n".join(";".join(f'"{field}"' for field in row.split(",")) for row in TEXT.split()).encode(),
    "empty columns": TEXT.replace("\n", ",,\n").encode(),
    "empty columns in some rows": b"image,group\n" + "a.jpg,1,,,\nb.jpg,Müller\n".encode(),
    "empty rows": ("\n,\n" + TEXT + ",\n,,,\n\n ; \n").replace(";", ",").encode(),
    "blanks": " image , group\na.jpg, 1 \n\tb.jpg ,\u00a0Müller\n".encode(),
    "a blank before a quote": 'image, group\n"a.jpg", "1"\n"b.jpg", "Müller"\n'.encode(),
    "capitals": TEXT.replace("image,group", "Image,GROUP").encode(),
    "another order and more columns": "No.;Group;Notes, if any;Image\n1;1;;a.jpg\n2;Müller;so, so;b.jpg\n".encode(),
}


@pytest.mark.parametrize("data", SAVED.values(), ids=SAVED)
def test_a_table_is_read_however_it_was_saved(tmp_path: pathlib.Path, data: bytes) -> None:
    path = tmp_path / "groups.csv"
    path.write_bytes(data)
    assert read_spreadsheet(path, COLUMNS).to_numpy().tolist() == [["a.jpg", "1"], ["b.jpg", "Müller"]]
    assert read_groups(path, dict.fromkeys("ab", path)) == {"a": "1", "b": "Müller"}


def test_a_packed_table_is_read_too(tmp_path: pathlib.Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(SAVED["Excel's Unicode text"]))
    assert read_spreadsheet(tmp_path / "t.csv.gz", COLUMNS)["group"].tolist() == ["1", "Müller"]


def test_a_field_may_hold_what_divides_other_tables(tmp_path: pathlib.Path) -> None:
    (tmp_path / "t.csv").write_text('image;group\na.jpg;"Doe, J."\nb.jpg;1,5\n')
    assert read_spreadsheet(tmp_path / "t.csv", COLUMNS)["group"].tolist() == ["Doe, J.", "1,5"]
    (tmp_path / "t.csv").write_text('image,group\na.jpg,"x;y"\nb.jpg,"p\nq"\n')
    assert read_spreadsheet(tmp_path / "t.csv", COLUMNS)["group"].tolist() == ["x;y", "p\nq"]


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"", "must have the columns image,group, but has no column image; it is empty"),
        (b"a.jpg,1\nb.jpg,2\n", "no column image; its first line is a.jpg,1"),
        (b"image|group\na|1\n", r"no column image; its first line is image\|group"),
        (b"image,group,Image\na,1,b\n", "has the column image twice"),
        (b"image;group\na;1\nb;1;x\n", "line 3: 3 fields, but there must be 2; correct that row"),
        (b"image,group,\na,1,\nb,1,x\n", "line 3: 3 fields, but there must be 2"),  # x stands below no heading
        (b"image;group\na;1\nb\n", "line 3: 1 fields, but there must be 2"),
        (b"image;group\na;1\n;2\n", "line 3: image is empty; correct that row"),
        (b"image;group\na;1\n a ;2\n", "has two rows for image a; delete one"),
        (b'image;group\na;"1\n', "cannot be read as a CSV table"),
        ("image;group\nä;1\n".encode("cp1252"), "the byte 0xe4 does not belong in a table; save it as UTF-8"),
        (TEXT.encode("utf-16")[:-1], "near line 3: .*; save it as UTF-8"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: pathlib.Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "groups.csv"
    path.write_bytes(data)
    with pytest.raises(Problem, match=sentence) as caught:
        read_spreadsheet(path, COLUMNS)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_missing_or_damaged_table_is_a_problem(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"There is no .*t\.csv\."):
        read_spreadsheet(tmp_path / "t.csv", COLUMNS)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(TEXT.encode())[:-9])
    with pytest.raises(Problem, match=r"t\.csv\.gz cannot be read as a CSV table"):
        read_spreadsheet(tmp_path / "t.csv.gz", COLUMNS)


def test_the_tables_of_exclude_and_relabel_may_have_been_edited_in_a_spreadsheet(tmp_path: pathlib.Path) -> None:
    path, names = tmp_path / "suspects.csv", ["00000000000a_01.jpg", "00000000000a_02.jpg"]
    path.write_bytes(f"Img;score;rle_mask;\r\n{names[1]};0,5;1 3;\r\n;;;\r\n".encode("utf-8-sig"))
    assert relabel.without(names, str(path), "carvana") == names[:1]
    masks = relabel.read_relabelled(names, str(path), "carvana")
    assert masks is not None and masks.names == names[1:] and masks.runs(names[1]).tolist() == [[0, 3]]


def test_tables_that_programs_write_stay_strict(tmp_path: pathlib.Path) -> None:
    (tmp_path / "metadata.csv").write_text("id;make\na;1\n")
    with pytest.raises(Problem, match="has no column id; its first line is id;make"):
        read_table(tmp_path, "metadata.csv", ("id", "make"))
