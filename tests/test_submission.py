"""Submissions: written and verified, then checked for what Kaggle would refuse."""
import errno
import gzip
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from submission_rows import CAR, HEADER, NAMES, PIXELS, Rows, check, good_rows, save, text_of, write

from pipeline import carvana
from pipeline.__main__ import main
from pipeline.data.csv_table import read_table
from pipeline.masks import rle
from pipeline.runtime.files import replacing, sha256
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import in_order
from pipeline.submission import checks, provenance, writer
from pipeline.submission.reader import read_rows
from pipeline.submission.scoring import score

CONFIG = pathlib.Path(__file__).parent.parent / "configs/demo.yaml"


# --- writing --------------------------------------------------------------------------------------


def drawn_masks() -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    masks = [rng.random((5, 7)) < 0.4 for _ in range(4)]
    return list(zip(NAMES, [*masks, np.zeros((5, 7), bool), np.ones((5, 7), bool)]))


def test_a_written_submission_holds_the_masks_in_their_order(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "run.csv.gz"
    write(path, HEADER, iter(drawn_masks()))
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    assert lines[0] == "img,rle_mask" and lines[-1] == ""
    assert [line.split(",")[0] for line in lines[1:-1]] == NAMES
    for (_, mask), line in zip(drawn_masks(), lines[1:]):
        np.testing.assert_array_equal(rle.decode(line.split(",")[1], 5, 7), mask)


def test_the_same_masks_give_the_same_bytes_under_any_name_at_any_time(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.csv.gz", HEADER, drawn_masks())
    monkeypatch.setattr("time.time", lambda: 1e9)
    write(tmp_path / "b.csv.gz", HEADER, drawn_masks())
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_a_row_that_does_not_decode_to_its_mask_is_never_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds_of_bits = rle.bounds_of_bits
    monkeypatch.setattr(rle, "bounds_of_bits", lambda bits: bounds_of_bits(bits)[:-1])  # without the last run
    with pytest.raises(AssertionError, match="do not decode"):
        write(tmp_path / "run.csv.gz", HEADER, drawn_masks())
    assert list(tmp_path.iterdir()) == []


def test_a_submission_that_is_interrupted_leaves_the_old_one(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "run.csv.gz", HEADER, drawn_masks())
    before = (tmp_path / "run.csv.gz").read_bytes()

    def interrupted():
        yield drawn_masks()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "run.csv.gz", HEADER, interrupted())
    assert (tmp_path / "run.csv.gz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.csv.gz"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),  # of a worker that reads images
        FileNotFoundError(errno.ENOENT, "No such file or directory", "data/carvana/test.zip"),
        OSError(errno.EIO, "Input/output error", "data/carvana/test.zip"),
    ],
)
def test_an_error_of_another_file_is_not_blamed_on_the_file_that_is_written(
    tmp_path: pathlib.Path, error: OSError
) -> None:
    def rows():
        yield "a.jpg", "1 1"
        raise error

    with pytest.raises(OSError) as raised:
        writer.write_shard(tmp_path / "00000.csv.gz", rows())
    assert raised.value is error and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG])
def test_an_error_of_the_file_that_is_written_names_it(tmp_path: pathlib.Path, number: int) -> None:
    path = tmp_path / "x.json"
    for where in ({}, {"filename": str(tmp_path / ".x.json.draft")}):
        with pytest.raises(Problem, match="x.json could not be written: "), replacing(path):
            raise OSError(number, os.strerror(number), *where.values())
    (tmp_path / "a file").touch()
    with pytest.raises(Problem, match="x.json could not be written: "), replacing(tmp_path / "a file" / "x.json"):
        pass
    with pytest.raises(Problem, match="x.json could not be written: No such file"), replacing(path):
        pass  # nothing was written that could be renamed


