"""Drawn rooms through the command line: reading as NYU Depth v2, training, validation; learnt, not guessed."""
import json
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks.rooms import best_constant
from pipeline import config
from pipeline.__main__ import main
from pipeline.data.dataset import open_dataset
from pipeline.data.grouping import read_folds, split
from pipeline.masks import confusion
from pipeline.synthetic import write_rooms

CONFIG = """
data: {kind: nyuv2, folder: rooms, scale: 1, folds: 3, workers: 0, cache: true}
task: {kind: multiclass, classes: 13}
augment: {shift: 0.0, zoom: 0.0, rotate_deg: 0.0, hue_deg: 0.0, saturation: 0.0}
model: {arch: unet, width: 16, depth: 3}
train: {optimizer: muon, momentum: 0.95, epochs: 6, batch_size: 4, learning_rate: 1e-2, ema_decay: 0.9,
        validate_every_epochs: 6}
"""
REPOSITORY = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder with 48 tiny images of twelve rooms. One thread: two gain nothing on a network this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("workplace"))
        pathlib.Path("tiny.yaml").write_text(CONFIG)
        write_rooms.main(pathlib.Path("rooms"), scenes=12, height=48, width=64, seed=0, splits=False)
        yield
    torch.set_num_threads(threads)


def stage(name: str, *arguments: str) -> int:
    return main([name, "--config", "tiny.yaml", *arguments])


@pytest.mark.parametrize("inputs, workers", [("rgb", 0), ("rgbd", 2)])
def test_rooms_that_were_never_seen_are_labelled_far_better_than_by_a_constant(
    inputs: str, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--run", inputs, f"--set=data.inputs={inputs}", f"--set=data.workers={workers}")
    assert stage("folds", *arguments) == 0
    assert stage("train", "--fold", "0", *arguments) == 0
    assert stage("validate", "--run", inputs) == 0

    settings = config.load(pathlib.Path("tiny.yaml"), [f"data.inputs={inputs}"])
    dataset = open_dataset(settings.data, settings.task, pathlib.Path("rooms"))
    table = read_folds(pathlib.Path(f"runs/{inputs}/folds.csv"))
    assert (table.groupby("group")["fold"].nunique() == 1).all()
    _, held_out = split(table, 0, dataset.names, dataset.group_key)
    constant, _ = best_constant(dataset, held_out)
    last = json.loads(pathlib.Path(f"runs/{inputs}/fold0/log.jsonl").read_text().splitlines()[-1])
    assert last["val_mean_iou"] > 3 * constant > 0
    assert last["val_pixel_accuracy"] > 0.6

    oof = np.load(f"runs/{inputs}/oof/fold0.npz")
    assert oof["names"].tolist() == held_out
    for name, pixels in zip(held_out, oof["in_truth"]):
        truth = dataset.truth(name)
        np.testing.assert_array_equal(pixels, np.bincount(truth[truth != confusion.ignored(truth.dtype)], minlength=13))
    np.testing.assert_array_equal(oof["matrix"].sum(1), oof["in_truth"].sum(0))

    capsys.readouterr()
    assert stage("train", "--fold", "0", *arguments, "--set=task.classes=40") == 1
    assert "task.classes: 13 -> 40" in capsys.readouterr().err


def test_all_894_names_as_classes_train_too() -> None:
    tiny = ("data.scale=4", "data.folds=12", "model.width=4", "train.epochs=1", "train.batch_size=44")
    arguments = ("--run", "names", *(f"--set={override}" for override in ("task.classes=894", *tiny)))
    assert stage("folds", *arguments) == 0
    assert stage("train", "--fold", "0", *arguments) == 0


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["task.classes=21"], "task.classes is 21, but rooms/nyu_depth_v2_labeled.mat has 13 or 40 classes"),
        (["task.kind=binary", "task.classes=[]"], "data.kind nyuv2 has classes: set task.kind multiclass"),
        (["data.folder=elsewhere"], "There is no elsewhere/nyu_depth_v2_labeled.mat"),
        (["data.folds=13"], "data.folds is 13, but the "),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_one_sentence(
    overrides: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage("folds", "--run", "wrong", *(f"--set={override}" for override in overrides)) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_the_configs_of_the_dataset_are_valid() -> None:
    for name in ("nyuv2", "rooms"):
        settings = config.load(REPOSITORY / f"configs/{name}.yaml")
        assert (settings.data.kind, settings.task.kind, settings.task.count) == ("nyuv2", "multiclass", 13)
