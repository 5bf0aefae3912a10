"""Files of a run that are damaged, missing, replaced, or of other folds: no training is lost, no network is evaluated
on its training images, and no prediction names weights that did not make it."""
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
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

from pipeline import config
from pipeline.blend import Tally
from pipeline.data.grouping import digest, read_folds
from pipeline.inference import loading
from pipeline.model import checkpoint
from pipeline.paths import Fold
from pipeline.runtime.files import locked, read_json, sha256
from pipeline.runtime.problem import Problem
from pipeline.training import resume

NO_TTA = ("--set", "predict.tta=none")


def damage(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def rewrite(best: pathlib.Path, **other: Any) -> None:
    """Save the checkpoint again with other values of some keys; None: without the key."""
    state = checkpoint.load(best, ("settings",)) | other
    checkpoint.save(best, {key: value for key, value in state.items() if value is not None})


def evaluate_as(monkeypatch: pytest.MonkeyPatch, *dice: float) -> None:
    """Let the epochs have these scores."""
    scores = iter([{"val_dice": score, "val_dice_threshold": 0.5} for score in dice])
    monkeypatch.setattr("pipeline.train.evaluate_epoch", lambda *arguments: next(scores))


# --- last.pt --------------------------------------------------------------------------------------


def test_a_damaged_last_pt_and_a_kill_in_the_next_save_lose_no_more_than_one_of_them(
    pipeline: Pipeline, run_copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fold, replace = run_copy / "fold0", os.replace
    damage(fold / "last.pt")

    def killed_before_last(old: pathlib.Path, new: pathlib.Path) -> None:
        if pathlib.Path(new).name == "last.pt":
            raise Killed
        replace(old, new)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("pipeline.runtime.files.os.replace", killed_before_last)
        pipeline("train", "--run", "copy")
    assert (fold / "last.damaged.pt").is_file() and "delete" not in capsys.readouterr().out
    assert pipeline("train", "--run", "copy") == 0
    assert_same_training(fold, RUN / "fold0")


def test_without_last_pt_the_checkpoint_before_is_resumed(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    (run_copy / "fold0" / "last.pt").unlink()
    assert pipeline("train", "--run", "copy") == 0
    assert f"after step {(EPOCHS - 1) * STEPS_PER_EPOCH} of" in capsys.readouterr().out
    assert_same_training(run_copy / "fold0", RUN / "fold0")


def test_two_damaged_checkpoints_are_a_problem_and_stay(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("last.pt", "last.previous.pt"):
        damage(run_copy / "fold0" / name)
    before = listing(run_copy)
    assert pipeline("train", "--run", "copy") == 1
    assert "fold0/last.previous.pt" in only_line(capsys)
    assert listing(run_copy) == before


def test_without_repair_no_file_is_moved(run_copy: pathlib.Path) -> None:
    fold = Fold(run_copy / "fold0")
    damage(fold.last)
    before = listing(run_copy)
    last = resume.read_last(fold, config.load(fold.config), repair=False)
    assert last["step"] == (EPOCHS - 1) * STEPS_PER_EPOCH and listing(run_copy) == before


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(tmp_path: pathlib.Path) -> None:
    (tmp_path / "last.pt").mkdir()
    with pytest.raises(Problem, match=r"last\.pt .*: Is a directory\.$"):
        checkpoint.load(tmp_path / "last.pt", ())


# --- best.pt --------------------------------------------------------------------------------------


def test_a_new_start_does_not_replace_a_best_pt_that_was_copied_here_alone(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    fold = Fold(run_copy / "fold0")
    fold.last.unlink()
    fold.previous.unlink()
    before = listing(run_copy)
    assert pipeline("train", "--run", "copy") == 1
    assert f"best.pt is of {EPOCHS} epochs" in only_line(capsys)
    assert listing(run_copy) == before

    rewrite(fold.best, log=checkpoint.load(fold.best, ("log",))["log"][:1])  # as a kill before the first last.pt
    assert pipeline("train", "--run", "copy") == 0


def test_a_missing_best_pt_is_written_again_from_last_pt(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    best = run_copy / "fold0" / "best.pt"
    assert max(row["val_dice"] for row in read_log(RUN / "fold0")[:-1]) < read_log(RUN / "fold0")[-1]["val_dice"]
    best.unlink()
    assert pipeline("train", "--run", "copy") == 0
    assert "fold0/best.pt was missing" in capsys.readouterr().out
    assert sha256(best) == sha256(RUN / "fold0" / "best.pt")


def test_a_missing_best_pt_that_cannot_be_written_again_is_a_problem(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    evaluate_as(monkeypatch, 0.7, 0.9, 0.8)
    assert pipeline("train", "--run", "new") == 0
    (new_run / "fold0" / "best.pt").unlink()
    assert pipeline("train", "--run", "new") == 1
    assert "fold0/best.pt, the weights of epoch 2" in only_line(capsys)


@pytest.mark.parametrize("third, code", [(0.9, 0), (0.6, 1)])
def test_a_best_pt_that_is_deleted_while_training_is_written_by_a_better_epoch_or_a_problem(
    pipeline: Pipeline, new_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    third: float, code: int,
) -> None:  # fmt: skip
    best, save = new_run / "fold0" / "best.pt", checkpoint.save
    evaluate_as(monkeypatch, 0.8, 0.7, third)

    def save_and_stop(path: pathlib.Path, state: dict[str, Any], keep_as: pathlib.Path | None = None) -> None:
        save(path, state, keep_as)
        if path.name == "last.pt" and state["step"] == 2 * STEPS_PER_EPOCH:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("pipeline.model.checkpoint.save", save_and_stop)
        pipeline("train", "--run", "new")
    best.unlink()
    assert pipeline("train", "--run", "new") == code
    printed = capsys.readouterr()
    assert "best.pt, the weights of epoch 1" in printed.out
    assert best.exists() != ("best.pt, the weights of epoch 1" in printed.err)


# --- folds ----------------------------------------------------------------------------------------


def test_folds_do_not_change_under_a_fold_that_is_being_trained(
    pipeline: Pipeline, new_run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    before = (new_run / "folds.csv").read_bytes()
    with locked(new_run / "fold1" / ".lock", "never raised"):
        assert pipeline("folds", "--run", "new", "--set", "data.folds=3") == 1
    assert "runs/new/fold1 " in only_line(capsys)
    assert (new_run / "folds.csv").read_bytes() == before
    assert pipeline("folds", "--run", "new", "--set", "data.folds=3") == 0
    assert (new_run / "folds.csv").read_bytes() != before


@pytest.mark.parametrize("name", ["config.yaml", "best.pt", "last.pt", "last.previous.pt"])
def test_folds_do_not_change_where_any_file_of_a_training_is(
    pipeline: Pipeline, new_run: pathlib.Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    (new_run / "fold0").mkdir()
    shutil.copy(RUN / "fold0" / name, new_run / "fold0")
    assert pipeline("folds", "--run", "new", "--set", "data.folds=3") == 1
    assert "runs/new/folds.csv" in only_line(capsys)
    assert (new_run / "folds.csv").read_bytes() == (RUN / "folds.csv").read_bytes()


def test_folds_that_are_gone_come_back_as_those_of_best_pt_alone(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    table = run_copy / "folds.csv"
    table.unlink()
    assert pipeline("folds", "--run", "copy", "--set", "data.folds=3") == 1
    assert "runs/copy/folds.csv" in only_line(capsys) and not table.exists()
    assert pipeline("folds", "--run", "copy") == 0
    assert table.read_bytes() == (RUN / "folds.csv").read_bytes()


def test_a_damaged_folds_csv_may_be_written_again_though_a_network_is_trained_on_it(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    (run_copy / "folds.csv").write_text("car_id,make")
    assert pipeline("folds", "--run", "copy") == 1
    assert "runs/copy/folds.csv" in (line := only_line(capsys)) and "delete it" in line
    (run_copy / "folds.csv").unlink()
    assert pipeline("folds", "--run", "copy") == 0


@pytest.fixture
def other_folds(run_copy: pathlib.Path) -> pathlib.Path:
    """The run with each car in the other fold, so that fold 0 holds out what it was trained on."""
    header, *rows = (run_copy / "folds.csv").read_text().splitlines()
    swapped = [row[:-1] + {"0": "1", "1": "0"}[row[-1]] for row in rows]
    (run_copy / "folds.csv").write_text("\n".join([header, *swapped]) + "\n")
    return run_copy


def test_a_network_is_not_validated_on_what_it_was_trained_on(
    pipeline: Pipeline, other_folds: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    assert pipeline("validate", "--run", "copy") == 1
    assert "runs/copy/fold0/best.pt" in (line := only_line(capsys)) and "runs/copy/folds.csv" in line
    assert not (other_folds / "oof").exists()


def test_a_best_pt_that_does_not_name_its_folds_is_not_validated(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    best = run_copy / "fold0" / "best.pt"
    assert checkpoint.load(best, ("folds",))["folds"] == digest(read_folds(RUN / "folds.csv"))
    rewrite(best, folds=None)
    assert pipeline("validate", "--run", "copy", *NO_TTA) == 1
    assert "runs/copy/fold0/best.pt has no folds" in only_line(capsys)


def test_a_network_is_not_blended_on_what_it_was_trained_on(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    rewrite(run_copy / "fold0" / "best.pt", folds="of others")
    assert pipeline("blend", "--runs", "tiny", "copy") == 1
    assert "runs/copy/fold0/best.pt" in (line := only_line(capsys)) and "runs/tiny/folds.csv" in line


def test_cars_that_the_folder_lacks_are_named_before_a_training_without_them(
    pipeline: Pipeline, new_run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    with open(new_run / "folds.csv", "a") as file:
        file.write("0123456789ab,kia,1\n")
    assert pipeline("train", "--run", "new", *with_set("train.epochs=1", "train.batch_size=32")) == 0
    out = capsys.readouterr().out
    assert f"{pipeline.folder} lacks 1 of the 5 rows of runs/new/folds.csv" in out and "0123456789ab" in out


# --- weights that are replaced while they are used ----------------------------------------------------------


def test_weights_that_are_replaced_while_they_are_loaded_are_a_problem(
    pipeline: Pipeline, run_copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    best, load_network = run_copy / "fold0" / "best.pt", loading.load_network

    def load_and_retrain(*arguments: Any) -> Any:
        loaded = load_network(*arguments)
        rewrite(best, log=[])
        return loaded

    monkeypatch.setattr("pipeline.validate.load_network", load_and_retrain)
    assert pipeline("validate", "--run", "copy") == 1
    assert "runs/copy/fold0/best.pt" in only_line(capsys)


def test_predictions_name_the_weights_that_made_them(
    pipeline: Pipeline, run_copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = run_copy / "fold0" / "best.pt"
    digest_before = sha256(best)

    def retrain(*arguments: Any) -> int:
        rewrite(best, log=[])
        return 2  # images at once

    monkeypatch.setattr("pipeline.validate.batch_that_fits", retrain)
    assert pipeline("validate", "--run", "copy", *NO_TTA) == 0
    with np.load(run_copy / "oof" / "fold0.npz") as file:
        assert str(file["checkpoint_sha256"]) == digest_before != sha256(best)


def test_a_blend_names_the_weights_that_made_it(
    pipeline: Pipeline, run_copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, add = run_copy / "fold0" / "best.pt", Tally.add
    digest_before = sha256(best)

    def add_and_retrain(self: Tally, *arguments: Any) -> None:
        add(self, *arguments)
        rewrite(best, log=[])

    monkeypatch.setattr(Tally, "add", add_and_retrain)
    assert pipeline("blend", "--runs", "tiny", "copy", *NO_TTA) == 0
    checkpoints = read_json(pathlib.Path("runs/tiny+copy/blend.json"))["checkpoints"]
    assert checkpoints == {"runs/tiny/fold0/best.pt": sha256(RUN / "fold0/best.pt"), str(best): digest_before}


def test_a_folder_without_the_held_out_cars_is_a_problem_of_a_blend_too(
    pipeline: Pipeline, run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(run_copy, "runs/again")
    for run in (run_copy, pathlib.Path("runs/again")):
        (run / "folds.csv").write_text("car_id,make,fold\n0123456789ab,kia,0\n123456789abc,ford,1\n")
        rewrite(run / "fold0" / "best.pt", folds=digest(read_folds(run / "folds.csv")))
    assert pipeline("blend", "--runs", "copy", "again") == 1
    assert "holds no image of fold 0 in runs/copy/folds.csv" in only_line(capsys)
    shutil.rmtree("runs/again")
