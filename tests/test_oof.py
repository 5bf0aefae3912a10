"""Probabilities that are kept come back as they were, and a damaged zip says so."""
import pathlib
import zipfile

import numpy as np
import pytest
import torch

from pipeline.inference.evaluate import evaluate_histograms
from pipeline.inference.oof import OofStore, oof_writer, png
from pipeline.inference.ensemble import Ensemble, Member
from pipeline.inference.tta import ANGLES
from pipeline.runtime.problem import Problem
from tests.test_inference import HEIGHT, WIDTH, Red, red_pictures, smooth

NAMES = ["00000000000a_01.jpg", "00000000000a_02.jpg", "00000000000b_01.jpg"]


def a_probability(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (7, 9), dtype=np.uint8)


@pytest.fixture
def kept(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "oof" / "fold0.zip"
    with oof_writer(path) as keep:
        for seed, name in enumerate(NAMES):
            keep(name, png(a_probability(seed)))
    return path


def test_what_is_kept_comes_back(kept: pathlib.Path) -> None:
    archive = OofStore(kept)
    for seed, name in enumerate(NAMES):
        np.testing.assert_array_equal(archive.read(name), a_probability(seed))


def test_names_with_dots_are_kept_apart(tmp_path: pathlib.Path) -> None:
    names = ["scene.01", "scene.02"]
    with oof_writer(tmp_path / "fold0.zip") as keep:
        for seed, name in enumerate(names):
            keep(name, png(a_probability(seed)))
    archive = OofStore(tmp_path / "fold0.zip")
    for seed, name in enumerate(names):
        np.testing.assert_array_equal(archive.read(name), a_probability(seed))


def test_the_same_pictures_are_the_same_bytes(kept: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with oof_writer(tmp_path / "again.zip") as keep:
        for seed, name in enumerate(NAMES):
            keep(name, png(a_probability(seed)))
    assert (tmp_path / "again.zip").read_bytes() == kept.read_bytes()


def test_a_stop_on_the_way_leaves_the_zip_of_before(kept: pathlib.Path) -> None:
    before = kept.read_bytes()
    with pytest.raises(KeyboardInterrupt), oof_writer(kept) as keep:
        keep(NAMES[0], png(a_probability(7)))
        raise KeyboardInterrupt
    assert kept.read_bytes() == before and [path.name for path in kept.parent.iterdir()] == ["fold0.zip"]


def test_what_is_missing_or_damaged_is_a_sentence(kept: pathlib.Path) -> None:
    with pytest.raises(Problem, match="There is no .*fold1.zip; run `make validate`"):
        OofStore(kept.with_name("fold1.zip"))
    with pytest.raises(Problem, match="lacks 00000000000c_01.png"):
        OofStore(kept).read("00000000000c_01.jpg")
    data = bytearray(kept.read_bytes())
    with zipfile.ZipFile(kept) as archive:
        data[archive.getinfo("00000000000a_02.png").header_offset + 80] ^= 1
    kept.write_bytes(data)
    np.testing.assert_array_equal(OofStore(kept).read(NAMES[0]), a_probability(0))
    with pytest.raises(Problem, match=r"fold0.zip is damaged \(Bad CRC.*make validate"):
        OofStore(kept).read(NAMES[1])
    kept.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(Problem, match="is damaged"):
        OofStore(kept)


def test_keeping_changes_no_histogram_and_keeps_the_mean_before_it_is_enlarged(kept: pathlib.Path) -> None:
    shares = torch.cat([smooth(), smooth()[:1] * 0.5])
    ensemble = Ensemble([Member(Red(), 4, ANGLES["none"], 1.0)], HEIGHT, WIDTH)
    masks = {name: np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.3 for seed, name in enumerate(NAMES)}
    batches = red_pictures(shares).split(2)
    with oof_writer(kept) as keep:
        found = evaluate_histograms(ensemble.with_grid, batches, NAMES, masks.__getitem__, keep)
    without = evaluate_histograms(lambda image_NHWC: ensemble({4: image_NHWC}), batches, NAMES, masks.__getitem__)
    np.testing.assert_array_equal(found, without)
    read = np.stack([OofStore(kept).read(name) for name in NAMES])
    np.testing.assert_array_equal(read, (shares * 255).round().numpy())
