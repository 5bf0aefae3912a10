"""One whole run on a tiny demo competition, through the command line; and runs that are stopped and continued."""
import csv
import gzip
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import carvana
from pipeline.__main__ import main
from pipeline.data.competition import read_table
from pipeline.files import locked, sha256
from pipeline.leaderboard import ledger
from pipeline.masks import dice, rle
from pipeline.model import checkpoint
from pipeline.model.build import Segmenter
from pipeline.model.ema import Ema
from pipeline.problem import Problem
from pipeline.stages import demo

EPOCHS, STEPS_PER_EPOCH = 3, 8  # of 32 pictures, 4 a step
CONFIG = """
data: {scale: 8, folds: 2, workers: 0, cache: true}
model: {width: 16, depth: 2, patch: 2}
train: {epochs: 3, batch_size: 4, learning_rate: 1e-2, ema_decay: 0.9}
"""
REPOSITORY = pathlib.Path(__file__).parent.parent
RUN = pathlib.Path("runs/tiny")
SUBMISSION = pathlib.Path("submissions/tiny.csv.gz")
State = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The folder in which all of these tests work. One thread: a network this small is no work for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("workplace"))
        pathlib.Path("tiny.yaml").write_text(CONFIG)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A test that cuts a run off leaves no handler behind."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def listing(folder: pathlib.Path) -> dict[pathlib.Path, tuple[int, int]]:
    """Size and time of everything in a folder."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


class Pipeline:
    """`pipeline("train", "--fold", "0")` -> exit code."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def __call__(self, stage: str, *words: str) -> int:
        return main([stage, "--config", "tiny.yaml", "--data", str(self.folder), *words])


@pytest.fixture(scope="module")
def pipeline(demo_folder: pathlib.Path) -> Pipeline:
    return Pipeline(demo_folder)


@pytest.fixture(scope="module")
def finished(pipeline: Pipeline) -> dict[str, int]:
    """All stages, one after another; the exit code of each."""
    codes = {"folds": pipeline("folds"), "train": pipeline("train", "--fold", "all")}
    return codes | {stage: pipeline(stage) for stage in ("validate", "threshold", "predict", "check", "score")}


@pytest.fixture
def run_copy(finished: dict[str, int]) -> Iterator[pathlib.Path]:
    """The finished run under another name, `--run copy`, for a test to damage."""
    copy = pathlib.Path(shutil.copytree(RUN, "runs/copy"))
    yield copy
    shutil.rmtree(copy)


@pytest.fixture
def new_run(finished: dict[str, int]) -> Iterator[pathlib.Path]:
    """`--run new`, with folds and nothing else."""
    new = pathlib.Path("runs/new")
    new.mkdir()
    shutil.copy(RUN / "folds.csv", new)
    yield new
    shutil.rmtree(new)


# --- the whole way --------------------------------------------------------------------------------


def test_every_stage_ends_with_0(finished: dict[str, int]) -> None:
    assert set(finished.values()) == {0}


def test_a_run_leaves_the_files_that_later_stages_and_users_rely_on(finished: dict[str, int]) -> None:
    for fold in (0, 1):
        folder = RUN / f"fold{fold}"
        names = {"best.pt", "last.pt", "last.previous.pt", "log.jsonl", "tb", "config.yaml", ".lock"}
        assert names == {path.name for path in folder.iterdir()}
        assert list((folder / "tb").iterdir())
    assert (RUN / "folds.csv").is_file() and (RUN / "threshold.json").is_file() and SUBMISSION.is_file()
    assert not list(pathlib.Path(".").rglob("*.draft"))


def test_folds_csv_has_one_row_a_car(finished: dict[str, int]) -> None:
    lines = (RUN / "folds.csv").read_text().splitlines()
    assert lines[0] == "car_id,make,fold" and len(lines) == 1 + 4
    assert sorted(line[-1] for line in lines[1:]) == ["0", "0", "1", "1"]


def read_log(fold: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]


