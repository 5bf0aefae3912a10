"""Any input gives what a simple reader would read, or a Problem. For run lengths see tests/test_rle.py."""
import csv
import datetime
import gzip
import io
import re
import zipfile
import zlib

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from submission_rows import PIXELS, check

from pipeline import carvana, config
from pipeline.data.csv_table import read_table
from pipeline.data.zip_reader import FileSet
from pipeline.kaggle import ledger
from pipeline.masks import rle
from pipeline.runtime.problem import LONGEST_SENTENCE, Problem, sentence_of
from pipeline.submission.reader import read_rows

NAMES = [carvana.image_name("0123456789ab", angle) for angle in carvana.ANGLE_CODES[:3]]
ANY_FILE = re.compile(r"[a-z]{1,3}\.jpg")
FILE_NAMES = st.from_regex(ANY_FILE, fullmatch=True)


# --- archives -------------------------------------------------------------------------------------


def zip_bytes(files: list[tuple[str, bytes]], method: int) -> bytearray:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(f"test/{name}"), content, method)
    return bytearray(data.getvalue())


@settings(max_examples=60)
@given(
    st.dictionaries(FILE_NAMES, st.binary(max_size=90), min_size=1, max_size=4),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
def test_files_are_read_as_they_were_packed(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], method: int
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    (folder / "test.zip").write_bytes(zip_bytes(list(files.items()), method))
    file_set = FileSet(folder, "test", ANY_FILE)
    assert {name: file_set.read(name) for name in file_set.names} == files


@settings(max_examples=150)
@given(
    st.dictionaries(FILE_NAMES, st.binary(max_size=60), min_size=1, max_size=3),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.integers(0, 400),
)
def test_a_damaged_archive_gives_files_with_the_right_checksum_or_a_problem(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str, bytes],
    method: int,
    changes: list[tuple[int, int]],
    length: int,
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    data = zip_bytes(list(files.items()), method)
    for place, value in changes:
        data[-1 - place % len(data)] = value  # mostly the directory, which is at the end
    (folder / "test.zip").write_bytes(data if length % 2 else data[length:])
    try:
        file_set = FileSet(folder, "test", ANY_FILE)
        for name in file_set.names:
            content = file_set.read(name)
            assert zlib.crc32(content) == file_set.open_archive().getinfo(file_set.members[name]).CRC
    except Problem as problem:
        assert str(folder / "test.zip") in str(problem)


# --- tables ---------------------------------------------------------------------------------------

CELLS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5, unique_by=lambda row: row[0]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.booleans(),
)
def test_a_table_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], end: str, quoting: int, marked: bool
) -> None:
    folder, text = tmp_path_factory.mktemp("table"), io.StringIO()
    csv.writer(text, lineterminator=end, quoting=quoting).writerows([("id", "make"), *rows])
    (folder / "metadata.csv").write_bytes((b"\xef\xbb\xbf" if marked else b"") + text.getvalue().encode())
    table = read_table(folder, "metadata.csv", ("id", "make"))
    assert list(zip(table["id"], table["make"])) == rows


