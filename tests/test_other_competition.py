"""Another Kaggle competition is three files: facts (`salt.py`), a line in COMPETITIONS, and a config."""
import csv
import gzip
import json
import pathlib
import zipfile
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from salt import SALT

from pipeline.__main__ import main
from pipeline.config import load
from pipeline.data import dataset, relabel
from pipeline.kaggle import ledger, submit
from pipeline.masks import rle
from pipeline.paths import Run
from pipeline.runtime.device import pick_device
from pipeline.runtime.problem import Problem
from pipeline.submission.plan import make_plan
from pipeline.submission.scoring import score
from pipeline.synthetic.fake_kaggle import FakeKaggle

CONFIG = """
data: {kind: salt, folder: data/salt, scale: 2, folds: 2, workers: 0, cache: true}
model: {width: 8, depth: 2}
train: {epochs: 2, batch_size: 2, learning_rate: 3e-2, ema_decay: 0.7}
predict: {tta: none}
"""
RUN = Run("salt")
TRAIN, TEST = (["%010x" % (start + 7919 * number) for number in range(count)] for start, count in ((0, 24), (2**36, 8)))
EMPTY = 8  # one image of so many shows no object


def draw(number: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """An image (90, 101, 3) of a bright, lying ellipse on a dark ground, and its mask."""
    rng = np.random.default_rng(number)
    mask = np.zeros((SALT.height_px, SALT.width_px), np.uint8)
    if number % EMPTY != EMPTY - 1:
        centre = (int(rng.integers(30, 70)), int(rng.integers(20, 70)))
        cv2.ellipse(mask, centre, (int(rng.integers(18, 30)), int(rng.integers(8, 14))), 15, 0, 360, 1, -1)
    grey = 60 + 120 * mask[..., None] + rng.integers(0, 40, (*mask.shape, 1))
    return np.repeat(grey, 3, axis=2).astype(np.uint8), mask.astype(bool)


def write_competition(folder: pathlib.Path) -> None:
    """What Kaggle would serve, with plain tables, and the solution that it keeps."""
    folder.mkdir()
    tables = {name: ["id,rle_mask"] for name in ("train.csv", "sample_submission.csv")}
    tables["solution.csv"] = ["id,rle_mask,Usage"]
    with (
        zipfile.ZipFile(folder / "train.zip", "w") as train, zipfile.ZipFile(folder / "test.zip", "w") as test,
        zipfile.ZipFile(folder / "masks.zip", "w") as masks,
    ):  # fmt: skip
        for number, name in enumerate(TRAIN + TEST):
            image, mask = draw(number)
            column_major = rle.encode(mask.T)
            archive = train if name in TRAIN else test
            archive.writestr(f"{name}.png", cv2.imencode(".png", image)[1].tobytes())
            if name in TRAIN:
                masks.writestr(f"{name}.png", cv2.imencode(".png", mask * np.uint8(255))[1].tobytes())
                tables["train.csv"].append(f"{name},{column_major}")
            else:
                tables["sample_submission.csv"].append(f"{name},1 1")
                tables["solution.csv"].append(f"{name},{column_major},{'Public' if number % 3 else 'Private'}")
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """The folder of a competition after all stages, downloaded from a fake Kaggle and submitted to it."""
    place = tmp_path_factory.mktemp("other")
    write_competition(place / "served")
    for folder in ("work/configs", "work/data", "inbox", "home"):
        (place / folder).mkdir(parents=True)
    (place / "work/configs/salt.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch, FakeKaggle(place / "served", place / "inbox", SALT) as server:
        patch.setitem(dataset.COMPETITIONS, "salt", "salt:SALT")
        patch.chdir(place / "work")
        patch.setenv("HOME", str(place / "home"))
        for name, text in server.environment().items():
            patch.setenv(name, text)
        patch.setattr(submit, "FIRST_POLL_S", 0.01)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as fast for so small a network, and much faster on a busy machine
        for stage in ("download", "folds", "train", "validate", "threshold", "predict", "check", "submit", "report"):
            assert main([stage, "--config", "configs/salt.yaml", *(["--fold", "all"] if stage == "train" else [])]) == 0
        yield place / "served"
        torch.set_num_threads(threads)


def read_submission() -> dict[str, str]:
    with gzip.open(RUN.submission, "rt", newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == SALT.submission_header
    return dict(rows)


def decode(text: str) -> NDArray[np.bool_]:
    return rle.decode(text, SALT.width_px, SALT.height_px).T


def test_download_takes_tables_as_kaggle_serves_them_packed_or_not(finished: pathlib.Path, capsys) -> None:
    served = {path.name for path in finished.iterdir()} - {"solution.csv"}
    assert served <= {path.name for path in pathlib.Path("data/salt").iterdir()}
    assert main(["download", "--config", "configs/salt.yaml"]) == 0
    assert "all files are there" in capsys.readouterr().out


def test_each_image_is_a_group_of_its_own(finished: pathlib.Path) -> None:
    lines = RUN.folds.read_text().splitlines()
    assert lines[0] == "image,group,fold" and [line.partition(",")[0] for line in lines[1:]] == sorted(TRAIN)
    assert json.loads(RUN.threshold.read_text())["images"] == len(TRAIN)


def test_run_lengths_of_the_submission_count_down_the_columns(finished: pathlib.Path) -> None:
    submission = read_submission()
    assert list(submission) == TEST
    plan = make_plan(RUN, [RUN], [], [], pick_device())
    images_NHWC = torch.tensor(np.stack([plan.images.read(name, 2) for name in TEST]))
    for name, mask in zip(TEST, plan.ensemble({2: images_NHWC}).numpy() >= plan.threshold_u8):
        assert np.count_nonzero(decode(submission[name]) != mask) <= 3, name  # another batch may round differently
        assert rle.encode(mask) != submission[name] or not mask.any()


def test_the_score_is_that_of_the_masks_and_row_major_ones_score_worse(
    finished: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    submission = read_submission()
    dice: dict[str, list[float]] = {"Public": [], "Private": []}
    for number, name in enumerate(TEST, start=len(TRAIN)):
        truth, predicted = draw(number)[1], decode(submission[name])
        total = truth.sum() + predicted.sum()
        dice["Public" if number % 3 else "Private"].append(2 * (truth & predicted).sum() / total if total else 1.0)
    public, private = (float(np.mean(values)) for values in dice.values())
    assert main(["score", "--config", "configs/salt.yaml", "--solution", str(finished / "solution.csv")]) == 0
    expected = f"public {public:.5f}  private {private:.5f}  images {len(TEST)}"
    assert capsys.readouterr().out.splitlines()[-1] == expected and public > 0.4
    path = tmp_path / "row_major.csv"
    path.write_text("id,rle_mask\n" + "".join(f"{name},{rle.encode(decode(submission[name]))}\n" for name in TEST))
    row_major = score(path, finished / "solution.csv", SALT)
    assert row_major.public is not None and row_major.public < public - 0.2


def test_kaggle_gives_the_same_score(finished: pathlib.Path) -> None:
    (row,) = ledger.read(pathlib.Path("submissions/ledger.csv"))
    expected = score(RUN.submission, finished / "solution.csv", SALT)
    assert row.status == "complete"
    assert (row.public, row.private) == pytest.approx((expected.public, expected.private), abs=1e-5)


def test_the_report_shows_the_submission_and_suspects_that_training_can_read(finished: pathlib.Path) -> None:
    page, path = RUN.report_page.read_text(), RUN.report / "suspects.csv"
    assert f"{len(TEST)} test images" in page and "Area by angle" not in page
    assert path.read_text().startswith("id,score,fraction,px,top,left,bottom,right,rle_mask\n")
    path.write_text(f"id,rle_mask\n{TRAIN[0]},1 2\n")
    assert relabel.without(TRAIN, str(path), "salt") == TRAIN[1:]
    masks = relabel.read_relabelled(TRAIN, str(path), "salt")
    assert masks is not None and masks.read(TRAIN[0])[:2, 0].all() and masks.read(TRAIN[0]).sum() == 2


def test_a_kind_that_no_table_has_is_a_problem_that_lists_them(finished: pathlib.Path) -> None:
    with pytest.raises(Problem, match="data.kind is 'pepper': it must be one of carvana, salt, nyuv2, folder"):
        load(pathlib.Path("configs/salt.yaml"), ["data.kind=pepper"])
