"""Pseudo-labels: which predicted masks join the training, how often, and never the truth."""
import csv
import gzip
import json
import pathlib
import shutil

import numpy as np
import pandas as pd
import plain_folder
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import Pipeline, only_line, with_set

from pipeline import carvana
from pipeline.__main__ import main
from pipeline.carvana import CARVANA
from pipeline.config import Augment, Settings
from pipeline.data import augment
from pipeline.data.image_folder import ImageFolder
from pipeline.data.images import coverage
from pipeline.data.loader import BatchSchedule, Sampling, TrainingDataset
from pipeline.data.pseudo import (
    PseudoLabels, WithPseudoLabels, read_pseudo_folder, read_pseudo_labels, unsure_table
)  # fmt: skip
from pipeline.inference.loading import read_pseudo_labels as read_hashes
from pipeline.inference.probability import unsure_fractions
from pipeline.kaggle import ledger, submit
from pipeline.kaggle.ledger import Row
from pipeline.kaggle.reproduce import script_lines
from pipeline.masks import rle
from pipeline.model import checkpoint
from pipeline.paths import Run
from pipeline.runtime.files import sha256
from pipeline.runtime.problem import Problem
from pipeline.submission import provenance

HEADER = ",".join(carvana.CARVANA.submission_header)


# --- how often -------------------------------------------------------------------------------------------------------


@given(always=st.integers(0, 30), sometimes=st.integers(0, 30), fraction=st.floats(0.01, 1), seed=st.integers(0, 9))
def test_an_epoch_visits_all_labelled_images_and_a_fraction_of_the_others(
    always: int, sometimes: int, fraction: float, seed: int
) -> None:
    sampling = Sampling(always, sometimes, fraction)
    order = sampling.order(np.random.default_rng(seed))
    assert len(order) == len(set(order)) == sampling.per_epoch == always + round(fraction * sometimes)
    assert set(range(always)) <= set(order) <= set(range(always + sometimes))


def test_each_epoch_draws_other_pseudo_labelled_images_until_all_were_seen() -> None:
    schedule = BatchSchedule(Sampling(4, 8, 0.5), 2, epochs=12, seed=0)
    seen_in = [{index for batch in schedule.epoch(epoch) for _, index in batch} for epoch in range(12)]
    assert {len(seen) for seen in seen_in} == {8} and len({frozenset(seen) for seen in seen_in}) > 1
    assert set().union(*seen_in) == set(range(12))
    resumed = BatchSchedule(Sampling(4, 8, 0.5), 2, epochs=12, seed=0, first_step=17)
    assert list(resumed) == list(schedule)[17:]


def test_without_pseudo_labels_the_batches_are_those_of_before() -> None:
    assert list(BatchSchedule(Sampling(11), 3, epochs=3, seed=5)) == list(BatchSchedule(11, 3, epochs=3, seed=5))


# --- which masks -----------------------------------------------------------------------------------------------------


def write_submission(path: pathlib.Path, text_of: dict[str, str]) -> pathlib.Path:
    path.write_text(HEADER + "\n" + "".join(f"{name},{text}\n" for name, text in text_of.items()))
    return path


@pytest.fixture
def text_of(demo_folder: pathlib.Path) -> dict[str, str]:
    """A run of its own for each test image, in the middle of the image."""
    names = carvana.CARVANA.open_images(demo_folder, "test").names
    return {name: f"{640 * carvana.WIDTH_PX + 500} {100 + number}" for number, name in enumerate(names)}


def read(path: pathlib.Path, folder: pathlib.Path, fraction: float = 1.0) -> PseudoLabels:
    return read_pseudo_labels(path, fraction, 0.5, carvana.CARVANA, folder, hq=False)