@pytest.mark.parametrize("rows_per_shard", [4, 8, 12, 1000])
def test_a_submission_joined_from_shards_has_the_bytes_of_one_written_at_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, rows_per_shard: int
) -> None:
    monkeypatch.setattr(writer, "ROWS_PER_BLOCK", 4)
    masks = drawn_masks() * 4  # 24 rows
    write(tmp_path / "at_once.csv.gz", HEADER, masks)
    shards = []
    for begin in range(0, len(masks), rows_per_shard):
        shards.append(tmp_path / f"shard{begin}.gz")
        rows = ((name, writer.verified_rle(mask)) for name, mask in masks[begin : begin + rows_per_shard])
        assert writer.write_shard(shards[-1], rows) == min(rows_per_shard, len(masks) - begin)
    writer.join_shards(shards, tmp_path / "joined.csv.gz", HEADER)
    assert (tmp_path / "joined.csv.gz").read_bytes() == (tmp_path / "at_once.csv.gz").read_bytes()
    assert b"".join(gzip.decompress(shard.read_bytes()) for shard in shards) == gzip.decompress(
        (tmp_path / "joined.csv.gz").read_bytes()
    ).partition(b"\n")[2]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_bytes_do_not_depend_on_the_number_of_threads(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(writer, "ROWS_PER_BLOCK", 4)
    write(tmp_path / "a.csv.gz", HEADER, drawn_masks() * 3)
    monkeypatch.setattr(writer, "in_order", lambda work, items, **other: in_order(work, items, threads))
    write(tmp_path / "b.csv.gz", HEADER, drawn_masks() * 3)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_a_submission_is_one_gzip_member_for_readers_that_stop_after_the_first(tmp_path: pathlib.Path) -> None:
    masks = [(f"{number}.jpg", mask) for number in range(200) for _, mask in drawn_masks()]
    assert len(masks) > 3 * writer.ROWS_PER_BLOCK
    write(tmp_path / "run.csv.gz", HEADER, masks)
    one_member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    text = one_member.decompress((tmp_path / "run.csv.gz").read_bytes())
    assert one_member.eof and one_member.unused_data == b""
    assert text.count(b"\n") == 1 + len(masks)


@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_a_damaged_shard_is_a_problem_that_names_it(tmp_path: pathlib.Path, damage: str) -> None:
    shards = [tmp_path / "shard0.gz", tmp_path / "shard1.gz"]
    for shard in shards:
        writer.write_shard(shard, [(name, CAR) for name in NAMES])
    data = bytearray(shards[1].read_bytes())
    if damage == "gone":
        shards[1].unlink()
    elif damage == "short":
        shards[1].write_bytes(data[:-1])
    else:
        data[-8] ^= 0x10  # in the checksum
        shards[1].write_bytes(data)
    with pytest.raises(Problem, match=r"shard1\.gz"):
        writer.join_shards(shards, tmp_path / "run.csv.gz", HEADER)
    assert not (tmp_path / "run.csv.gz").exists()


def test_bounds_of_another_mask_are_refused() -> None:
    mask = np.eye(3, dtype=bool)
    assert writer.verified_rle(mask, rle.bounds(mask)) == "1 1 5 1 9 1"
    with pytest.raises(AssertionError, match="do not decode"):
        writer.verified_rle(mask, rle.bounds(mask.T[::-1]))


# --- checking -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.csv", "run.csv.gz", "run.csv.zip"])
def test_a_good_submission_passes_compressed_or_not(tmp_path: pathlib.Path, name: str) -> None:
    assert check(save(tmp_path / name, good_rows()), NAMES) == pytest.approx(0.2, abs=1e-6)


def test_a_written_submission_passes(tmp_path: pathlib.Path) -> None:
    mask = np.zeros((carvana.HEIGHT_PX, carvana.WIDTH_PX), dtype=bool)
    mask[500:900, 300:1600] = True
    write(tmp_path / "run.csv.gz", HEADER, ((name, mask) for name in NAMES))
    assert check(tmp_path / "run.csv.gz", NAMES) == pytest.approx(mask.mean())


@pytest.mark.parametrize(
    "header",
    [["img", "rle"], ["img"], ["img", "rle_mask", "x"], ["Img", "rle_mask"], ["img", "img"], [NAMES[0], CAR]],
)
def test_a_wrong_header_is_a_problem_that_quotes_it(tmp_path: pathlib.Path, header: list[str]) -> None:
    path = save(tmp_path / "run.csv", [header, *good_rows()[1:]])
    with pytest.raises(Problem, match=r"run\.csv, line 1: the header must be img,rle_mask, not"):
        check(path, NAMES)


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "index"])
def test_an_index_column_of_pandas_is_a_problem_that_says_how_to_write_without(
    tmp_path: pathlib.Path, index: str
) -> None:
    header, *rows = good_rows()
    path = save(tmp_path / "run.csv", [[index, *header], *([str(i), *row] for i, row in enumerate(rows))])
    with pytest.raises(Problem, match=r"line 1: the header must be img,rle_mask, not .*index=False"):
        check(path, NAMES)


