"""Submissions: written and proven, checked for what Kaggle would refuse, scored as it would score them."""
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

from pipeline import carvana
from pipeline.__main__ import main
from pipeline.data.competition import read_table
from pipeline.runtime.files import replacing, sha256
from pipeline.submission import provenance, writer
from pipeline.submission.checks import check
from pipeline.submission.reader import read_rows
from pipeline.masks import rle
from pipeline.runtime.problem import Problem
from pipeline import score
from pipeline.runtime.progress import in_order

CONFIG = pathlib.Path(__file__).parent.parent / "configs/demo.yaml"
HEADER = carvana.SUBMISSION_HEADER
NAMES = [carvana.image_name("0004d4463b50", view) for view in carvana.ANGLE_CODES[:6]]
PIXELS = carvana.WIDTH_PX * carvana.HEIGHT_PX
CAR = f"{PIXELS // 3} {PIXELS // 5}"  # a run over a fifth of the picture
Rows = list[list[str]]


def good_rows() -> Rows:
    return [list(HEADER)] + [[name, CAR] for name in NAMES]


def text_of(rows: Rows) -> str:
    return "".join(",".join(row) + "\n" for row in rows)


def save(path: pathlib.Path, rows: Rows) -> pathlib.Path:
    """As .csv, .csv.gz or .csv.zip, by the name."""
    data = text_of(rows).encode()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, data)
    else:
        path.write_bytes(data)
    return path


# --- writing --------------------------------------------------------------------------------------


def drawn_masks() -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    masks = [rng.random((5, 7)) < 0.4 for _ in range(4)]
    return list(zip(NAMES, [*masks, np.zeros((5, 7), bool), np.ones((5, 7), bool)]))


def test_a_written_submission_holds_the_masks_in_their_order(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "run.csv.gz"
    assert writer.write(path, HEADER, iter(drawn_masks())) == 6
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    assert lines[0] == "img,rle_mask" and lines[-1] == ""
    assert [line.split(",")[0] for line in lines[1:-1]] == NAMES
    for (_, mask), line in zip(drawn_masks(), lines[1:]):
        np.testing.assert_array_equal(rle.decode(line.split(",")[1], 5, 7), mask)


def test_the_same_masks_give_the_same_bytes_under_any_name_at_any_time(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(tmp_path / "a.csv.gz", HEADER, drawn_masks())
    monkeypatch.setattr("time.time", lambda: 1e9)
    writer.write(tmp_path / "b.csv.gz", HEADER, drawn_masks())
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_a_row_that_does_not_decode_to_its_mask_is_never_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds_of_bits = rle.bounds_of_bits
    monkeypatch.setattr(rle, "bounds_of_bits", lambda bits: bounds_of_bits(bits)[:-1])  # the last run is forgotten
    with pytest.raises(AssertionError, match="do not decode"):
        writer.write(tmp_path / "run.csv.gz", HEADER, drawn_masks())
    assert list(tmp_path.iterdir()) == []


def test_a_submission_that_is_interrupted_leaves_the_old_one(tmp_path: pathlib.Path) -> None:
    writer.write(tmp_path / "run.csv.gz", HEADER, drawn_masks())
    before = (tmp_path / "run.csv.gz").read_bytes()

    def interrupted():
        yield drawn_masks()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write(tmp_path / "run.csv.gz", HEADER, interrupted())
    assert (tmp_path / "run.csv.gz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.csv.gz"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),  # of a worker that reads pictures
        FileNotFoundError(errno.ENOENT, "No such file or directory", "data/carvana/test.zip"),
        OSError(errno.EIO, "Input/output error", "data/carvana/test.zip"),
    ],
)
def test_what_goes_wrong_with_other_files_is_not_told_of_the_file_that_is_written(
    tmp_path: pathlib.Path, error: OSError
) -> None:
    def rows():
        yield "a.jpg", "1 1"
        raise error

    with pytest.raises(OSError) as raised:
        writer.write_shard(tmp_path / "00000.csv.gz", rows())
    assert raised.value is error and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG])
def test_what_goes_wrong_with_the_file_that_is_written_names_it(tmp_path: pathlib.Path, number: int) -> None:
    path = tmp_path / "x.json"
    for where in ({}, {"filename": str(tmp_path / ".x.json.draft")}):
        with pytest.raises(Problem, match="x.json could not be written: "), replacing(path):
            raise OSError(number, os.strerror(number), *where.values())
    (tmp_path / "a file").touch()
    with pytest.raises(Problem, match="x.json could not be written: "), replacing(tmp_path / "a file" / "x.json"):
        pass
    with pytest.raises(Problem, match="x.json could not be written: No such file"), replacing(path):
        pass  # and so nothing is there to be renamed