@pytest.mark.parametrize("scale", [1, 8])
def test_the_target_of_a_test_image_is_its_predicted_mask(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, text_of: dict[str, str], scale: int
) -> None:
    pseudo = read(write_submission(tmp_path / "x.csv", text_of), demo_folder)
    dataset = carvana.CARVANA.open_dataset(demo_folder)
    both, name = WithPseudoLabels(dataset, pseudo), pseudo.names[3]
    mask = rle.decode(text_of[name], carvana.HEIGHT_PX, carvana.WIDTH_PX)
    assert np.array_equal(both.target(name, scale), coverage(mask, scale)) and mask.sum() > 100
    assert np.array_equal(both.read(name, 8), pseudo.source.read(name, 8))
    labelled = dataset.names[5]
    assert np.array_equal(both.target(labelled, scale), dataset.target(labelled, scale))
    assert np.array_equal(both.read(labelled, 8), dataset.read(labelled, 8))


def test_an_empty_mask_is_not_trained_on(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, text_of: dict[str, str]
) -> None:
    first, *others = text_of
    pseudo = read(write_submission(tmp_path / "x.csv", text_of | {first: ""}), demo_folder)
    assert pseudo.names == others and pseudo.summary == ", 15 of 15 pseudo-labelled with weight 0.5"


def test_the_surest_masks_come_first(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, text_of: dict[str, str]
) -> None:
    path = write_submission(tmp_path / "x.csv", text_of)
    with pytest.raises(Problem, match="pseudo_fraction is 0.25, but .*x.unsure.csv does not tell"):
        read(path, demo_folder, fraction=0.25)
    names = list(text_of)
    rows = [f"{name},{(number * 7 % 16) / 100}\n" for number, name in enumerate(names)]
    unsure_table(path).write_text("img,unsure_fraction\n" + "".join(rows))
    pseudo = read(path, demo_folder, fraction=0.25)
    assert pseudo.names == sorted(names[number] for number in range(16) if number * 7 % 16 < 4)
    assert pseudo.table["used"].tolist() == [True] * 4 + [False] * 12
    assert pseudo.table["unsure_fraction"].is_monotonic_increasing


def test_the_table_lies_beside_the_submission() -> None:
    assert unsure_table(pathlib.Path("submissions/a.csv.gz")) == pathlib.Path("submissions/a.unsure.csv")


def test_training_images_are_no_pseudo_labels(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, text_of: dict[str, str]
) -> None:
    training = carvana.CARVANA.open_images(demo_folder, "train").names[0]
    with pytest.raises(Problem, match=f"x.csv: {training} is a training image"):
        read(write_submission(tmp_path / "x.csv", text_of | {training: "1 1"}), demo_folder)