def test_rows_and_columns_may_have_another_order_and_that_is_said(tmp_path: pathlib.Path) -> None:
    header, *rows = good_rows()
    rows[4][1] = f"{PIXELS // 4} {PIXELS // 4}"
    path = save(tmp_path / "run.csv.gz", [header[::-1], *(row[::-1] for row in rows[::-1])])
    checked = checks.check(path, NAMES, carvana.CARVANA)
    assert checked.mean_coverage == check(save(tmp_path / "same.csv", [header, *rows]), NAMES)
    order, columns = checked.notes
    assert NAMES[-1] in order and "rle_mask,img" in columns
    assert [fields for _, fields in read_rows(path, HEADER)] == rows[::-1]
    assert checks.check(tmp_path / "same.csv", NAMES, carvana.CARVANA).notes == ()
    solution = [list(carvana.CARVANA.solution_header), *([*row, "Public"] for row in rows)]
    assert score(path, save(tmp_path / "solution.csv", solution), carvana.CARVANA).public == 1.0


def test_an_empty_file_is_a_problem(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"run\.csv, line 1: .* not nothing"):
        check(save(tmp_path / "run.csv", []), NAMES)


ROW_MISTAKES: dict[str, tuple[Callable[[Rows], object], str]] = {
    "the last image is missing": (lambda rows: rows.pop(), f"has 5 of 6 images; {NAMES[5]} is the first"),
    "an image in the middle is missing": (lambda rows: rows.pop(3), f"has 5 of 6 images; {NAMES[2]} is the first"),
    "all images are missing": (lambda rows: rows.__delitem__(slice(1, None)), f"has 0 of 6 images; {NAMES[0]} is"),
    "an image too many": (
        lambda rows: rows.append(["ffffffffffff_01.jpg", CAR]), "line 8: .*ffffffffffff_01.jpg' is not in the sample"
    ),
    "an image twice": (lambda rows: rows.append(rows[2]), f"line 8: .*{NAMES[1]} is in line 3 already"),
    "names without .jpg": (lambda rows: rows[1].__setitem__(0, "0004d4463b50_01"), "line 2: .*0004d4463b50_01'"),
    "a field too many": (lambda rows: rows[4].append("1"), "line 5: 3 fields, but there must be 2"),
    "a field too few": (lambda rows: rows[4].pop(), "line 5: 1 fields"),
    "an empty line": (lambda rows: rows.insert(3, []), "line 4: 0 fields"),
}


@pytest.mark.parametrize("mistake", ROW_MISTAKES)
def test_wrong_rows_are_a_problem_that_names_the_line(tmp_path: pathlib.Path, mistake: str) -> None:
    damage, complaint = ROW_MISTAKES[mistake]
    rows = good_rows()
    damage(rows)
    with pytest.raises(Problem, match=rf"run\.csv.*{complaint}"):
        check(save(tmp_path / "run.csv", rows), NAMES)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("5", "1 numbers"),
        ("5 10 3", "3 numbers"),
        ("900000 10 5 10", "'5 10' begins before '900000 10' ends"),
        ("5 10 14 10", "'14 10' begins before '5 10' ends"),
        (f"{PIXELS} 2", f"ends at pixel {PIXELS + 1}"),
        (f"1 {PIXELS + 1}", f"{PIXELS + 1}"),
        ("5 0", "number 0"),
        ("0 5", "number 0"),
        ("-5 10", "-5"),
        ("1.5 2", "1.5"),
        ("[1 2]", r"\[1"),
        ("", "the mask is empty"),
        (" ", "the mask is empty"),
    ],
)
def test_a_mask_that_kaggle_would_refuse_is_a_problem_that_names_line_and_image(
    tmp_path: pathlib.Path, text: str, complaint: str
) -> None:
    rows = good_rows()
    rows[3][1] = text
    with pytest.raises(Problem, match=rf"line 4, image {NAMES[2]}: .*{complaint}"):
        check(save(tmp_path / "run.csv", rows), NAMES)