@pytest.mark.parametrize("rows_per_shard", [4, 8, 12, 1000])
def test_a_submission_joined_from_parts_is_that_written_at_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, rows_per_shard: int
) -> None:
    monkeypatch.setattr(writer, "ROWS_PER_BLOCK", 4)
    masks = drawn_masks() * 4  # 24 rows
    writer.write(tmp_path / "at_once.csv.gz", HEADER, masks)
    parts = []
    for begin in range(0, len(masks), rows_per_shard):
        parts.append(tmp_path / f"part{begin}.gz")
        rows = writer.verified_rows(masks[begin : begin + rows_per_shard])
        assert writer.write_shard(parts[-1], rows) == min(rows_per_shard, len(masks) - begin)
    writer.join(parts, tmp_path / "joined.csv.gz", HEADER)
    assert (tmp_path / "joined.csv.gz").read_bytes() == (tmp_path / "at_once.csv.gz").read_bytes()
    assert b"".join(gzip.decompress(part.read_bytes()) for part in parts) == gzip.decompress(
        (tmp_path / "joined.csv.gz").read_bytes()
    ).partition(b"\n")[2]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_bytes_do_not_depend_on_the_number_of_threads(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(writer, "ROWS_PER_BLOCK", 4)
    writer.write(tmp_path / "a.csv.gz", HEADER, drawn_masks() * 3)
    monkeypatch.setattr(writer, "in_order", lambda work, things, **one: in_order(work, things, threads))
    writer.write(tmp_path / "b.csv.gz", HEADER, drawn_masks() * 3)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_a_submission_is_one_gzip_member_for_readers_that_stop_behind_the_first(tmp_path: pathlib.Path) -> None:
    masks = [(f"{number}.jpg", mask) for number in range(200) for _, mask in drawn_masks()]
    assert len(masks) > 3 * writer.ROWS_PER_BLOCK
    writer.write(tmp_path / "run.csv.gz", HEADER, masks)
    one_member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    text = one_member.decompress((tmp_path / "run.csv.gz").read_bytes())
    assert one_member.eof and one_member.unused_data == b""
    assert text.count(b"\n") == 1 + len(masks)


@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_a_damaged_part_is_a_problem_that_names_it(tmp_path: pathlib.Path, damage: str) -> None:
    parts = [tmp_path / "part0.gz", tmp_path / "part1.gz"]
    for part in parts:
        writer.write_shard(part, [(name, CAR) for name in NAMES])
    data = bytearray(parts[1].read_bytes())
    if damage == "gone":
        parts[1].unlink()
    elif damage == "short":
        parts[1].write_bytes(data[:-1])
    else:
        data[-8] ^= 0x10  # in the checksum
        parts[1].write_bytes(data)
    with pytest.raises(Problem, match=r"part1\.gz is missing or damaged"):
        writer.join(parts, tmp_path / "run.csv.gz", HEADER)
    assert not (tmp_path / "run.csv.gz").exists()


def test_bounds_that_are_not_those_of_the_mask_are_found() -> None:
    mask = np.eye(3, dtype=bool)
    assert writer.verified_rle(mask, rle.bounds(mask)) == "1 1 5 1 9 1"
    with pytest.raises(AssertionError, match="do not decode"):
        writer.verified_rle(mask, rle.bounds(mask.T[::-1]))


# --- checking -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.csv", "run.csv.gz", "run.csv.zip"])
def test_a_good_submission_passes_packed_or_not(tmp_path: pathlib.Path, name: str) -> None:
    assert check(save(tmp_path / name, good_rows()), NAMES) == pytest.approx(0.2, abs=1e-6)


def test_a_written_submission_passes(tmp_path: pathlib.Path) -> None:
    mask = np.zeros((carvana.HEIGHT_PX, carvana.WIDTH_PX), dtype=bool)
    mask[500:900, 300:1600] = True
    writer.write(tmp_path / "run.csv.gz", HEADER, ((name, mask) for name in NAMES))
    assert check(tmp_path / "run.csv.gz", NAMES) == pytest.approx(mask.mean())


@pytest.mark.parametrize(
    "header",
    [["img", "rle"], ["rle_mask", "img"], ["img"], ["img", "rle_mask", "x"], ["Img", "rle_mask"], [NAMES[0], CAR]],
)
def test_a_bad_header_is_found(tmp_path: pathlib.Path, header: list[str]) -> None:
    path = save(tmp_path / "run.csv", [header, *good_rows()[1:]])
    with pytest.raises(Problem, match=r"run\.csv, line 1: the header must be img,rle_mask, not"):
        check(path, NAMES)


def test_an_empty_file_is_found(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"run\.csv, line 1: .* not nothing"):
        check(save(tmp_path / "run.csv", []), NAMES)


ROW_MISTAKES: dict[str, tuple[Callable[[Rows], object], str]] = {
    "the last image is missing": (lambda rows: rows.pop(), f"ends after 5 of 6 images.*missing is {NAMES[5]}"),
    "an image in the middle is missing": (lambda rows: rows.pop(3), f"line 4: .*{NAMES[3]} stands where.*{NAMES[2]}"),
    "all images are missing": (lambda rows: rows.__delitem__(slice(1, None)), f"ends after 0 of 6.*{NAMES[0]}"),
    "an image too many": (
        lambda rows: rows.append(["ffffffffffff_01.jpg", CAR]), "line 8: .*ffffffffffff_01.jpg' is not in the sample"
    ),
    "an image twice": (lambda rows: rows.append(rows[2]), f"line 8: .*{NAMES[1]} stands in line 3 already"),
    "another order": (lambda rows: rows.insert(1, rows.pop()), f"line 2: .*{NAMES[5]} stands where.*{NAMES[0]}"),
    "names without .jpg": (lambda rows: rows[1].__setitem__(0, "0004d4463b50_01"), "line 2: .*0004d4463b50_01'"),
    "a field too many": (lambda rows: rows[4].append("1"), "line 5: 3 fields, but there must be 2"),
    "a field too few": (lambda rows: rows[4].pop(), "line 5: 1 fields"),
    "an empty line": (lambda rows: rows.insert(3, []), "line 4: 0 fields"),
}


@pytest.mark.parametrize("mistake", ROW_MISTAKES)
def test_wrong_rows_are_found(tmp_path: pathlib.Path, mistake: str) -> None:
    spoil, complaint = ROW_MISTAKES[mistake]
    rows = good_rows()
    spoil(rows)
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
def test_a_mask_that_kaggle_would_refuse_is_found(tmp_path: pathlib.Path, text: str, complaint: str) -> None:
    rows = good_rows()
    rows[3][1] = text
    with pytest.raises(Problem, match=rf"line 4, image {NAMES[2]}: .*{complaint}"):
        check(save(tmp_path / "run.csv", rows), NAMES)


def test_the_rows_that_predict_left_empty_pass_in_that_file_alone(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [list(HEADER), *([name, CAR] for name in read_table(demo_folder, "sample_submission.csv", HEADER)["img"])]
    rows[3][1] = rows[5][1] = ""
    path, words = pathlib.Path("submissions/x.csv.gz"), ["check", "--data", str(demo_folder), "--run", "x"]
    path.parent.mkdir()
    save(path, rows)
    for bad_images in ([], [rows[3][0]], [rows[3][0], rows[5][0]]):
        provenance.write(path.with_name("x.json"), provenance.Provenance(sha256=sha256(path), bad_images=bad_images))
        assert main([*words, "--config", str(CONFIG)]) == (0 if len(bad_images) == 2 else 1)
    said = capsys.readouterr()
    assert [line.count("the mask is empty") for line in said.err.splitlines()] == [1, 1]
    assert f"2 pictures could not be read and have empty rows: {rows[3][0]}, {rows[5][0]}." in said.out
    path.write_bytes(path.read_bytes() + gzip.compress(b""))  # the same rows in another file
    assert main([*words, "--config", str(CONFIG)]) == 1


@pytest.mark.parametrize("mask", ["1 1", f"1 {PIXELS}", f"1 {PIXELS // 10}", f"1 {PIXELS // 2}"])
def test_a_suspicious_mean_area_is_found(tmp_path: pathlib.Path, mask: str) -> None:
    """A sample submission sent by accident, masks inside out, a cut far off."""
    rows = [list(HEADER)] + [[name, mask] for name in NAMES]
    with pytest.raises(Problem, match="of their pictures on average, but cars cover 21%"):
        check(save(tmp_path / "run.csv", rows), NAMES)


@pytest.mark.parametrize("tenths", range(10))
@pytest.mark.parametrize("name", ["run.csv.gz", "run.csv.zip", "run.csv"])
def test_a_submission_that_is_cut_short_is_found(tmp_path: pathlib.Path, name: str, tenths: int) -> None:
    path = save(tmp_path / name, good_rows())
    path.write_bytes(path.read_bytes()[: path.stat().st_size * tenths // 10])
    with pytest.raises(Problem, match=re.escape(name)):
        check(path, NAMES)


def test_a_flipped_byte_in_a_packed_submission_is_found(tmp_path: pathlib.Path) -> None:
    for name in ("run.csv.gz", "run.csv.zip"):
        path = save(tmp_path / name, good_rows())
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 0x10
        path.write_bytes(data)
        with pytest.raises(Problem, match=re.escape(name)):
            check(path, NAMES)


def test_a_zip_must_hold_the_one_csv(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "run.csv.zip", good_rows())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(Problem, match="holds 2 files"):
        check(path, NAMES)


def test_a_missing_submission_is_a_problem(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"no .*none\.csv\.gz"):
        check(tmp_path / "none.csv.gz", NAMES)


def test_letters_that_are_not_ascii_and_open_quotes_are_found(tmp_path: pathlib.Path) -> None:
    for text in ("\ufeffimg,rle_mask\n", "img,rle_mask\ncar\u00e9.jpg,1 1\n", 'img,rle_mask\n"a.jpg,1 1\n'):
        (tmp_path / "run.csv").write_text(text, encoding="utf-8")
        with pytest.raises(Problem, match=r"run\.csv"):
            check(tmp_path / "run.csv", NAMES)


def test_quotes_and_other_line_ends_are_read_as_kaggle_reads_them(tmp_path: pathlib.Path) -> None:
    text = text_of(good_rows()).replace(CAR, f'"{CAR}"').replace("\n", "\r\n")
    (tmp_path / "run.csv").write_bytes(text.encode())
    assert check(tmp_path / "run.csv", NAMES) == pytest.approx(0.2, abs=1e-6)


def test_a_chequered_mask_is_not_too_long_to_be_read(tmp_path: pathlib.Path) -> None:
    text = " ".join(f"{start} 1" for start in range(1, PIXELS + 1, 2))
    path = save(tmp_path / "run.csv.gz", [list(HEADER), [NAMES[0], text]])
    (_, fields), = read_rows(path, HEADER)
    assert fields == [NAMES[0], text]


# --- scoring --------------------------------------------------------------------------------------


def scored(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, truth: Rows, submission: Rows) -> str:
    """The last line that the stage prints."""
    solution = save(tmp_path / "solution.csv", [list(carvana.SOLUTION_HEADER), *truth])
    score.main(save(tmp_path / "run.csv.gz", [list(HEADER), *submission]), solution)
    return capsys.readouterr().out.splitlines()[-1]


def test_a_perfect_submission_scores_1(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    truth = [[NAMES[0], CAR, "Public"], [NAMES[1], CAR, "Private"]]
    line = scored(tmp_path, capsys, truth, [row[:2] for row in truth])
    assert line == "public 1.00000  private 1.00000  images 2"


def test_scores_are_means_over_images_of_each_part(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    truth = [
        [NAMES[0], "1 4", "Public"],
        [NAMES[1], "1 1000000", "Public"],  # a mean over pixels would be 0.99999...
        [NAMES[2], "1 3", "Private"],
        [NAMES[3], "1 4", "Private"],
        [NAMES[4], "", "Private"],
        [NAMES[5], "1 4", "Ignored"],
    ]
    submission = [
        [NAMES[0], "3 4"],  # 2 * 2 / (4 + 4) = 1/2
        [NAMES[1], "1 1000000"],  # 1
        [NAMES[2], "3 3"],  # 2 * 1 / (3 + 3) = 1/3
        [NAMES[3], ""],  # 0
        [NAMES[4], ""],  # both empty: 1
        [NAMES[5], "5 4"],  # does not count
    ]
    assert scored(tmp_path, capsys, truth, submission) == "public 0.75000  private 0.44444  images 5"


def test_the_order_of_rows_and_images_that_are_not_scored_do_not_matter(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    truth = [[NAMES[0], "1 4", "Public"], [NAMES[1], "9 4", "Private"]]
    submission = [[NAMES[2], "7 7"], [NAMES[1], "9 4"], [NAMES[0], "3 4"]]
    assert scored(tmp_path, capsys, truth, submission) == "public 0.50000  private 1.00000  images 2"


def test_a_missing_image_is_a_problem_that_names_it(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    truth = [[name, CAR, "Private"] for name in NAMES]
    with pytest.raises(Problem, match=rf"lacks 2 images .*{NAMES[2]}"):
        scored(tmp_path, capsys, truth, [[name, CAR] for name in (*NAMES[:2], *NAMES[4:])])


def test_an_image_that_is_there_twice_is_a_problem(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    truth = [[NAMES[0], CAR, "Private"]]
    with pytest.raises(Problem, match=rf"line 3: the image {NAMES[0]} stands there twice"):
        scored(tmp_path, capsys, truth, [[NAMES[0], CAR], [NAMES[0], CAR]])


def test_a_row_that_is_no_mask_is_a_problem_that_names_its_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    truth = [[name, CAR, "Private"] for name in NAMES[:2]]
    with pytest.raises(Problem, match=r"run\.csv\.gz, line 3: 3 numbers"):
        scored(tmp_path, capsys, truth, [[NAMES[0], CAR], [NAMES[1], "1 2 3"]])


def test_a_missing_solution_is_a_problem(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"no .*solution\.csv"):
        score.main(save(tmp_path / "run.csv", good_rows()), tmp_path / "solution.csv")
