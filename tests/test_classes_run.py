"""Whole runs on plain folders of drawn images: several classes and one, interrupted and resumed, and README's steps."""
import json
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from plain_folder import CLASSES, draw

from pipeline.__main__ import main
from pipeline.masks import confusion
from pipeline.masks.colours import palette
from pipeline.model import checkpoint
from pipeline.model.ema import Ema
from pipeline.runtime.files import sha256

REPOSITORY = pathlib.Path(__file__).parent.parent
CONFIG = """
data: {kind: folder, folder: mine, height: 64, width: 96, scale: 1, folds: 2, workers: 0, cache: true}
model: {width: 8, depth: 2}
train: {epochs: 6, batch_size: 2, learning_rate: 1e-2, ema_decay: 0.9}
"""
SEVERAL = CONFIG + "task: {kind: multiclass, classes: [ground, disc, square], class_weights: [1, 2, 2]}\n"
ONE = CONFIG.replace("folder: mine", "folder: discs")
STEPS = 18  # of 6 images, 2 a step, 6 times


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("workplace"))
        draw(pathlib.Path("mine"))
        draw(pathlib.Path("discs"), binary=True)
        pathlib.Path("several.yaml").write_text(SEVERAL)
        pathlib.Path("one.yaml").write_text(ONE)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def several() -> pathlib.Path:
    return whole_run("several")


@pytest.fixture(scope="module")
def one() -> pathlib.Path:
    return whole_run("one")


def whole_run(name: str) -> pathlib.Path:
    """`runs/NAME` with fold 0 trained and validated."""
    for stage in ("folds", "train", "validate"):
        assert main([stage, "--config", f"{name}.yaml", "--fold", "0"]) == 0
    return pathlib.Path("runs") / name


def read_log(run: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "fold0" / "log.jsonl").read_text().splitlines()]


def only_line(capsys: pytest.CaptureFixture) -> str:
    """Return the problem that a stage printed; earlier lines come from fixtures that trained."""
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"[a-z]+: \S.*\.$", line)
    return line


# --- several classes ------------------------------------------------------------------------------


def test_folds_csv_has_one_row_an_image_and_divides_no_group(several: pathlib.Path) -> None:
    header, *lines = (several / "folds.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    assert header == "image,group,fold" and len(rows) == 12
    assert len({(group, fold) for _, group, fold in rows}) == len({group for _, group, _ in rows}) == 4


def test_the_log_has_the_scores_of_classes_and_the_contracts_keys(several: pathlib.Path) -> None:
    rows = read_log(several)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert {"epoch", "train_loss", "images_per_s", "lr", "seconds"} < set(row)
        assert row["val_dice"] is None and row["val_dice_threshold"] is None
        assert 0 <= row["val_mean_iou"] <= row["val_mean_dice"] <= 1
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] / 2


def test_the_network_is_far_better_than_one_class_everywhere_and_the_best_epoch_is_saved(several: pathlib.Path) -> None:
    ious = [row["val_mean_iou"] for row in read_log(several)]
    assert max(ious) > 0.55  # of the ground alone: 0.3
    best = checkpoint.load(several / "fold0" / "best.pt", ("log", "classes", "full_size"))
    assert best["log"][-1]["val_mean_iou"] == max(ious)
    assert (best["classes"], best["full_size"]) == (list(CLASSES), [64, 96])