def test_empty_rows_of_bad_images_pass_in_the_file_that_predict_wrote_and_in_no_other(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [list(HEADER), *([name, CAR] for name in read_table(demo_folder, "sample_submission.csv", HEADER)["img"])]
    rows[3][1] = rows[5][1] = ""
    path, arguments = pathlib.Path("submissions/x.csv.gz"), ["check", "--data", str(demo_folder), "--run", "x"]
    path.parent.mkdir()
    save(path, rows)
    for bad_images in ([], [rows[3][0]], [rows[3][0], rows[5][0]]):
        provenance.write(path.with_name("x.json"), provenance.Provenance(sha256=sha256(path), bad_images=bad_images))
        assert main([*arguments, "--config", str(CONFIG)]) == (0 if len(bad_images) == 2 else 1)
    out, err = capsys.readouterr()
    assert [line.count("the mask is empty") for line in err.splitlines()] == [1, 1]
    assert f"{rows[3][0]}, {rows[5][0]}" in out
    path.write_bytes(path.read_bytes() + gzip.compress(b""))  # the same rows in another file
    assert main([*arguments, "--config", str(CONFIG)]) == 1


@pytest.mark.parametrize("mask", ["1 1", f"1 {PIXELS}", f"1 {PIXELS // 10}", f"1 {PIXELS // 2}"])
def test_an_unlikely_mean_coverage_is_a_problem(tmp_path: pathlib.Path, mask: str) -> None:
    """A sample submission sent by accident, inverted masks, a threshold far off."""
    rows = [list(HEADER)] + [[name, mask] for name in NAMES]
    with pytest.raises(Problem, match="of their images on average, but 10.5% to 42.0%"):
        check(save(tmp_path / "run.csv", rows), NAMES)


@pytest.mark.parametrize("tenths", range(10))
@pytest.mark.parametrize("name", ["run.csv.gz", "run.csv.zip", "run.csv"])
def test_a_truncated_submission_is_a_problem_that_names_it(tmp_path: pathlib.Path, name: str, tenths: int) -> None:
    path = save(tmp_path / name, good_rows())
    path.write_bytes(path.read_bytes()[: path.stat().st_size * tenths // 10])
    with pytest.raises(Problem, match=re.escape(name)):
        check(path, NAMES)


def test_a_flipped_byte_in_a_compressed_submission_is_a_problem_that_names_it(tmp_path: pathlib.Path) -> None:
    for name in ("run.csv.gz", "run.csv.zip"):
        path = save(tmp_path / name, good_rows())
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 0x10
        path.write_bytes(data)
        with pytest.raises(Problem, match=re.escape(name)):
            check(path, NAMES)


def test_a_zip_must_hold_one_csv(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "run.csv.zip", good_rows())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(Problem, match="holds 2 files"):
        check(path, NAMES)


def test_a_missing_submission_is_a_problem(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"no .*none\.csv\.gz"):
        check(tmp_path / "none.csv.gz", NAMES)


def test_characters_that_are_not_ascii_and_open_quotes_are_refused(tmp_path: pathlib.Path) -> None:
    for text in ("\ufeffimg,rle_mask\n", "img,rle_mask\ncar\u00e9.jpg,1 1\n", 'img,rle_mask\n"a.jpg,1 1\n'):
        (tmp_path / "run.csv").write_text(text, encoding="utf-8")
        with pytest.raises(Problem, match=r"run\.csv"):
            check(tmp_path / "run.csv", NAMES)


def test_quotes_and_other_line_ends_are_read_as_kaggle_reads_them(tmp_path: pathlib.Path) -> None:
    text = text_of(good_rows()).replace(CAR, f'"{CAR}"').replace("\n", "\r\n")
    (tmp_path / "run.csv").write_bytes(text.encode())
    assert check(tmp_path / "run.csv", NAMES) == pytest.approx(0.2, abs=1e-6)


def test_a_chequered_mask_is_not_too_long_to_read(tmp_path: pathlib.Path) -> None:
    text = " ".join(f"{start} 1" for start in range(1, PIXELS + 1, 2))
    path = save(tmp_path / "run.csv.gz", [list(HEADER), [NAMES[0], text]])
    (_, fields), = read_rows(path, HEADER)
    assert fields == [NAMES[0], text]
