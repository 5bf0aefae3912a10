"""`make bench-predict`: the usual way works as it is known to, and both see the same images."""
import gzip
import json
import pathlib
import zipfile

import numpy as np
import pytest
import torch
from submission_rows import check

from benchmarks import predict, straightforward, submission
from pipeline import carvana
from pipeline.masks import rle
from pipeline.model.factory import build
from pipeline.runtime.problem import Problem


def test_the_usual_encoders_agree_with_ours_where_they_are_right() -> None:
    mask = np.random.default_rng(0).random((20, 30)) < 0.3
    mask[0, 0] = mask[-1, -1] = False
    assert straightforward.encode(mask) == straightforward.encode_without_corners(mask) == rle.encode(mask)
    mask[0, 0] = mask[-1, -1] = True
    assert straightforward.encode(mask) == rle.encode(mask) != straightforward.encode_without_corners(mask)


def test_the_names_are_those_of_a_competition() -> None:
    names = submission.test_names(40)
    assert len(set(names)) == 40 and all(carvana.CARVANA.pattern(".jpg").fullmatch(name) for name in names)


def test_masks_are_unpacked_from_bits_over_and_over() -> None:
    masks = np.random.default_rng(0).random((2, *submission.SHAPE)) < 0.5
    cycle = submission.cycle_masks(np.stack([np.packbits(mask) for mask in masks]))
    for expected in (*masks, *masks):
        np.testing.assert_array_equal(next(cycle), expected)


def test_the_submission_is_checked_and_scored(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    mask = np.zeros(submission.SHAPE, dtype=bool)
    mask[500:900, 300:1600] = True
    np.save(tmp_path / "masks.npy", np.packbits(mask)[None])
    monkeypatch.setattr(submission, "ROWS", 5)
    submission.main(tmp_path / "masks.npy", tmp_path)
    score_line, figures = capsys.readouterr().out.splitlines()
    assert score_line == "public none  private 1.00000  images 5"
    assert set(json.loads(figures)) > {"write_100064_s", "write_peak_mb", "check_100064_s"}


@pytest.mark.parametrize("depth", [2, 4])  # a grid at 1/8 has 160x240 cells: a multiple of 8 pixels, and not of 32
def test_the_usual_way_writes_a_submission_of_the_same_form(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, depth: int
) -> None:
    jpegs = predict.test_set(tmp_path, demo_folder, images=17)
    assert len(jpegs) == 17 and len(zipfile.ZipFile(tmp_path / "competition/test.zip").namelist()) == 17
    assert jpegs[16].read_bytes() == jpegs[0].read_bytes() != jpegs[1].read_bytes()  # a demo car has 16 images
    torch.manual_seed(0)
    network = build(arch="unet", width=4, depth=depth, patch=2, encoder="", encoder_weights=None).eval()
    straightforward.predict(network, 8, jpegs[:2], tmp_path, threshold_u8=0)
    text = gzip.decompress((tmp_path / "submission.csv.gz").read_bytes()).decode()
    assert text == f"img,rle_mask\n{jpegs[0].name},1 2455040\n{jpegs[1].name},1 2455040\n"
    with pytest.raises(Problem, match="of their images on average"):
        check(tmp_path / "submission.csv.gz", [path.name for path in jpegs[:2]])


def test_what_was_not_measured_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    predict.print_row("images/s", 6.0, 2.0)
    predict.print_row("busy", None)
    with_ratio, without = capsys.readouterr().out.splitlines()
    assert with_ratio.split() == ["images/s", "6", "2", "3.00"] and without.split() == ["busy", "-"]