def test_validation_saves_what_the_report_needs_and_repeats_the_score_of_training(
    several: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    args = ("--config", "several.yaml", "--fold", "0", "--set", "predict.tta=none", "predict.batch_size=4")
    assert main(["validate", *args]) == 0
    assert "no held-out pixel" not in capsys.readouterr().out
    with np.load(several / "oof" / "fold0.npz") as file:
        arrays = dict(file)
    assert arrays["classes"].tolist() == list(CLASSES) and len(arrays["names"]) == 6
    per_image = confusion.Counts(*(arrays[key] for key in confusion.Counts._fields))
    total = confusion.counts(arrays["matrix"])
    for pixels_of_image, pixels in zip(per_image, total):
        np.testing.assert_array_equal(pixels_of_image.sum(0), pixels)
    mean_iou = confusion.mean_of_classes(confusion.iou(total))
    assert mean_iou == pytest.approx(max(row["val_mean_iou"] for row in read_log(several)), abs=1e-4)
    assert total.in_truth.sum() < 6 * 64 * 96  # the margins have no label


def test_a_class_that_no_image_shows_is_named_and_left_out_of_the_mean(
    several: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    args = ["--config", "several.yaml", "--run", "four", "--set", "task.classes=[a,b,c,d]", "task.class_weights=[]"]
    assert main(["folds", *args]) == 0 and main(["train", *args]) == 0
    capsys.readouterr()
    assert main(["validate", *args]) == 0
    assert "fold 0: no held-out pixel has 1 of the 4 classes: d.\n" in capsys.readouterr().out
    with np.load("runs/four/oof/fold0.npz") as file:
        counts = confusion.Counts(*(file[key].sum(0) for key in confusion.Counts._fields))
    assert counts.in_truth[3] == 0 < counts.in_truth[:3].min()
    expected = np.nanmean(confusion.iou(counts)[:3])
    if counts.predicted[3] == 0:
        assert np.isnan(confusion.iou(counts)[3])
    else:  # predicted pixels of a class that is not there are wrong
        expected *= 3 / 4
    assert confusion.mean_of_classes(confusion.iou(counts)) == pytest.approx(expected)


@pytest.mark.parametrize("run, other", [("new", []), ("new_uncached", ["--set", "data.cache=false"])])
def test_an_interrupted_and_resumed_training_ends_with_the_same_bits(
    several: pathlib.Path, run: str, other: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    update = Ema.update

    def update_and_interrupt(self: Ema, step: int) -> None:
        update(self, step)
        if step == 7:
            signal.raise_signal(signal.SIGINT)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    new, args = pathlib.Path("runs") / run, ["--config", "several.yaml", "--run", run]
    assert main(["folds", *args]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Ema, "update", update_and_interrupt)
        assert main(["train", *args]) == 1
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert f"Stopped after step 8 of {STEPS}" in only_line(capsys)
    assert main(["train", *args, *other]) == 0
    for name, keys in {"best.pt": ("network",), "last.pt": ("network", "average")}.items():
        whole, resumed = (checkpoint.load(run / "fold0" / name, keys) for run in (several, new))
        for key in keys:
            assert all(torch.equal(tensor, resumed[key][tensor_name]) for tensor_name, tensor in whole[key].items())
    if not other:  # and the hash that oof, predictions and ledger name
        assert sha256(several / "fold0/best.pt") == sha256(new / "fold0/best.pt")
    timeless = ("train_loss", "val_mean_iou", "val_pixel_accuracy", "lr")
    logs = [[[row[key] for key in timeless] for row in read_log(run)] for run in (several, new)]
    assert logs[0] == logs[1]


def test_other_classes_are_another_run(several: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "--config", "several.yaml", "--set", "task.class_weights=[1,1,1]"]) == 1
    assert "task.class_weights: [1.0, 2.0, 2.0] -> [1.0, 1.0, 1.0]" in only_line(capsys)


def test_the_largest_batch_is_found(several: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("pipeline.training.find_batch.MAX_BATCH_TRIED", {"cpu": 3, "cuda": 3})
    assert main(["find-batch", "--config", "several.yaml"]) == 0
    assert capsys.readouterr().out.startswith("3 images at once")


def test_two_processes_evaluate_as_one(several: pathlib.Path) -> None:
    for run, run_args in {"alone": [], "two": ["--gpus", "2"]}.items():
        assert main(["folds", "--config", "several.yaml", "--run", run]) == 0
        command = [sys.executable, "-m", "pipeline", "train", "--config", "several.yaml", "--run", run, *run_args]
        environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2", "HOME": "."}
        args = ["--set", "train.epochs=1", "task.class_weights=[]"]
        done = subprocess.run([*command, *args], env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    alone, two = (read_log(pathlib.Path("runs") / run)[0] for run in ("alone", "two"))
    for key in ("train_loss", "val_mean_iou", "val_pixel_accuracy"):
        assert two[key] == pytest.approx(alone[key], rel=2e-3)


@pytest.mark.parametrize(
    "stage, args, message",
    [
        ("threshold", [], "A threshold is for one object and its background, but runs/several/fold0"),
        ("predict", [], "A submission is for one object and its background, but runs/several/fold0"),
        ("blend", ["--runs", "several", "again"], "A blend is for one object and its background"),
    ],
)
def test_what_ends_at_kaggle_is_not_for_several_classes(
    several: pathlib.Path, capsys: pytest.CaptureFixture, stage: str, args: list[str], message: str
) -> None:
    if args:
        pathlib.Path("runs/again").symlink_to("several")
    assert main([stage, "--config", "several.yaml", *args]) == 1
    assert message in only_line(capsys)


@pytest.mark.parametrize(
    "stage, args, message",
    [
        ("threshold", [], "runs/moved/oof/fold0.npz is of several classes"),
        ("predict", [], "A submission is for one object and its background, but runs/moved/fold0/best.pt"),
        ("blend", ["--runs", "moved", "moved2"], "A blend is for one object and its background, but runs/moved/fold0"),
    ],
)
def test_the_checkpoint_itself_names_its_several_classes(
    several: pathlib.Path, capsys: pytest.CaptureFixture, stage: str, args: list[str], message: str
) -> None:
    """Where the config.yaml beside it is gone, as when only weights were copied."""
    for name in ("moved", "moved2"):
        shutil.copytree(several, pathlib.Path("runs") / name, dirs_exist_ok=True)
        (pathlib.Path("runs") / name / "fold0/config.yaml").unlink()
        (pathlib.Path("runs") / name / "threshold.json").write_text('{"threshold": 0.5}')
    assert main([stage, "--config", "several.yaml", "--run", "moved", *args]) == 1
    assert message in only_line(capsys)


# --- one object -----------------------------------------------------------------------------------


def test_one_object_has_a_dice_a_threshold_and_a_transparent_background(
    one: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    rows = read_log(one)
    assert max(row["val_dice"] for row in rows) > 0.7 and "val_mean_iou" not in rows[-1]
    assert main(["threshold", "--config", "one.yaml"]) == 0
    content = json.loads((one / "threshold.json").read_text())
    assert content["images"] == 6 and content["oof_dice_cross_fitted"] <= content["oof_dice"]
    assert main(["report", "--config", "one.yaml"]) == 0
    assert f"{content['oof_dice']:.5f}" in (one / "report" / "index.html").read_text()
    assert main(["cutout", "--config", "one.yaml", "--out", "out", "--image", "discs/images/p00.jpg"]) == 0
    with Image.open("out/p00.png") as result, Image.open("discs/images/p00.jpg") as image:
        assert result.mode == "RGBA" and result.size == image.size
    capsys.readouterr()
    assert main(["predict", "--config", "one.yaml"]) == 1
    assert "A submission is for one competition's images" in only_line(capsys)


# --- docs/your-data.md ------------------------------------------------------------------------------


def test_the_steps_of_the_guide_work_on_a_folder_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """Each make line as make would run it; of the config only classes, size and cost are changed, as the text says."""
    guide = (REPOSITORY / "docs/your-data.md").read_text()
    lines = re.findall(r"```bash\n(.*?)```", guide, flags=re.DOTALL)[0].splitlines()
    copy, *makes = [shlex.split(line, comments=True) for line in lines]
    assert copy[0] == "cp" and len(makes) == 4 and all(args[0] == "make" for args in makes)

    monkeypatch.chdir(tmp_path)
    folder = draw(tmp_path / "data" / "mine", images=15)
    (tmp_path / "image.jpg").write_bytes((folder / "images" / "p00.jpg").read_bytes())
    tree = yaml.safe_load((REPOSITORY / copy[1]).read_text())
    tree["data"] |= {"height": 64, "width": 96, "workers": 0}
    tree["task"]["classes"] = list(CLASSES)
    tree["model"] |= {"width": 8, "depth": 2}
    tree["train"] |= {"epochs": 8, "batch_size": 4, "learning_rate": 1e-2}
    (tmp_path / "configs").mkdir()
    (tmp_path / copy[2]).write_text(yaml.safe_dump(tree))
    for args in makes:
        done = subprocess.run(
            [*args, "-n", "PY=py"], cwd=REPOSITORY, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            python, *rest = shlex.split(line)
            assert [python, *rest[:2]] == ["py", "-m", "pipeline"]
            assert main(rest[2:]) == 0
    assert read_log(tmp_path / "runs/mine")[-1]["val_mean_iou"] > 0.4
    page = (tmp_path / "runs/mine/report/index.html").read_text()
    assert 'class="matrix"' in page and all(f"</i>{name}</td>" in page for name in CLASSES)
    with Image.open("out/image.png") as classes:
        assert classes.mode == "P" and set(np.unique(np.asarray(classes))) <= {0, 1, 2}
        assert classes.getpalette()[:9] == palette(3).ravel().tolist()
