"""Runs that are stopped, killed, refused or continued."""
import os
import pathlib
import re
import signal
from typing import Any

import pytest
import torch
from tiny_run import (
    EPOCHS,
    RUN,
    STEPS_PER_EPOCH,
    Killed,
    Pipeline,
    assert_same_training,
    listing,
    only_line,
    read_log,
    with_set,
)

from pipeline import carvana
from pipeline.model import checkpoint
from pipeline.model.ema import Ema
from pipeline.model.factory import Segmenter
from pipeline.runtime.files import locked

pytestmark = pytest.mark.usefixtures("signals")
State = dict[str, Any]


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

    # how images are loaded may change in between
    free_settings = ("data.workers=1", "data.cache=false", "train.checkpoint_minutes=1")
    assert pipeline("train", "--run", "new", *with_set(*free_settings)) == 0
    assert "after step 11 of 24" in capsys.readouterr().out
    assert_same_training(new_run / "fold0", RUN / "fold0")


@pytest.mark.parametrize("last_step", [STEPS_PER_EPOCH, EPOCHS * STEPS_PER_EPOCH])
def test_ctrl_c_in_the_last_step_of_an_epoch_evaluates_it_first(
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


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_is_saved(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    clip, steps = torch.nn.utils.clip_grad_norm_, iter(range(99))
    non_finite_step = STEPS_PER_EPOCH + 2

    def clip_to_infinity(*arguments: Any) -> torch.Tensor:
        return clip(*arguments) * (torch.inf if next(steps) == non_finite_step else 1)

    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", clip_to_infinity)
    assert pipeline("train", "--run", "new") == 1
    line = only_line(capsys)
    assert f"at step {non_finite_step + 1} of 24" in line and "runs/new/fold0/last.pt" in line
    assert len(re.findall(carvana.CARVANA.pattern(".jpg").pattern, line)) == 4  # the images of that batch
    assert checkpoint.load(new_run / "fold0" / "last.pt", ("step",))["step"] == STEPS_PER_EPOCH


def test_folds_do_not_change_under_a_network_that_was_trained_on_them(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    before = (run_copy / "folds.csv").read_text()
    assert pipeline("folds", "--run", "copy", "--set", "data.folds=3") == 1
    assert "runs/copy/folds.csv" in only_line(capsys)
    assert (run_copy / "folds.csv").read_text() == before


def test_a_batch_larger_than_the_fold_is_a_problem(
    pipeline: Pipeline, new_run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    assert pipeline("train", "--run", "new", "--set", "train.batch_size=999") == 1
    assert "32 images to train on" in only_line(capsys)


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


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    fold = run_copy / "fold0"
    assert checkpoint.load(fold / "last.previous.pt", ("step",))["step"] == (EPOCHS - 1) * STEPS_PER_EPOCH
    (fold / "last.pt").write_bytes((fold / "last.pt").read_bytes()[:-1000])
    assert pipeline("train", "--run", "copy") == 0
    assert "runs/copy/fold0/last.damaged.pt" in (out := capsys.readouterr().out) and "last.previous.pt" in out
    assert_same_training(fold, RUN / "fold0")


def test_deterministic_kernels_are_requested(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is restored at the end
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        assert pipeline("train", "--run", "new", "--deterministic", "--set", "train.epochs=1") == 0
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_last_pt_names_the_metric_of_its_best_score(trained: None) -> None:
    last = checkpoint.load(RUN / "fold0" / "last.pt", ("best_score", "score_name"))
    assert last["score_name"] == "val_dice"
    assert last["best_score"] == max(row["val_dice"] for row in read_log(RUN / "fold0"))


def test_a_second_trainer_of_a_fold_is_a_problem(
    pipeline: Pipeline, new_run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    with locked(new_run / "fold0" / ".lock", "never raised"):
        assert pipeline("train", "--run", "new") == 1
    assert "runs/new/fold0 is being trained" in only_line(capsys)
    assert not (new_run / "fold0" / "last.pt").exists()


def test_checkpoints_are_saved_every_few_steps_too(pipeline: Pipeline, new_run: pathlib.Path) -> None:
    assert pipeline("train", "--run", "new", *with_set("train.checkpoint_steps=3", "train.epochs=1")) == 0
    assert checkpoint.load(new_run / "fold0" / "last.previous.pt", ("step",))["step"] == 6


def test_too_little_memory_is_a_problem_that_names_the_batch_that_fits(
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
    assert "train.batch_size 8" in line and "3 images at once fit" in line and "train.accumulate=4" in line
    assert pipeline("find-batch", "--run", "new") == 0
    assert capsys.readouterr().out.startswith("3 images at once fit on CPU")
    assert not (new_run / "fold0").exists() or not (new_run / "fold0" / "last.pt").exists()


def test_a_batch_that_cannot_be_split_is_a_problem(
    pipeline: Pipeline, new_run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    assert pipeline("train", "--run", "new", "--set", "train.accumulate=3") == 1
    assert "train.batch_size (4)" in (line := only_line(capsys)) and "train.accumulate (3)" in line


def test_best_pt_is_of_the_best_epoch_though_a_stop_and_worse_ones_follow(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, scores = Ema.update, iter([{"val_dice": dice, "val_dice_threshold": 0.5} for dice in (0.9, 0.8, 0.7)])

    def interrupt_after_the_first_epoch(self: Ema, step: int) -> None:
        update(self, step)
        if step == STEPS_PER_EPOCH:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("pipeline.train.evaluate_epoch", lambda *arguments: next(scores))
    with monkeypatch.context() as patch:
        patch.setattr(Ema, "update", interrupt_after_the_first_epoch)
        assert pipeline("train", "--run", "new") == 1
    assert pipeline("train", "--run", "new") == 0
    assert [row["val_dice"] for row in read_log(new_run / "fold0")] == [0.9, 0.8, 0.7]
    assert len(checkpoint.load(new_run / "fold0" / "best.pt", ("log",))["log"]) == 1  # as it was after the first


def test_a_network_that_finds_nothing_is_saved_too(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    scores = {"val_dice": 0.0, "val_dice_threshold": 0.5}
    monkeypatch.setattr("pipeline.train.evaluate_epoch", lambda *arguments: scores)
    assert pipeline("train", "--run", "new") == 0
    assert "best.pt: Dice 0.00000" in capsys.readouterr().out
    assert len(checkpoint.load(new_run / "fold0" / "best.pt", ("log",))["log"]) == 1  # the first of equals


def test_a_run_that_is_killed_before_its_last_row_of_the_log_still_gets_it(
    pipeline: Pipeline, run_copy: pathlib.Path
) -> None:
    log = run_copy / "fold0" / "log.jsonl"
    whole = log.read_text()
    log.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert pipeline("train", "--run", "copy") == 0
    assert log.read_text() == whole


@pytest.mark.parametrize("override", ["train.seed=1", "model.width=4", "augment.flip=0.1", "train.epochs=4"])
def test_other_settings_on_the_same_run_are_a_problem_that_names_them(
    pipeline: Pipeline, trained: None, capsys: pytest.CaptureFixture, override: str
) -> None:
    before = listing(RUN)
    assert pipeline("train", "--set", override) == 1
    line = only_line(capsys)
    assert "runs/tiny/fold0 " in line and override.partition("=")[0] in line
    assert listing(RUN) == before
