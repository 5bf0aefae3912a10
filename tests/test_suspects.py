"""Suspects in training: left out or put right, judged all the same, noticed by a resume; pictures for TensorBoard."""
import pathlib

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pipeline import carvana
from pipeline.__main__ import main
from pipeline.data import competition, relabel
from pipeline.data.loader import TrainingDataset
from pipeline.training.previews import preview
from pipeline.masks.colours import ADDED, MISSED
from pipeline.model import checkpoint
from pipeline.runtime.problem import Problem
from tests.test_inference import Red

NAMES = ["00000000000a_01.jpg", "00000000000a_02.jpg", "00000000000b_01.jpg"]
SHAPE = (carvana.HEIGHT_PX, carvana.WIDTH_PX)


# --- the tables -------------------------------------------------------------------------------------


def test_listed_pictures_are_left_out_in_order(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "suspects.csv"
    path.write_text("img,score\n00000000000a_02.jpg,0.5\n00000000000c_09.jpg,0.1\n")
    assert relabel.without(NAMES, str(path)) == [NAMES[0], NAMES[2]]
    assert relabel.without(NAMES, None) == NAMES


def test_what_is_left_out_and_put_right_is_counted() -> None:
    table = pd.DataFrame({"img": NAMES[:1], "rle_mask": ["1 1"]})
    masks = competition.CsvMasks(table, where="mine.csv")
    assert relabel.relabel_summary(NAMES[:1], NAMES[2:], NAMES, masks) == ", 1 left out, 1 with masks of data.relabel"
    assert relabel.relabel_summary(NAMES[:2], NAMES[2:], NAMES, None) == ""


def test_no_suspect_is_nothing_to_leave_out(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "suspects.csv"
    path.write_text("img,rle_mask\n")
    assert relabel.without(NAMES, str(path)) == NAMES
    found = relabel.read_relabelled(NAMES, str(path))
    assert found is not None and found.names == []


def test_masks_of_the_table_are_taken_for_training_pictures_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "suspects.csv"
    path.write_text("img,rle_mask\n00000000000a_02.jpg,1 3\n00000000000c_09.jpg,5 5\n")
    found = relabel.read_relabelled(NAMES, str(path))
    assert found is not None and found.names == [NAMES[1]] and found.runs(NAMES[1]).tolist() == [[0, 3]]
    assert relabel.read_relabelled(NAMES, None) is None
    assert relabel.fingerprint(found) == "00000000000a_02.jpg 1 3" and relabel.fingerprint(None) == ""


@pytest.mark.parametrize("text, said", [
    ("img,score\n00000000000a_02.jpg,1\n", "has no column rle_mask"),
    ("img,rle_mask\n00000000000a_02.jpg,1 x\n", "row 00000000000a_02.jpg: 'x' is not a whole number"),
    ("img,rle_mask\nsomewhere,1 3\n", "'somewhere' is no name of a picture"),
    (None, r"data.relabel is .*suspects.csv, but there is no such file; `make report` writes one"),
])  # fmt: skip
def test_a_table_that_is_none_is_told(tmp_path: pathlib.Path, text: str | None, said: str) -> None:
    path = tmp_path / "suspects.csv"
    if text:
        path.write_text(text)
    with pytest.raises(Problem, match=said):
        relabel.read_relabelled(NAMES, str(path))


def test_a_training_picture_comes_with_the_other_mask(demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    dataset = competition.Carvana(demo_folder, hq=False)
    names = dataset.names[:2]
    path = tmp_path / "suspects.csv"
    path.write_text(f"img,rle_mask\n{names[1]},1 {SHAPE[0] * SHAPE[1]}\n")
    righted = relabel.read_relabelled(names, str(path))
    dataset = TrainingDataset(dataset, names, 8, lambda *things: things[:2], 0, False, righted)
    np.testing.assert_array_equal(dataset.decode(0)[1], dataset.target(names[0], 8))
    assert (dataset.decode(1)[1] == 255).all()


# --- training ---------------------------------------------------------------------------------------

CONFIG = """
data: {scale: 8, folds: 2, workers: 0}
model: {width: 4, depth: 1, patch: 4}
train: {epochs: 1, batch_size: 4, learning_rate: 1e-2}
"""


@pytest.fixture
def train(demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """`train(RUN, "a.b=1")` -> exit code."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a network this small is no work for two
    (tmp_path / "tiny.yaml").write_text(CONFIG)

    def start(run: str, *words: str) -> int:
        flags = ["--config", "tiny.yaml", "--data", str(demo_folder), "--run", run]
        return main(["folds", *flags]) or main(["train", *flags, *(["--set", *words] if words else [])])

    yield start
    torch.set_num_threads(threads)


def log_of(run: str) -> list[str]:
    return pathlib.Path(f"runs/{run}/fold0/log.jsonl").read_text().splitlines()


def test_training_leaves_out_or_relabels_and_a_resume_notices_another_table(
    train, demo_folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    assert train("plain") == 0
    said = capsys.readouterr().out
    assert "32 pictures at 1/8, 32 held out" in said
    last_line = said.strip().splitlines()[-1]
    assert "Dice 0." in last_line and "at the cut 0.5, best is 0." in last_line and "minutes" in last_line
    assert "`make validate threshold report RUN=plain`" in last_line

    folds = pathlib.Path("runs/plain/folds.csv").read_text().splitlines()[1:]
    fold_of_car = {line.split(",")[0]: int(line.split(",")[2]) for line in folds}
    names = competition.ImageSet(demo_folder, "train").names
    table = pathlib.Path("suspects.csv")
    held_out = [name for name in names if fold_of_car[carvana.car_of(name)] == 0]
    table.write_text("\n".join(["img,rle_mask", *(f"{name},1 2000000" for name in names[:40]), ""]))
    excluded = len(set(names[:40]) - set(held_out))
    assert train("without", "data.exclude=suspects.csv") == 0
    assert f"{32 - excluded} pictures at 1/8, 32 held out" in capsys.readouterr().out

    assert train("other", "data.relabel=suspects.csv") == 0
    assert "32 pictures at 1/8, 32 held out" in capsys.readouterr().out
    weights = [checkpoint.load(pathlib.Path(f"runs/{run}/fold0/last.pt"), ("network",))["network"]
               for run in ("plain", "other")]  # fmt: skip
    assert any(not torch.equal(one, weights[1][key]) for key, one in weights[0].items())

    assert train("other", "data.relabel=suspects.csv") == 0  # the same table: trained already
    capsys.readouterr()
    table.write_text(table.read_text().replace(",1 2000000", ",1 1000000"))
    assert train("other", "data.relabel=suspects.csv") == 1
    assert "begun with other pictures or masks" in capsys.readouterr().err
    assert train("plain", "data.relabel=suspects.csv") == 1
    assert "data.relabel: None -> suspects.csv" in capsys.readouterr().err


def test_tensorboard_has_the_numbers_and_the_same_pictures_of_each_epoch(train) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train("plain", "train.epochs=2") == 0
    events = EventAccumulator("runs/plain/fold0/tb")
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train_loss", "val_dice", "images_per_s", "lr"}
    assert len(pictures := events.Tags()["images"]) == 4
    for name in pictures:
        found = events.Images(name)
        assert [one.step for one in found] == [1, 2] and (found[0].height, found[0].width) == (160, 240)


# --- previews ---------------------------------------------------------------------------------------


def test_a_preview_shows_what_was_added_and_missed() -> None:
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, :2, 0] = 200  # sure of the object at the left
    image[..., 1] = 100
    coverage = np.zeros((2, 4), np.uint8)
    coverage[0] = 255
    found = preview(Red(), image, coverage, torch.device("cpu"))
    assert found.dtype == np.uint8 and found.shape == image.shape
    assert (found[0, :2] == (200, 100, 0)).all() and (found[0, 2:] == MISSED).all()
    assert (found[1, :2] == ADDED).all() and (found[1, 2:] == (0, 40, 0)).all()


def test_a_preview_leaves_the_statistics_of_a_network_alone() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, image_NHWC: torch.Tensor) -> torch.Tensor:
            return self.norm(image_NHWC[..., :1].permute(0, 3, 1, 2).float())

    network = Normed()
    preview(network, np.full((4, 4, 3), 50, np.uint8), np.zeros((4, 4), np.uint8), torch.device("cpu"))
    assert network.norm.running_mean.item() == 0 and not network.training