@settings(max_examples=100)
@given(st.binary(max_size=60) | st.text('ab,"\n\r;\0\ufeffé', max_size=30).map(str.encode))
def test_any_bytes_are_a_table_or_a_problem(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("table")
    (folder / "metadata.csv").write_bytes(data)
    try:
        assert len(read_table(folder, "metadata.csv", ("a",)))
    except Problem as problem:
        assert "metadata.csv" in str(problem)


# --- settings -------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
SECTIONS = st.sampled_from(sorted(config.Settings.model_fields)) | st.text(max_size=4)
KEYS = st.sampled_from(["epochs", "folder", "scale", "arch", "seed", "bce", "flip", "tta"]) | st.text(max_size=4)


@given(st.dictionaries(SECTIONS, st.dictionaries(KEYS, VALUES, max_size=2) | VALUES, max_size=3))
def test_any_tree_is_settings_that_survive_a_round_trip_or_a_problem(tree: dict) -> None:
    try:
        parsed = config.parse(tree, where="here")
    except Problem as problem:
        assert str(problem).startswith("In here: ")
        return
    assert config.parse(yaml.load(config.dump(parsed), config.Yaml), where="there") == parsed


@settings(max_examples=200)
@given(st.text("abtrainepochs:{}[],&*!<>|-'\"#%@` \n\t0129.e~?", max_size=40) | st.text(max_size=20))
def test_any_text_is_a_config_or_a_problem(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("config") / "x.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        config.load(path, ["train.epochs=2"])
    except Problem as problem:
        assert len(sentence_of(problem).splitlines()) == 1


@given(st.text(max_size=20))
def test_any_override_is_a_setting_or_a_problem(value: str) -> None:
    tree: dict = {}
    try:
        config.apply_override(tree, f"train.epochs={value}")
    except Problem:
        return
    assert list(tree["train"]) == ["epochs"]


# --- submissions ----------------------------------------------------------------------------------

BOUNDS = st.lists(st.integers(0, PIXELS), min_size=2, max_size=8, unique=True).filter(lambda b: len(b) % 2 == 0)
MASKS = st.tuples(BOUNDS, st.sampled_from([sorted, sorted, sorted, list])).map(
    lambda chosen: " ".join(f"{a + 1} {b - a}" for a, b in zip(*[iter(chosen[1](chosen[0]))] * 2))
)


def simple_mean_coverage(rows: list[tuple[str, str]]) -> float | None:
    """Compute the mean coverage from ranges of pixels; None if a mask is invalid or the mean is unlikely."""
    covered_px = 0
    for _, text in rows:
        if "-" in text:
            return None
        numbers = [int(token) for token in text.split()]
        runs = [range(start, start + length) for start, length in zip(numbers[::2], numbers[1::2])]
        ends = [0, *(run.stop - 1 for run in runs)]
        if any(not run or run.start <= end for run, end in zip(runs, ends)) or ends[-1] > PIXELS or not runs:
            return None
        covered_px += sum(map(len, runs))
    coverage = covered_px / PIXELS / len(rows)
    return coverage if 0.105 <= coverage <= 0.42 else None


@settings(max_examples=150)
@given(
    st.tuples(MASKS, MASKS, MASKS),
    st.sampled_from([".csv", ".csv.gz", ".csv.zip"]),
    st.sampled_from([NAMES, NAMES, NAMES, NAMES[::-1]]),
)
@example(("1 500000", "9 400000 600000 3", "1918 900000"), ".csv.gz", NAMES)
def test_a_submission_passes_if_a_simple_reader_accepts_it(
    tmp_path_factory: pytest.TempPathFactory, masks: tuple[str, ...], ending: str, order: list[str]
) -> None:
    path = tmp_path_factory.mktemp("submission") / f"s{ending}"
    rows = list(zip(order, masks))
    data = "".join(f"{name},{mask}\n" for name, mask in [carvana.CARVANA.submission_header, *rows]).encode()
    if ending == ".csv.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("s.csv", data)
    else:
        path.write_bytes(gzip.compress(data) if ending == ".csv.gz" else data)
    expected = simple_mean_coverage(rows)
    try:
        assert check(path, NAMES) == pytest.approx(expected)
    except Problem as problem:
        assert expected is None and str(path) in str(problem)


@settings(max_examples=100)
@given(st.binary(max_size=80), st.sampled_from([".csv", ".csv.gz", ".csv.zip"]))
def test_any_bytes_are_rows_or_a_problem(tmp_path_factory: pytest.TempPathFactory, data: bytes, ending: str) -> None:
    path = tmp_path_factory.mktemp("submission") / f"s{ending}"
    path.write_bytes(b"img,rle_mask\n" + data if ending == ".csv" else data)
    try:
        assert all(len(row) == 2 for _, row in read_rows(path, carvana.CARVANA.submission_header))
    except Problem as problem:
        assert str(path) in str(problem)


@pytest.mark.parametrize("digits", ["0" * 9000 + "1", "9" * 9000])
def test_numbers_too_long_for_int_are_read_or_named_in_the_error(digits: str) -> None:
    if digits.endswith("1"):
        assert rle.parse(f"{digits} 1", 9).tolist() == [[0, 1]]
    else:
        with pytest.raises(ValueError, match="the number 99999999999999999999,"):
            rle.parse(f"{digits} 1", 9)


# --- the ledger -----------------------------------------------------------------------------------


@settings(max_examples=150)
@given(st.lists(st.sampled_from(["0", "1.5", "nan", "a=b", "'", "yes", "2017-01-01T00:00:00Z", "é"]), max_size=21))
def test_cells_that_are_not_a_row_are_a_problem_that_names_the_line(cells: list[str]) -> None:
    with pytest.raises(Problem, match="^here: "):
        ledger.parse_row(cells, list(ledger.COLUMNS), "here")  # none of these is a sha256


WRONG, HASH = object(), "0123456789abcdef" * 4
A_ROW = {"time": "2017-09-27T23:59:58Z", "file": "a.csv.gz", "sha256": HASH, "message": "two #1"}
MEANT: dict[str, dict[str, object]] = {  # column -> cell -> what it means
    "time": {
        "2017-01-01T01:00:00+01:00": datetime.datetime(2017, 1, 1, tzinfo=datetime.UTC), "yesterday": WRONG,
        "2017-01-01T00:00:00": WRONG,
    },
    "sha256": {HASH[::-1]: HASH[::-1], HASH[1:]: WRONG, HASH.upper(): WRONG},
    "runs": {"one": ("one",), "one 'the other'": ("one", "the other"), "'": WRONG},
    "folds": {"0 1": (0, 1), "first": WRONG},
    "public": {"0": 0.0, "0.5": 0.5, "1.5": WRONG, "nan": WRONG, "é": WRONG},
    "clean": {"yes": True, "no": False, "é": WRONG},
    "checkpoints": {f"a=b.pt={HASH}": {"a=b.pt": HASH}, "a=b": WRONG},
    "message": {"one, \"é\" #2": "one, \"é\" #2", " ": WRONG},
    "ref": {"7": 7, "1.5": WRONG},
    "status": {"failed": "failed", "complete": "complete", "lost": WRONG},
}  # fmt: skip
OFTEN_GOOD = {
    column: st.sampled_from([cell for cell, meant in cells.items() for _ in range(1 if meant is WRONG else 6)])
    for column, cells in MEANT.items()
}  # fmt: skip


@settings(max_examples=200)
@given(st.fixed_dictionaries({}, optional=OFTEN_GOOD))
@example({"status": "complete", "ref": "7", "public": "0.5", "runs": "one 'the other'"})
def test_cells_are_parsed_to_a_row_or_a_problem_names_the_column(cells: dict[str, str]) -> None:
    given_cells = [(A_ROW | cells).get(column, "") for column in ledger.COLUMNS]
    wrong = [column for column, cell in cells.items() if MEANT[column][cell] is WRONG]
    if wrong or cells.get("status") == "complete" and "ref" not in cells:
        with pytest.raises(Problem, match=f"^here: ({'|'.join([*wrong, 'the row'])})"):
            ledger.parse_row(given_cells, list(ledger.COLUMNS), "here")
        return
    row = ledger.parse_row(given_cells, list(ledger.COLUMNS), "here")
    for column, cell in cells.items():
        assert getattr(row, column) == MEANT[column][cell]
    again = [ledger.format_cell(getattr(row, column)) for column in ledger.COLUMNS]
    assert ledger.parse_row(again, list(ledger.COLUMNS), "again") == row


# --- sentences ------------------------------------------------------------------------------------


@given(st.text())
def test_a_sentence_is_one_line_whatever_it_quotes(text: str) -> None:
    sentence = sentence_of(Problem(text))
    assert len(sentence.splitlines()) <= 1 and sentence.isprintable()
    assert sentence == text or not text.isprintable() or len(text) > LONGEST_SENTENCE


def test_an_os_error_is_a_sentence_that_names_the_file() -> None:
    sentence = sentence_of(PermissionError(13, "Permission denied", "runs/a\nb"))
    assert sentence.startswith(r"runs/a\nb cannot be used: Permission denied; ")