def test_the_truth_is_no_prediction(demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with open(demo_folder / "solution.csv") as file:
        truth = {row["img"]: row["rle_mask"] for row in csv.DictReader(file)}
    with pytest.raises(Problem, match="x.csv is no prediction: 16 of its masks are those of .*solution.csv"):
        read(write_submission(tmp_path / "x.csv", truth), demo_folder)


@pytest.mark.parametrize(
    "text, reason", [("5 x", "'x' is not a whole number"), ("5", "1 numbers"), ("9 9 9 9", "begins before")]
)
def test_a_mask_that_cannot_be_read_is_a_problem(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, text_of: dict[str, str], text: str, reason: str
) -> None:
    first = next(iter(text_of))
    with pytest.raises(Problem, match=f"image {first}: .*{reason}"):
        read(write_submission(tmp_path / "x.csv", text_of | {first: text}), demo_folder)


def test_the_columns_may_have_another_order_and_an_image_one_row(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, text_of: dict[str, str]
) -> None:
    path = tmp_path / "x.csv"
    rows = [f"{text},{name}\n" for name, text in text_of.items()]
    path.write_text("rle_mask,img\n" + "".join(rows))
    assert read(path, demo_folder).names == sorted(text_of)
    path.write_text("rle_mask,img\n" + "".join(rows + rows[:1]))
    with pytest.raises(Problem, match=f"x.csv, line 18: the image {next(iter(text_of))} is there twice"):
        read(path, demo_folder)


def test_an_image_that_is_not_there_is_a_problem(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, text_of: dict[str, str]
) -> None:
    with pytest.raises(Problem, match="cafe_01.jpg is not an image of"):
        read(write_submission(tmp_path / "x.csv", text_of | {"cafe_01.jpg": "1 1"}), demo_folder)


@pytest.mark.parametrize("value", ["", "0,001", "x"])
def test_a_table_that_holds_no_numbers_is_a_problem(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, text_of: dict[str, str], value: str
) -> None:
    path = write_submission(tmp_path / "x.csv", text_of)
    unsure_table(path).write_text("img,unsure_fraction\n" + "".join(f'{name},"{value}"\n' for name in text_of))
    with pytest.raises(Problem, match="x.unsure.csv: unsure_fraction must be numbers"):
        read(path, demo_folder)


def test_a_submission_of_empty_masks_has_nothing_to_train_on(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, text_of: dict[str, str]
) -> None:
    with pytest.raises(Problem, match="x.csv has no mask to train on"):
        read(write_submission(tmp_path / "x.csv", dict.fromkeys(text_of, "")), demo_folder)


def test_only_images_of_every_epoch_are_cached(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, text_of: dict[str, str]
) -> None:
    pseudo = read(write_submission(tmp_path / "x.csv", text_of), demo_folder)
    dataset = CARVANA.open_dataset(demo_folder)
    transform = augment.build(**Augment().model_dump(), of_classes=False)
    names, sampling = [*dataset.names[:4], *pseudo.names], Sampling(4, len(pseudo.names), 0.5)
    images = TrainingDataset(WithPseudoLabels(dataset, pseudo), names, 8, transform, 0, cache=True, sampling=sampling)
    assert images.images.cached is not None and len(images.images.cached[0]) == 4
    for index in (0, 3, 4, 19):
        first, again = images[1, index], images[1, index]
        assert all(np.array_equal(one, other) for one, other in zip(first, again)) and first[0].any()


def test_a_pixel_is_unsure_between_a_fiftieth_and_its_complement() -> None:
    prob_u8 = torch.tensor([[[0, 5, 6, 100]], [[249, 250, 255, 128]]], dtype=torch.uint8)
    assert unsure_fractions(prob_u8) == [0.5, 0.5]


# --- a folder --------------------------------------------------------------------------------------------------------


@pytest.fixture
def training(tmp_path: pathlib.Path) -> ImageFolder:
    """Twelve discs with their masks."""
    return ImageFolder(plain_folder.draw(tmp_path / "discs", binary=True), (), 255, 64, 96)


@pytest.fixture
def more(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of eight others, whose names the twelve have as well, in groups of their own."""
    folder = plain_folder.draw(tmp_path / "more", images=8, seed=1, binary=True)
    groups = folder / "groups.csv"
    groups.write_text(groups.read_text().replace(",group ", ",other group "))
    return folder


def test_images_of_a_folder_have_names_of_their_own(training: ImageFolder, more: pathlib.Path) -> None:
    pseudo = read_pseudo_folder(more, 1.0, 0.5, training)
    assert pseudo.names == [f"pseudo/p{number:02d}" for number in range(8)] and pseudo.sha256 == ""
    both, other = WithPseudoLabels(training, pseudo), ImageFolder(more, (), 255, 64, 96)
    for scale in (1, 4):
        assert np.array_equal(both.read("pseudo/p03", scale), other.read("p03", scale))
        assert np.array_equal(both.target("pseudo/p03", scale), other.target("p03", scale))
        assert np.array_equal(both.target("p03", scale), training.target("p03", scale))
    assert both.inspect("pseudo/p03") == other.inspect("p03") != both.inspect("p03") == training.inspect("p03")
    assert both.stamp("pseudo/p03") == other.stamp("p03")


def test_the_surest_masks_of_a_folder_come_first(training: ImageFolder, more: pathlib.Path) -> None:
    with pytest.raises(Problem, match="pseudo_fraction is 0.25, but .*masks/unsure.csv does not .*make cutout MASK=1"):
        read_pseudo_folder(more, 0.25, 1.0, training)
    rows = [f"p{number:02d},{0.5 if number < 5 else number / 1000}\n" for number in range(8)]
    (more / "masks/unsure.csv").write_text("image,unsure_fraction\n" + "".join(rows))
    assert read_pseudo_folder(more, 0.25, 1.0, training).names == ["pseudo/p05", "pseudo/p06"]


def test_a_training_image_is_no_pseudo_label(training: ImageFolder, more: pathlib.Path) -> None:
    shutil.copy(training.image_of["p05"], more / "images/p01.jpg")
    with pytest.raises(Problem, match="p01.jpg is the training image .*discs/images/p05.jpg"):
        read_pseudo_folder(more, 1.0, 1.0, training)
    with pytest.raises(Problem, match="p00.jpg is the training image"):
        read_pseudo_folder(pathlib.Path(training.where), 1.0, 1.0, training)


def test_an_image_of_a_training_group_is_no_pseudo_label(training: ImageFolder, more: pathlib.Path) -> None:
    groups = more / "groups.csv"
    groups.write_text(groups.read_text().replace("p07.jpg,other group", "p07.jpg,group"))
    with pytest.raises(Problem, match="the image p07 is of the group group 2, which training images are of, too"):
        read_pseudo_folder(more, 1.0, 1.0, training)
    groups.unlink()
    assert len(read_pseudo_folder(more, 1.0, 1.0, training).names) == 8


def test_a_folder_that_is_none_is_a_problem(training: ImageFolder, more: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match="there is no folder .*nowhere/images; .*make cutout MASK=1"):
        read_pseudo_folder(tmp_path / "nowhere", 1.0, 1.0, training)
    (more / "masks/p02.png").unlink()
    with pytest.raises(Problem, match="masks lacks 1 mask; the first is that of p02.jpg"):
        read_pseudo_folder(more, 1.0, 1.0, training)
    (more / "groups.csv").unlink()
    for name in ("images", "masks"):
        (more / name).rename(more / f"all {name}")
        (more / name).mkdir()
        (more / f"all {name}").rename(more / name / "train")
    (more / "masks/train/p02.png").write_bytes((more / "masks/train/p03.png").read_bytes())
    shutil.copytree(more / "images/train", more / "images/val")
    shutil.copytree(more / "masks/train", more / "masks/val")
    with pytest.raises(Problem, match="has an official split, but pseudo-labels are in no fold"):
        read_pseudo_folder(more, 1.0, 1.0, training)


def test_images_of_another_size_are_a_problem_where_none_is_resized(tmp_path: pathlib.Path, more: pathlib.Path) -> None:
    training = ImageFolder(plain_folder.draw(tmp_path / "discs", images=1, binary=True), (), 255, None, None)
    with pytest.raises(Problem, match="set data.height and data.width"):
        read_pseudo_folder(more, 1.0, 1.0, training)


def test_a_run_on_a_folder_trains_on_masks_that_another_run_cut_out(
    tiny_place: None, training: ImageFolder, more: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    pathlib.Path("discs.yaml").write_text("""
data: {kind: folder, height: 64, width: 96, scale: 4, folds: 2, workers: 0}
model: {width: 8, depth: 2}
train: {epochs: 1, batch_size: 2, learning_rate: 1e-2, ema_decay: 0.9}
refine: {scale: 1, tile_px: 32, margin_px: 4, width: 4, depth: 2, batch_size: 2, tiles_per_image: 2, epochs: 1}
""")
    common = ["--config", "discs.yaml", "--data", training.where, "--fold", "0"]
    shutil.rmtree(more / "masks")
    cutout = ["--image", str(more / "images"), "--out", str(more / "masks"), "--mask"]
    assert [main(["folds", *common]), main(["train", *common]), main(["cutout", *common, *cutout])] == [0] * 3
    assert pd.read_csv(more / "masks/unsure.csv")["image"].tolist() == [f"p{number:02d}" for number in range(8)]

    second = [*common, "--run", "second", "--pseudo", str(more), *with_set("data.pseudo_fraction=0.5")]
    assert main(["folds", *second[:-4], *second[-2:]]) == 0
    capsys.readouterr()
    assert main(["train", *second]) == 0
    out, run = capsys.readouterr().out, Run("second")
    assert out.count("4 of 8 pseudo-labelled with weight 1") == 2  # the network and its refiner
    digest = checkpoint.load(run.fold(0).best, keys=("pseudo_sha256",))["pseudo_sha256"]
    settings = Settings.model_validate(checkpoint.load(run.fold(0).best, keys=("settings",))["settings"])
    assert read_hashes({run.fold(0).best: settings}) == {digest: str(more)} and len(digest) == 64
    inspected = json.loads(run.inspected.read_text())["images"]
    used = min(name for name in inspected if name.startswith("pseudo/"))
    (more / f"masks/{used.removeprefix('pseudo/')}.png").write_bytes((training.mask_of["p00"]).read_bytes())
    assert main(["train", *second]) == 1
    assert f"more/masks/{used.removeprefix('pseudo/')}.png: the mask is" in only_line(capsys)  # p00 has another size


def test_two_contents_of_one_path_are_named_by_that_path(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.model_validate({"data": {"pseudo": "submissions/part of it.csv.gz"}})
    trained = {}
    for name, letter in {"a": "1", "b b": "2", "c": "2"}.items():
        trained[Run(name).fold(0).best] = settings
        checkpoint.save(Run(name).fold(0).best, {"pseudo_sha256": letter * 64})
    hashes = read_hashes(trained)
    assert hashes == dict.fromkeys(("1" * 64, "2" * 64), "submissions/part of it.csv.gz")
    origin = provenance.Provenance(sha256="0" * 64, threshold=0.5, pseudo_labels=hashes)
    facts = submit.describe(origin).split(" pseudo-labels ")
    assert facts[1:] == ["part of it.csv.gz 1111111", "part of it.csv.gz 2222222"]


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_trains_on_what_another_run_predicted(
    pipeline: Pipeline, trained: None, demo_folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """Predicting tells how unsure each mask is; a run on its masks holds out what it would hold out without them."""
    assert pipeline("validate", "--fold", "0") == pipeline("threshold") == pipeline("predict", "--fold", "0") == 0
    submission = pathlib.Path("submissions/tiny.csv.gz")
    unsure = pd.read_csv(unsure_table(submission))
    assert unsure["img"].tolist() == carvana.CARVANA.read_sample(demo_folder)
    assert unsure["unsure_fraction"].between(0.001, 0.9).all()

    settings = with_set("data.pseudo_fraction=0.5", "data.pseudo_weight=0.25", "train.epochs=1")
    train = ["--run", "pseudo", "--fold", "0", "--pseudo", str(submission), *settings]
    assert pipeline("folds", "--run", "pseudo") == 0
    capsys.readouterr()
    assert pipeline("train", *train) == 0
    assert "40 images at 1/8, 32 held out, 8 of 16 pseudo-labelled with weight 0.25" in capsys.readouterr().out
    run = Run("pseudo")
    state = checkpoint.load(run.fold(0).best, keys=("pseudo_sha256", "settings"))
    assert state["pseudo_sha256"] == sha256(submission) and state["settings"]["data"]["pseudo"] == str(submission)
    used = pd.read_csv(run.fold(0).pseudo)
    assert used["used"].sum() == 8 and used["unsure_fraction"].is_monotonic_increasing

    before = submission.read_bytes()
    submission.write_bytes(gzip.compress(gzip.decompress(before), mtime=1))  # as of a prediction in between
    fold_1 = [{"0": "1"}.get(argument, argument) for argument in train]
    assert pipeline("train", *fold_1) == 1
    assert "runs/pseudo/fold0/best.pt was trained on other pseudo-labels than " in only_line(capsys)
    submission.write_bytes(before)

    other = pathlib.Path("submissions/other.csv")
    name = carvana.CARVANA.read_sample(demo_folder)[0]
    write_submission(other, {name: "1000 10"})
    train[train.index("--pseudo") + 1] = str(other)
    assert pipeline("train", *train[:-6], *with_set("train.epochs=1")) == 1
    assert "data.pseudo" in only_line(capsys)


def test_the_parent_is_named_wherever_its_child_is(
    pipeline: Pipeline, trained: None, demo_folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """Of the run above: in the provenance, the ledger, the message, the script of `reproduce` and the report."""
    common = ("--run", "pseudo", "--fold", "0")
    assert [pipeline(stage, *common) for stage in ("validate", "threshold", "predict", "report")] == [0] * 4
    parent, run = pathlib.Path("submissions/tiny.csv.gz"), Run("pseudo")
    origin = provenance.read(run.provenance)
    assert origin.pseudo_labels == {sha256(parent): str(parent)}
    assert provenance.read(Run("tiny").provenance).pseudo_labels == {}
    assert f"pseudo-labels tiny.csv.gz {sha256(parent)[:7]}" in submit.describe(origin)
    assert f"pseudo-labels {parent}, sha256 {sha256(parent)[:12]}" in run.report_page.read_text()
    facts = {"time": "2026-11-27T12:00:00Z", "file": "x.csv.gz", "message": "#tag"}
    origins = [provenance.read(each.provenance) for each in (Run("tiny"), run)]
    rows = [Row(**each.model_dump(exclude=ledger.NOT_IN_LEDGER), **facts) for each in origins]
    for row in rows:
        ledger.put(tmp_path / "ledger.csv", row)
    assert ledger.read(tmp_path / "ledger.csv") == rows
    (line,) = [line for line in script_lines(rows[1], 2, None, rows) if "pseudo-labels" in line]
    assert f"{parent}, sha256 {sha256(parent)}; `make reproduce ROW=1` makes it again" in line
    capsys.readouterr()
    assert pipeline("train", "--run", "tiny", "--fold", "1", "--pseudo", str(parent)) == 1
    assert "which the prediction of the run tiny would replace" in only_line(capsys)


def test_a_bad_test_image_is_found_before_the_first_step(
    demo_copy: pathlib.Path, pipeline: Pipeline, trained: None, capsys: pytest.CaptureFixture
) -> None:
    """Of the run above, too. What is read of the test images is remembered, and other pixels are no resume."""
    submission, name = "submissions/tiny.csv.gz", carvana.CARVANA.read_sample(demo_copy)[3]
    images = carvana.CARVANA.open_images(demo_copy, "test")
    data = images.files.read(name)
    (demo_copy / "test").mkdir(exist_ok=True)
    (demo_copy / "test" / name).write_bytes(data[: len(data) // 2])
    settings = with_set("train.epochs=1")
    assert pipeline("folds", "--run", "bad") == 0
    bad = ["--run", "bad", "--fold", "0", "--pseudo", submission, *settings]
    capsys.readouterr()
    assert Pipeline(demo_copy)("train", *bad) == 1
    assert name in only_line(capsys) and not Run("bad").fold(0).log.exists()

    (demo_copy / "test" / name).write_bytes(data)
    pseudo = ["--run", "pseudo", "--fold", "0", "--pseudo", submission]
    fractions = with_set("data.pseudo_fraction=0.5", "data.pseudo_weight=0.25", "train.epochs=1")
    digests = checkpoint.load(Run("pseudo").fold(0).last, keys=("digests",))["digests"]
    used = pd.read_csv(Run("pseudo").fold(0).pseudo).query("used")["image"].tolist()
    assert set(used) < digests.keys()
    other = next(each for each in images.names if each != used[0])
    (demo_copy / "test" / used[0]).write_bytes(images.files.read(other))
    assert Pipeline(demo_copy)("train", *pseudo, *fractions) == 1
    assert f"({used[0]})" in only_line(capsys)