def test_log_jsonl_has_one_object_an_epoch(finished: dict[str, int]) -> None:
    for fold in (0, 1):
        rows = read_log(RUN / f"fold{fold}")
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        for row in rows:
            assert {"train_loss", "val_dice", "val_dice_cut", "images_per_s", "lr", "seconds"} < set(row)
            assert 0 < row["val_dice"] < 1 and 0 <= row["val_dice_cut"] <= 1
        assert rows[-1]["train_loss"] < rows[0]["train_loss"]
        assert rows[-1]["lr"] < rows[0]["lr"]


def test_threshold_json_holds_a_cut_and_a_dice_that_does_not_flatter_it(finished: dict[str, int]) -> None:
    found = json.loads((RUN / "threshold.json").read_text())
    assert list(found) == ["cut", "oof_dice", "oof_dice_cross_fitted", "images", "predicted_with", "predictions"]
    assert found["predicted_with"] == "predict.tta hflip, data.scale 8"
    assert found["predictions"] == {f"fold{fold}": sha256(RUN / f"oof/fold{fold}.npz") for fold in (0, 1)}
    assert found["images"] == 4 * carvana.VIEWS
    assert 0 <= found["cut"] <= 1
    assert found["oof_dice_cross_fitted"] <= found["oof_dice"] < 1


def oof_dice(run: pathlib.Path, fold: int) -> float:
    """At the cut 0.5."""
    with np.load(run / "oof" / f"fold{fold}.npz") as file:
        return float(dice.dice_at_every_cut(file["histograms"])[:, 128].mean())


def test_validation_finds_the_dice_that_training_saw(pipeline: Pipeline, run_copy: pathlib.Path) -> None:
    words = ("--fold", "0", "--set", "predict.tta=none", "predict.batch_size=5")
    assert pipeline("validate", "--run", "copy", *words) == 0
    best = max(row["val_dice"] for row in read_log(RUN / "fold0"))
    assert oof_dice(run_copy, 0) == pytest.approx(best, abs=1e-5)


def test_each_picture_is_judged_by_the_network_that_never_saw_its_make(finished: dict[str, int]) -> None:
    fold_of_car = dict(line.split(",")[::2] for line in (RUN / "folds.csv").read_text().splitlines()[1:])
    for fold in (0, 1):
        with np.load(RUN / "oof" / f"fold{fold}.npz") as file:
            names = file["names"].tolist()
        assert len(names) == 2 * carvana.VIEWS
        assert {fold_of_car[carvana.car_of(name)] for name in names} == {str(fold)}


