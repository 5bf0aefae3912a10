"""Predictions that are stored come back as they were, and a damaged file is a problem that names it."""
import pathlib
import zipfile

import numpy as np
import pytest
import torch

from pipeline.inference.ensemble import Ensemble, Member
from pipeline.inference.evaluate import evaluate_histograms
from pipeline.inference.oof import OofStore, oof_writer, open_oof_store, png, read_oof_histograms
from pipeline.inference.tta import TTA_SETS
from pipeline.runtime.files import sha256
from pipeline.runtime.problem import Problem
from tests.test_inference import HEIGHT, WIDTH, Red, red_images, smooth

NAMES = ["00000000000a_01.jpg", "00000000000a_02.jpg", "00000000000b_01.jpg"]


def random_probability(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (7, 9), dtype=np.uint8)


def write_predictions(path: pathlib.Path, names: list[str]) -> pathlib.Path:
    with oof_writer(path) as store:
        for seed, name in enumerate(names):
            store(name, png(random_probability(seed)))
    return path


@pytest.fixture
def archive(tmp_path: pathlib.Path) -> pathlib.Path:
    return write_predictions(tmp_path / "oof" / "fold0.zip", NAMES)


def test_what_is_stored_comes_back(archive: pathlib.Path) -> None:
    store = OofStore(archive)
    for seed, name in enumerate(NAMES):
        np.testing.assert_array_equal(store.read(name), random_probability(seed))


def test_names_with_dots_are_not_confused(tmp_path: pathlib.Path) -> None:
    names = ["scene.01", "scene.02"]
    store = OofStore(write_predictions(tmp_path / "fold0.zip", names))
    for seed, name in enumerate(names):
        np.testing.assert_array_equal(store.read(name), random_probability(seed))


def test_the_same_images_are_the_same_bytes(archive: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert write_predictions(tmp_path / "again.zip", NAMES).read_bytes() == archive.read_bytes()


def test_an_interrupted_writer_leaves_the_previous_zip(archive: pathlib.Path) -> None:
    before = archive.read_bytes()
    with pytest.raises(KeyboardInterrupt), oof_writer(archive) as store:
        store(NAMES[0], png(random_probability(7)))
        raise KeyboardInterrupt
    assert archive.read_bytes() == before and [path.name for path in archive.parent.iterdir()] == ["fold0.zip"]


def test_a_missing_or_damaged_zip_is_a_problem(archive: pathlib.Path) -> None:
    with pytest.raises(Problem, match="There is no .*fold1.zip; run `make validate`"):
        OofStore(archive.with_name("fold1.zip"))
    with pytest.raises(Problem, match="lacks 00000000000c_01.png"):
        OofStore(archive).read("00000000000c_01.jpg")
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        data[file.getinfo("00000000000a_02.png").header_offset + 80] ^= 1
    archive.write_bytes(data)
    np.testing.assert_array_equal(OofStore(archive).read(NAMES[0]), random_probability(0))
    with pytest.raises(Problem, match=r"fold0.zip is damaged \(Bad CRC.*make validate"):
        OofStore(archive).read(NAMES[1])
    archive.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(Problem, match="is damaged"):
        OofStore(archive)


def test_a_zip_of_other_predictions_is_a_problem_and_so_is_an_npz_that_names_none(archive: pathlib.Path) -> None:
    path = archive.with_name("fold0.npz")
    arrays = {"names": NAMES, "histograms": np.ones((3, 2, 256), np.int32), "checkpoint_sha256": "a"}
    np.savez(path, **arrays, predictions_sha256=sha256(archive), predicted_with="predict.tta none")
    oof = read_oof_histograms(path)
    assert (oof.names, oof.predictions_sha256, oof.predicted_with) == (NAMES, sha256(archive), "predict.tta none")
    np.testing.assert_array_equal(open_oof_store(oof, archive).read(NAMES[2]), random_probability(2))
    write_predictions(archive, NAMES[:2])
    with pytest.raises(Problem, match="fold0.zip does not belong to the .npz"):
        open_oof_store(oof, archive)
    np.savez(path, **arrays)
    with pytest.raises(Problem, match="fold0.npz is damaged .*predictions_sha256"):
        read_oof_histograms(path)


def test_storing_changes_no_histogram_and_stores_the_mean_on_the_grid(archive: pathlib.Path) -> None:
    prob_NHW = torch.cat([smooth(), smooth()[:1] * 0.5])
    ensemble = Ensemble([Member(Red(), 4, TTA_SETS["none"], 1.0)], HEIGHT, WIDTH)
    masks = {name: np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.3 for seed, name in enumerate(NAMES)}
    batches = [{4: image_NHWC} for image_NHWC in red_images(prob_NHW).split(2)]
    with oof_writer(archive) as store:
        stored = evaluate_histograms(ensemble.predict_to_store, batches, NAMES, masks.__getitem__, store)
    plain = evaluate_histograms(ensemble, batches, NAMES, masks.__getitem__)
    np.testing.assert_array_equal(stored, plain)
    grids = np.stack([OofStore(archive).read(name) for name in NAMES])
    np.testing.assert_array_equal(grids, (prob_NHW * 255).round().numpy())
