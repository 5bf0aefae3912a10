"""Masks that may be wrong are left out of training or replaced, and a resumed run notices another table."""
import pathlib
import re

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import carvana
from pipeline.__main__ import main
from pipeline.carvana import CARVANA
from pipeline.data import relabel
from pipeline.data.competition import CsvMasks
from pipeline.data.loader import TrainingDataset
from pipeline.model import checkpoint
from pipeline.runtime.problem import Problem

NAMES = ["00000000000a_01.jpg", "00000000000a_02.jpg", "00000000000b_01.jpg"]
SHAPE = (carvana.HEIGHT_PX, carvana.WIDTH_PX)


# --- the tables -------------------------------------------------------------------------------------


def test_listed_images_are_left_out_in_order(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "suspects.csv"
    path.write_text("img,score\n00000000000a_02.jpg,0.5\n00000000000c_09.jpg,0.1\n")
    assert relabel.without(NAMES, str(path), "carvana") == [NAMES[0], NAMES[2]]
    assert relabel.without(NAMES, None, "carvana") == NAMES


def test_the_summary_counts_left_out_and_relabelled_images() -> None:
    table = pd.DataFrame({"img": NAMES[:1], "rle_mask": ["1 1"]})
    masks = CsvMasks(table, "mine.csv", CARVANA)
    assert relabel.relabel_summary(NAMES[:1], NAMES[2:], NAMES, masks) == ", 1 left out, 1 with masks of data.relabel"
    assert relabel.relabel_summary(NAMES[:2], NAMES[2:], NAMES, None) == ""


def test_an_empty_table_leaves_nothing_out(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "suspects.csv"
    path.write_text("img,rle_mask\n")
    assert relabel.without(NAMES, str(path), "carvana") == NAMES
    masks = relabel.read_relabelled(NAMES, str(path), "carvana")
    assert masks is not None and masks.names == []


def test_masks_of_the_table_replace_those_of_training_images_only(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "suspects.csv"
    path.write_text("img,rle_mask\n00000000000a_02.jpg,1 3\n00000000000c_09.jpg,5 5\n")
    masks = relabel.read_relabelled(NAMES, str(path), "carvana")
    assert masks is not None and masks.names == [NAMES[1]] and masks.runs(NAMES[1]).tolist() == [[0, 3]]
    assert relabel.read_relabelled(NAMES, None, "carvana") is None
    assert relabel.fingerprint(masks) == "00000000000a_02.jpg 1 3" and relabel.fingerprint(None) == ""


@pytest.mark.parametrize("text, sentence", [
    ("img,score\n00000000000a_02.jpg,1\n", "has no column rle_mask"),
    ("img,rle_mask\n00000000000a_02.jpg,1 x\n", "row 00000000000a_02.jpg: 'x' is not a whole number"),
    ("img,rle_mask\nsomewhere,1 3\n", "'somewhere' is not an image's name"),
    (None, r"data.relabel is .*suspects.csv, but there is no such file; `make report` writes one"),
])  # fmt: skip
def test_a_wrong_table_is_a_problem(tmp_path: pathlib.Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "suspects.csv"
    if text:
        path.write_text(text)
    with pytest.raises(Problem, match=sentence):
        relabel.read_relabelled(NAMES, str(path), "carvana")


def test_a_training_image_is_read_with_its_replaced_mask(demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    cars = CARVANA.open_dataset(demo_folder)
    names = cars.names[:2]
    path = tmp_path / "suspects.csv"
    path.write_text(f"img,rle_mask\n{names[1]},1 {SHAPE[0] * SHAPE[1]}\n")
    relabelled = relabel.read_relabelled(names, str(path), "carvana")
    dataset = TrainingDataset(cars, names, 8, lambda *things: things[:2], 0, False, relabelled)
    np.testing.assert_array_equal(dataset.images.decode(0)[1], cars.target(names[0], 8))
    assert (dataset.images.decode(1)[1] == 255).all()


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
    torch.set_num_threads(1)  # this network is too small for two
    (tmp_path / "tiny.yaml").write_text(CONFIG)

    def start(run: str, *overrides: str) -> int:
        flags = ["--config", "tiny.yaml", "--data", str(demo_folder), "--run", run]
        return main(["folds", *flags]) or main(["train", *flags, *(["--set", *overrides] if overrides else [])])

    yield start
    torch.set_num_threads(threads)


def test_training_leaves_out_or_relabels_and_a_resume_notices_another_table(
    train, demo_folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    assert train("plain") == 0
    output = capsys.readouterr().out
    assert re.search(r"32 \w+ at 1/8, 32 held out", output)
    last_line = output.strip().splitlines()[-1]
    assert re.search(r"Dice 0\..* 0\.5 \(best threshold 0\..*minutes", last_line)
    assert "`make validate threshold report RUN=plain`" in last_line

    folds = pathlib.Path("runs/plain/folds.csv").read_text().splitlines()[1:]
    fold_of_car = {line.split(",")[0]: int(line.split(",")[2]) for line in folds}
    names = CARVANA.open_images(demo_folder, "train").names
    table = pathlib.Path("suspects.csv")
    held_out = [name for name in names if fold_of_car[carvana.car_of(name)] == 0]
    table.write_text("\n".join(["img,rle_mask", *(f"{name},1 2000000" for name in names[:40]), ""]))
    excluded = len(set(names[:40]) - set(held_out))
    assert train("without", "data.exclude=suspects.csv") == 0
    assert re.search(rf"{32 - excluded} \w+ at 1/8, 32 held out", capsys.readouterr().out)

    assert train("other", "data.relabel=suspects.csv") == 0
    assert re.search(r"32 \w+ at 1/8, 32 held out", capsys.readouterr().out)
    weights = [checkpoint.load(pathlib.Path(f"runs/{run}/fold0/last.pt"), ("network",))["network"]
               for run in ("plain", "other")]  # fmt: skip
    assert any(not torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())

    assert train("other", "data.relabel=suspects.csv") == 0  # the same table: trained already
    capsys.readouterr()
    table.write_text(table.read_text().replace(",1 2000000", ",1 1000000"))
    assert train("other", "data.relabel=suspects.csv") == 1
    assert "runs/other/fold0" in capsys.readouterr().err
    assert train("plain", "data.relabel=suspects.csv") == 1
    assert "data.relabel: None -> suspects.csv" in capsys.readouterr().err