def test_the_submission_has_the_rows_of_the_sample_in_its_order(
    finished: dict[str, int], demo_folder: pathlib.Path
) -> None:
    with gzip.open(SUBMISSION, "rt", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["img", "rle_mask"]
    assert [name for name, _ in rows] == read_table(demo_folder, "sample_submission.csv", ("img",))["img"].tolist()
    for _, text in rows:
        assert rle.decode(text, carvana.HEIGHT_PX, carvana.WIDTH_PX).any()


def test_the_score_is_told_in_one_last_line_and_is_no_accident(
    pipeline: Pipeline, finished: dict[str, int], capsys: pytest.CaptureFixture
) -> None:
    assert pipeline("score") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    match = re.fullmatch(r"public (0\.\d{5})  private (0\.\d{5})  images 16", last)
    assert match is not None
    assert float(match[2]) > 0.75  # the same ellipse in every picture reaches 0.72 at best


def test_the_same_run_predicts_the_same_bytes_again(pipeline: Pipeline, finished: dict[str, int]) -> None:
    before = SUBMISSION.read_bytes()
    assert pipeline("predict") == 0
    assert SUBMISSION.read_bytes() == before


def test_the_competition_folder_is_only_read(pipeline: Pipeline, run_copy: pathlib.Path) -> None:
    before = listing(pipeline.folder)
    for path in (run_copy / "fold0").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_words = ("--run", "copy", "--fold", "0")
    one_epoch = ("--set", "train.epochs=1", "train.batch_size=32")
    for stage, words in {"folds": (), "train": one_epoch, "validate": (), "threshold": (), "predict": ()}.items():
        assert pipeline(stage, *run_words, *words) == 0
    assert listing(pipeline.folder) == before


def test_the_demo_goes_through_both_ends_of_kaggle(
    finished: dict[str, int],
    demo_copy: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    stages = []

    def run_here(stage: str, *words: str, environment: dict[str, str]) -> None:
        stages.append(stage)
        with monkeypatch.context() as patch:
            for name, text in environment.items():
                patch.setenv(name, text)
            assert main([stage, *words]) == 0

    monkeypatch.setattr(demo, "run_stage", run_here)
    words = ["--config", "tiny.yaml", "--data", str(demo_copy), "--fold", "all", "--cars", "4", "--test-cars", "1"]
    assert main(["demo", *words]) == 0
    ends = ["download", "submit"]
    assert [stage for stage in stages if stage not in ends] == [
        "demo-data", "folds", "train", "validate", "threshold", "predict", "check", "score"
    ]  # fmt: skip
    assert [stage for stage in stages if stage in ends] == ends
    scores = re.findall(r"^(public \S+  private \S+)  ", capsys.readouterr().out, flags=re.MULTILINE)
    assert len(scores) == 2 and scores[0] == scores[1]  # ours, and what came back
    (row,) = ledger.read(RUN / "ledger.csv")
    assert (row.runs, row.folds, row.status) == (("tiny",), (0, 1), "complete")
    assert not pathlib.Path("submissions/ledger.csv").exists()

    stages.clear()
    assert main(["demo", *words, "--offline"]) == 0
    assert not set(stages) & set(ends)


# --- stopped and continued ------------------------------------------------------------------------


def assert_equal(one: object, other: object) -> None:
    """Nested dicts and lists of tensors and numbers, to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other):
            assert_equal(mine, theirs)
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def assert_same_training(one: pathlib.Path, other: pathlib.Path) -> None:
    for name, keys in {"best.pt": ("network",), "last.pt": ("network", "average", "optimiser", "step")}.items():
        states = [checkpoint.load(fold / name, keys) for fold in (one, other)]
        for key in keys:
            assert_equal(states[0][key], states[1][key])
    timeless = ("epoch", "train_loss", "val_dice", "val_dice_cut", "lr")
    logs = [[[row[key] for key in timeless] for row in read_log(fold)] for fold in (one, other)]
    assert_equal(*logs)


def test_ctrl_c_in_the_middle_of_an_epoch_saves_and_the_rest_ends_with_the_same_weights(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    update = Ema.update

    def update_and_interrupt(self: Ema, step: int) -> None:
        update(self, step)
        if step == STEPS_PER_EPOCH + 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Ema, "update", update_and_interrupt)
        assert pipeline("train", "--run", "new") == 1
    assert "Stopped after step 11 of 24" in capsys.readouterr().err
    assert checkpoint.load(new_run / "fold0" / "last.pt", ("step",))["step"] == 11

    # how pictures are read is free to change in between
    words = ("--set", "data.workers=1", "data.cache=false", "train.checkpoint_minutes=1")
    assert pipeline("train", "--run", "new", *words) == 0
    assert "going on after step 11 of 24" in capsys.readouterr().out
    assert_same_training(new_run / "fold0", RUN / "fold0")


@pytest.mark.parametrize("last_step", [STEPS_PER_EPOCH, EPOCHS * STEPS_PER_EPOCH])
def test_ctrl_c_in_the_last_step_of_an_epoch_judges_it_first(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, last_step: int
) -> None:
    update = Ema.update

    def update_and_interrupt(self: Ema, step: int) -> None:
        update(self, step)
        if step == last_step - 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Ema, "update", update_and_interrupt)
        assert pipeline("train", "--run", "new") == 1
    assert len(read_log(new_run / "fold0")) == last_step // STEPS_PER_EPOCH
    assert pipeline("train", "--run", "new") == 0
    assert_same_training(new_run / "fold0", RUN / "fold0")


def test_a_gradient_that_is_no_number_ends_the_run_before_it_is_saved(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    clip, steps = torch.nn.utils.clip_grad_norm_, iter(range(99))
    spoilt_step = STEPS_PER_EPOCH + 2
    monkeypatch.setattr(
        "torch.nn.utils.clip_grad_norm_", lambda *given: clip(*given) * (torch.inf if next(steps) == spoilt_step else 1)
    )
    assert pipeline("train", "--run", "new") == 1
    line = only_line(capsys)
    assert f"at step {spoilt_step + 1} of 24" in line and "last good checkpoint is runs/new/fold0/last.pt" in line
    assert len(re.findall(carvana.IMAGE_NAME.pattern, line)) == 4  # the pictures of that batch
    assert checkpoint.load(new_run / "fold0" / "last.pt", ("step",))["step"] == STEPS_PER_EPOCH


def test_folds_do_not_change_under_a_network_that_was_trained_on_them(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    before = (run_copy / "folds.csv").read_text()
    assert pipeline("folds", "--run", "copy", "--set", "data.folds=3") == 1
    assert "runs/copy/folds.csv would change" in only_line(capsys)
    assert (run_copy / "folds.csv").read_text() == before


def test_a_batch_larger_than_the_fold_is_a_problem(
    pipeline: Pipeline, new_run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    assert pipeline("train", "--run", "new", "--set", "train.batch_size=999") == 1
    assert "32 pictures to train on" in only_line(capsys)


def test_a_misspelt_setting_is_a_problem_in_later_stages_too(
    pipeline: Pipeline, finished: dict[str, int], capsys: pytest.CaptureFixture
) -> None:
    assert pipeline("predict", "--set", "predict.ttta=none") == 1
    assert "predict.tta" in only_line(capsys)


class Killed(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, save = Ema.update, checkpoint.save
    last_epoch = (EPOCHS - 1) * STEPS_PER_EPOCH

    def killed_before_any_checkpoint(self: Ema, step: int) -> None:
        update(self, step)
        if step == 2:
            raise Killed

    def killed_between_best_and_last(path: pathlib.Path, state: State, keep_as: pathlib.Path | None = None) -> None:
        if path.name == "last.pt" and state["step"] == 2 * STEPS_PER_EPOCH:
            raise Killed
        save(path, state, keep_as)

    def killed_in_the_last_epoch(self: Ema, step: int) -> None:
        update(self, step)
        if step == last_epoch + 1:
            raise Killed

    for place, killer in (
        ("pipeline.model.ema.Ema.update", killed_before_any_checkpoint),
        ("pipeline.model.checkpoint.save", killed_between_best_and_last),
        ("pipeline.model.ema.Ema.update", killed_in_the_last_epoch),
    ):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(place, killer)
            pipeline("train", "--run", "new")
    assert pipeline("train", "--run", "new") == 0
    assert_same_training(new_run / "fold0", RUN / "fold0")


def test_a_damaged_checkpoint_costs_no_more_than_the_way_from_the_one_before(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    fold = run_copy / "fold0"
    assert checkpoint.load(fold / "last.previous.pt", ("step",))["step"] == (EPOCHS - 1) * STEPS_PER_EPOCH
    (fold / "last.pt").write_bytes((fold / "last.pt").read_bytes()[:-1000])
    assert pipeline("train", "--run", "copy") == 0
    assert "last.pt is damaged" in (out := capsys.readouterr().out) and "last.previous.pt, the one before" in out
    assert_same_training(fold, RUN / "fold0")


def test_deterministic_kernels_are_asked_for(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back in the end
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        assert pipeline("train", "--run", "new", "--deterministic", "--set", "train.epochs=1") == 0
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_two_trainers_of_one_fold_are_one_too_many(
    pipeline: Pipeline, new_run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    with locked(new_run / "fold0" / ".lock", "never said"):
        assert pipeline("train", "--run", "new") == 1
    assert "runs/new/fold0 is being trained by another process" in only_line(capsys)
    assert not (new_run / "fold0" / "last.pt").exists()


def test_checkpoints_come_by_steps_too(pipeline: Pipeline, new_run: pathlib.Path) -> None:
    words = ("--set", "train.checkpoint_steps=3", "train.epochs=1")
    assert pipeline("train", "--run", "new", *words) == 0
    assert checkpoint.load(new_run / "fold0" / "last.previous.pt", ("step",))["step"] == 6


def test_too_little_memory_is_told_with_the_batch_that_fits(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def forward_of_at_most_3(self: Segmenter, image_NHWC: torch.Tensor) -> torch.Tensor:
        if len(image_NHWC) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, image_NHWC)

    forward = Segmenter.forward
    monkeypatch.setattr(Segmenter, "forward", forward_of_at_most_3)
    assert pipeline("train", "--run", "new", "--set", "train.batch_size=8") == 1
    line = only_line(capsys)
    assert "train.batch_size 8" in line and "3 pictures at once fit" in line and "train.accumulate=4" in line
    assert pipeline("train", "--run", "new", "--find-batch") == 0
    assert capsys.readouterr().out.startswith("3 pictures at once fit on CPU")
    assert not (new_run / "fold0").exists() or not (new_run / "fold0" / "last.pt").exists()


def test_a_batch_that_cannot_be_shared_out_is_a_problem(
    pipeline: Pipeline, new_run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    assert pipeline("train", "--run", "new", "--set", "train.accumulate=3") == 1
    assert "train.batch_size (4) must be a multiple of train.accumulate (3)" in only_line(capsys)


def test_the_best_epoch_is_kept_though_a_stop_and_worse_ones_follow(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, judgements = Ema.update, iter([{"val_dice": score, "val_dice_cut": 0.5} for score in (0.9, 0.8, 0.7)])

    def interrupt_after_the_first_epoch(self: Ema, step: int) -> None:
        update(self, step)
        if step == STEPS_PER_EPOCH:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("pipeline.stages.train.judge", lambda *things: next(judgements))
    with monkeypatch.context() as patch:
        patch.setattr(Ema, "update", interrupt_after_the_first_epoch)
        assert pipeline("train", "--run", "new") == 1
    assert pipeline("train", "--run", "new") == 0
    assert [row["val_dice"] for row in read_log(new_run / "fold0")] == [0.9, 0.8, 0.7]
    assert len(checkpoint.load(new_run / "fold0" / "best.pt", ("log",))["log"]) == 1  # as it was after the first


def test_a_network_that_finds_nothing_at_all_is_kept_too(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.stages.train.judge", lambda *things: {"val_dice": 0.0, "val_dice_cut": 0.5})
    assert pipeline("train", "--run", "new") == 0
    assert "best.pt: Dice 0.00000" in capsys.readouterr().out
    assert len(checkpoint.load(new_run / "fold0" / "best.pt", ("log",))["log"]) == 1  # the first of equals


def test_a_run_that_is_killed_before_its_last_line_of_log_still_gets_it(
    pipeline: Pipeline, run_copy: pathlib.Path
) -> None:
    log = run_copy / "fold0" / "log.jsonl"
    whole = log.read_text()
    log.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert pipeline("train", "--run", "copy") == 0
    assert log.read_text() == whole


def test_a_finished_run_says_so_and_changes_nothing(
    pipeline: Pipeline, finished: dict[str, int], capsys: pytest.CaptureFixture
) -> None:
    before = listing(RUN)
    assert pipeline("folds") == 0 and pipeline("train", "--fold", "all") == 0
    out = capsys.readouterr().out
    assert "runs/tiny/fold0 is trained already" in out and "runs/tiny/fold1 is trained already" in out
    assert listing(RUN) == before


def only_line(capsys: pytest.CaptureFixture) -> str:
    """What was said on stderr, which is one line without a traceback."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("word", ["train.seed=1", "model.width=4", "augment.flip=0.1", "train.epochs=4"])
def test_other_settings_on_the_same_run_are_a_problem_that_names_them(
    pipeline: Pipeline, finished: dict[str, int], capsys: pytest.CaptureFixture, word: str
) -> None:
    before = listing(RUN)
    assert pipeline("train", "--set", word) == 1
    line = only_line(capsys)
    assert "runs/tiny/fold0 was begun with other settings" in line and word.partition("=")[0] in line
    assert listing(RUN) == before


# --- exit codes and messages ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["train", "--fold", "two"],
        ["train", "--fold", "-1"],
        ["train", "--run", "a/b"],
        ["train", "--run", ".."],
        ["train", "--run", "."],
        ["check", "--colour"],
        ["demo-data", "--cars", "many"],
        ["shrink"],
    ],
)
def test_a_wrong_command_line_ends_with_2(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert re.fullmatch(r"[a-z-]+: [^\n]+; `python -m pipeline( [a-z-]+)? --help` shows what it takes\.\n",
                        capsys.readouterr().err)  # fmt: skip


def test_a_wrong_word_is_told_by_its_name_in_the_makefile(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["demo-data", "--test-cars", "0"])
    assert "TEST_CARS (--test-cars): '0' must be a whole number from 1 up" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, named",
    [
        (["folds", "--config", "none.yaml"], "none.yaml"),
        (["folds", "--data", "nowhere"], "nowhere"),
        (["folds", "--run", "other", "--set", "data.folds=9"], "data.folds is 9"),
        (["folds", "--run", "other", "--set", "data.hq=true"], "train_hq.zip"),
        (["train", "--fold", "7"], "no fold 7"),
        (["train", "--set", "train.epoch=1"], "train.epochs"),
        (["train", "--run", "none"], "make folds"),
        (["validate", "--run", "none"], "make train"),
        (["validate", "--fold", "7"], "fold7/best.pt"),
        (["threshold", "--run", "none"], "make validate"),
        (["predict", "--run", "none"], "make train"),
        (["predict", "--data", "nowhere"], "nowhere"),
        (["predict", "--set", "data.hq=true"], "test_hq.zip"),
        (["check", "--run", "none"], "submissions/none.csv.gz"),
        (["score", "--run", "none"], "submissions/none.csv.gz"),
        (["score", "--solution", "none.csv"], "none.csv"),
        (["demo-data", "--cars", "0"], "0 training"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_problem_is_one_line_on_stderr_and_exit_code_1(
    pipeline: Pipeline, finished: dict[str, int], capsys: pytest.CaptureFixture, words: list[str], named: str
) -> None:
    assert pipeline(*words) == 1
    line = only_line(capsys)
    assert line.startswith(f"{words[0]}: ") and named in line


def test_debug_adds_the_traceback(pipeline: Pipeline) -> None:
    with pytest.raises(Problem, match="none.yaml"):
        pipeline("folds", "--debug", "--config", "none.yaml")


@pytest.mark.parametrize(
    "words, complaint", [(["fly"], "invalid choice: 'fly'"), (["check", "--config", "none.yaml"], "none.yaml")]
)
def test_the_command_itself_ends_with_these_codes(words: list[str], complaint: str) -> None:
    ended = subprocess.run([sys.executable, "-m", "pipeline", *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == (2 if words == ["fly"] else 1)
    assert complaint in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["empty", "cut short", "something else"])
@pytest.mark.parametrize(
    "stage, name",
    [
        ("train", "folds.csv"),
        ("train", "fold0/last.pt"),
        ("validate", "fold0/best.pt"),
        ("validate", "folds.csv"),
        ("threshold", "oof/fold1.npz"),
        ("predict", "fold1/best.pt"),
        ("predict", "threshold.json"),
    ],
)
def test_a_damaged_file_of_a_run_is_a_problem_that_names_it(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture, stage: str, name: str, kind: str
) -> None:
    (run_copy / "fold0" / "last.previous.pt").unlink()  # which would take the place of last.pt
    data = (run_copy / name).read_bytes()
    damaged = {"empty": b"", "cut short": data[: len(data) // 2], "something else": b"\0<html>"}
    (run_copy / name).write_bytes(damaged[kind])
    assert pipeline(stage, "--run", "copy") == 1
    assert f"runs/copy/{name}" in only_line(capsys)
