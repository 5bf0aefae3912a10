"""`compete`: every stage in one command, stopped and continued, to the same submission; and the table at its end."""
import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import small_run
from test_refine import REFINE
from tiny_run import CONFIG, Killed, Pipeline, only_line, read_log, with_set

from pipeline import carvana, compete, config, threshold
from pipeline.__main__ import main
from pipeline.inference.oof import read_oof_histograms
from pipeline.kaggle import submit
from pipeline.masks import dice
from pipeline.model import checkpoint
from pipeline.paths import Run
from pipeline.report import gains
from pipeline.runtime.files import locked, sha256
from pipeline.runtime.problem import Problem
from pipeline.submission import provenance
from pipeline.submission.plan import fingerprint, open_test_images

SMALL = [each for each in REFINE if "epochs" not in each]
SETTINGS = with_set("train.epochs=1", "refine.epochs=1", "predict.tta=none", *SMALL)
RUN, OTHER, JOINT = Run("night"), Run("other"), Run("night+other")


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_has_the_figures_of_the_stages(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = small_run.make("small", demo_folder, shift_cells=0.6)
    threshold.main(run)
    stored = json.loads(run.threshold.read_text())
    scores = gains.score_folds(run, [0, 1])
    at_half = {}
    for fold in (0, 1):
        histograms = read_oof_histograms(run.oof(fold)).histograms
        at_half[fold] = float(dice.dice_at_thresholds(histograms)[:, 128].mean())
        assert scores[fold] == (32, 0.99, None, pytest.approx(at_half[fold]), scores[fold].chosen)
    every = gains.mean_scores(scores.values())
    assert every.chosen == pytest.approx(stored["oof_dice"], abs=1e-6) and every.images == stored["images"]
    lines = gains.table(run, run)
    assert lines[0].split()[2:] == ["images", "network", "refined", "TTA", "at", f"{stored['threshold']:.3f}"]
    assert lines[3].split() == ["all", "64", "0.99000", "–", f"{every.tta:.5f}", f"{stored['oof_dice']:.5f}"]
    assert lines[4].split()[1] == f"{stored['oof_dice_cross_fitted']:.5f}" and lines[4].endswith("over makes")
    gain = stored["oof_dice_cross_fitted"] - (at_half[0] + at_half[1]) / 2
    assert lines[-1].split()[-1] == f"{gain:+.5f}" and not any(line.startswith("refiner") for line in lines)
    for text in ("", '{"val_dice": null, "epoch": 1, "train_loss": 1, "images_per_s": 1, "lr": 1, "seconds": 1}'):
        run.fold(1).log.write_text(text)
        with pytest.raises(Problem, match="There is no Dice in runs/small/fold1/log.jsonl"):
            gains.table(run, run)


@pytest.mark.parametrize("error", [KeyError(1), ValueError("no values"), Problem("no log"), OSError("a disk")])
def test_a_table_that_cannot_be_made_hides_no_error(
    two_runs: compete.Competing, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(gains, "table", fail)
    (line,) = [line for line in two_runs.table() if line.startswith("The table could not be made: ")]
    assert str(error).strip("'") in line


def test_the_standard_error_is_that_of_whole_cars() -> None:
    values = np.array([0.9, 0.9, 0.9, 0.8, 0.8, 0.8])
    assert dice.standard_error(values, ["a"] * 3 + ["b"] * 3) == pytest.approx(0.05)  # as of two observations
    alone = dice.standard_error(values, list("abcdef"))
    assert alone == pytest.approx(values.std(ddof=1) / 6**0.5) and alone < 0.05
    assert dice.standard_error(values, ["a"] * 6) is None


def test_a_refiner_and_a_blend_have_a_line_each(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    JOINT.blend.parent.mkdir(parents=True)
    blended = {"weights": {"night": 0.7, "other": 0.3}, "threshold": 0.5, "best_single_run": "night"}
    JOINT.blend.write_text(json.dumps(blended | {"gain_cross_fitted": 0.00012}))
    of_folds = [gains.FoldScores(1, 0.9, 0.95, 0.96, 0.97), gains.FoldScores(3, 0.94, 0.95, 0.96, 0.97)]
    scores = gains.mean_scores(of_folds)
    lines = [line.split() for line in gains.gain_rows(scores, 0.9605, RUN, JOINT)]
    assert [line[0] for line in lines] == ["refiner", "TTA", "threshold", "blend"]
    assert [line[-1] for line in lines] == ["+0.02000", "+0.01000", "+0.00050", "+0.00012"]


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that run as processes, called here instead; `calls.kill` names one that is killed before it begins."""
    called: list[str] = []

    def run_here(stage: str, *arguments: str, watch: Callable[[], None]) -> None:
        fold = arguments[arguments.index("--fold") + 1] if "--fold" in arguments else ""
        if f"{stage} {fold}" in kills:
            kills.remove(f"{stage} {fold}")
            raise Killed
        called.append(f"{stage} {fold}".strip())
        assert main([stage, *arguments]) == 0
        watch()

    kills.clear()
    monkeypatch.setattr(compete, "run_stage", run_here)
    monkeypatch.setattr(submit, "ask_kaggle", lambda row, competition: None)
    return called


kills: list[str] = []


def compete_here(pipeline: Pipeline, *arguments: str) -> int:
    return pipeline("compete", "--run", RUN.name, "--dry-run", *SETTINGS, *arguments)


def test_a_run_that_is_killed_between_its_stages_ends_with_the_same_submission(
    pipeline: Pipeline, calls: list[str], capsys: pytest.CaptureFixture
) -> None:
    kills.extend(["validate 1", "predict 0,1"])
    for stages in (["train 0", "train 1", "validate 0"], ["train 0", "train 1", "validate 1"]):
        with pytest.raises(Killed):
            compete_here(pipeline)
        assert calls == stages and not RUN.submission.exists()
        calls.clear()
    capsys.readouterr()
    assert compete_here(pipeline) == 0
    assert calls == ["train 0", "train 1", "predict 0,1", "report"]
    out = capsys.readouterr().out
    stored, digest = json.loads(RUN.threshold.read_text()), sha256(RUN.submission)
    table = out[out.index("OOF Dice") :].splitlines()
    assert f"{stored['oof_dice_cross_fitted']:.5f}" in table[4] and f"{stored['oof_dice']:.5f}" in table[3]
    best = [read_log(RUN.fold(fold).folder)[0]["val_dice"] for fold in (0, 1)]
    assert [table[1 + fold].split()[3] for fold in (0, 1)] == [f"{each:.5f}" for each in best]
    assert table[6].startswith("refiner over the network") and table[-1].endswith(f"16 images, sha256 {digest}")
    assert "6/9 predict: about" in out and "3/9 validate fold 0: done already" in out

    calls.clear()  # all is there: nothing is predicted again
    assert compete_here(pipeline) == 0
    assert calls == ["train 0", "train 1"] and sha256(RUN.submission) == digest
    RUN.submission.unlink()  # one that is made stage by stage has the same bytes
    assert pipeline("predict", "--run", RUN.name, "--fold", "all", *SETTINGS) == 0
    assert sha256(RUN.submission) == digest
    RUN.report_page.touch()


@pytest.fixture
def plan(demo_folder: pathlib.Path) -> compete.Competing:
    """What is known of the run above when it is started again."""
    overrides = [each for each in SETTINGS if each != "--set"]
    common = compete.Common(config="tiny.yaml", data=str(demo_folder), run=RUN.name, set=overrides)
    names = {fold: read_oof_histograms(RUN.oof(fold)).names for fold in (0, 1)}
    return compete.Competing(common, common.settings, RUN, [RUN], names, 16, gpus=1, deterministic=False)


def done(plan: compete.Competing) -> str:
    """The steps that are done, of those that can be."""
    return ", ".join(step.title for step in plan.steps() if step.is_done())


ALL_DONE = "validate fold 0, validate fold 1, threshold, predict, report"


def test_with_other_settings_predictions_are_made_again(plan: compete.Competing) -> None:
    assert done(plan) == ALL_DONE
    plan.common = plan.common._replace(set=[*plan.common.set, "predict.tta=hflip"])
    assert done(plan) == "threshold, report"
    for override in ("predict.refiner_tta=hflip", "predict.refine=false"):
        plan.common = plan.common._replace(set=[*plan.common.set[:-1], override])
        assert done(plan) == "threshold, report"
    plan.common = plan.common._replace(set=[*plan.common.set[:-1], "predict.refiner_tta=none"])  # as predict.tta is
    assert done(plan) == ALL_DONE


def test_what_a_kill_left_half_or_others_changed_is_made_again(plan: compete.Competing) -> None:
    for path, left in {
        RUN.oof_predictions(1): "validate fold 0, threshold, predict, report",  # the .npz beside it is of another
        RUN.oof(0): "validate fold 1, report",  # by its time; validating makes it older than that
        RUN.fold(0).refiner.best: "validate fold 1, report",
        RUN.threshold: "validate fold 0, validate fold 1, report",
        RUN.submission: "validate fold 0, validate fold 1, threshold, report",
        RUN.provenance: "validate fold 0, validate fold 1, threshold, report",
    }.items():
        before, times = path.read_bytes(), path.stat()
        path.write_bytes(before[:-9])
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert done(plan) == left, path
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    plan.held_out[1] = plan.held_out[1][:-1]  # an image more in the data
    assert done(plan) == "validate fold 0, threshold, predict, report"
    plan.held_out[1] = read_oof_histograms(RUN.oof(1)).names
    assert done(plan) == ALL_DONE


def test_refined_runs_of_two_seeds_are_blended(
    pipeline: Pipeline, calls: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.check.main", lambda *arguments: None)  # masks of an epoch may have any size
    OTHER.folder.mkdir()
    shutil.copy(RUN.folds, OTHER.folds)
    seeds = with_set("train.seed=1", "refine.seed=1")
    assert pipeline("train", "--run", OTHER.name, "--fold", "0", *SETTINGS, *seeds) == 0
    capsys.readouterr()
    arguments = ("--runs", RUN.name, OTHER.name, "--fold", "0")
    assert compete_here(pipeline, *arguments) == 0
    assert calls == ["train 0", "blend 0", "predict 0"]
    blend = json.loads(JOINT.blend.read_text())
    both = [path for run in (RUN, OTHER) for path in run.fold(0).checkpoints()]
    assert len(both) == 4 and blend["checkpoints"] == {str(path): sha256(path) for path in both}
    assert blend["predicted_with"] == "predict.tta none, data.scale 8, refined"
    gain = blend["oof_dice_cross_fitted"] - blend["best_single_run_cross_fitted"]  # of an epoch: of any size and sign
    assert blend["gain_cross_fitted"] == pytest.approx(gain, abs=2e-6)
    assert sum(blend["weights"].values()) == pytest.approx(1)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("blend (")]
    assert line.split()[-1] == f"{blend['gain_cross_fitted']:+.5f}"
    assert str(JOINT.submission) in out.splitlines()[-1]
    calls.clear()
    assert compete_here(pipeline, *arguments) == 0
    assert calls == ["train 0"]


# --- before anything that takes long ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--runs", "a", "b"], 'RUNS="a b" leaves out night, the run that is trained here'),
        (["--runs", "night", "nowhere"], "There is no runs/nowhere/fold0/best.pt; train that fold first"),
        (["--fold", "0,7"], "There is no fold 7"),
        (["--set", "train.learning_rate=0.5"], "was begun with other settings (train.learning_rate"),
        (["--on", "kaggle"], "leave it out of compete, which runs only here"),
        (["--set", "data.kind=folder"], "data.kind is folder, but this needs a Kaggle competition"),
        (["--runs", "night", "other", "--pseudo", str(JOINT.submission)], "the run night+other would replace"),
        (["--gpus", "99"], None),
    ],
)
def test_what_would_end_a_later_step_is_one_line_before_the_first(
    pipeline: Pipeline, calls: list[str], capsys: pytest.CaptureFixture, arguments: list[str], complaint: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if complaint is None:
        monkeypatch.setattr(compete, "check_gpus", refuse("--gpus is 99, but this machine has 0."))
        complaint = "--gpus is 99"
    assert compete_here(pipeline, *arguments) == 1
    assert complaint in only_line(capsys) and calls == []


def refuse(sentence: str) -> Callable[..., None]:
    def check(*_: object, **__: object) -> None:
        raise Problem(sentence)

    return check


def test_a_missing_token_is_seen_at_the_start(
    pipeline: Pipeline, calls: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compete, "connect", refuse("There are no credentials for Kaggle; log in."))
    assert pipeline("compete", "--run", RUN.name, *SETTINGS) == 1
    assert only_line(capsys) == (
        "compete: There are no credentials for Kaggle; log in; or add DRY_RUN=1, which uploads nothing."
    )
    assert calls == []


@pytest.mark.parametrize("missing", ["test.zip", "train.zip", "sample_submission.csv"])
def test_missing_data_are_seen_at_the_start(
    demo_copy: pathlib.Path, tiny_place: None, calls: list[str], capsys: pytest.CaptureFixture, missing: str
) -> None:
    (path,) = demo_copy.glob(f"{missing}*")
    path.unlink()
    assert compete_here(Pipeline(demo_copy)) == 1
    assert missing.split(".")[0] in only_line(capsys) and calls == []


def test_a_trainer_that_was_left_behind_is_waited_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Only one of a wanted fold."""
    monkeypatch.chdir(tmp_path)
    trainers, waited = [contextlib.ExitStack() for _ in range(3)], []
    for number, trainer in enumerate(trainers):
        trainer.enter_context(locked(RUN.fold(number).lock, "busy"))

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) % 2 == 0:
            trainers.pop().close()

    monkeypatch.setattr(compete.time, "sleep", sleep)
    compete.wait_for_trainers(RUN, [1, 2, 3])
    assert len(waited) == 4 and len(trainers) == 1
    assert capsys.readouterr().out.count("\n") == 1
    monkeypatch.setattr(compete, "LONGEST_SAVE_S", -1.0)
    with pytest.raises(Problem, match="night/fold0 is being trained"):
        compete.wait_for_trainers(RUN, [0])
    trainers.pop().close()


@pytest.mark.parametrize("text", ['{"epo', '{"epoch": 1}\n', "[]\n", "\xff"])
def test_a_damaged_log_tells_no_speed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    RUN.fold(0).folder.mkdir(parents=True)
    RUN.fold(0).log.write_text(text, encoding="latin-1")
    assert compete.Speeds(RUN).seconds(compete.EPOCHS) is None


def test_on_several_gpus_one_step_trains_all_folds(demo_folder: pathlib.Path, tiny_place: None) -> None:
    common = compete.Common(config="tiny.yaml", data=str(demo_folder), run=RUN.name, set=["train.epochs=4"])
    plan = compete.Competing(common, common.settings, RUN, [RUN], {0: ["a"], 1: ["b"]}, 16, gpus=2, deterministic=True)
    first, *others = plan.steps()
    assert first.title == "train 2 folds on 2 GPUs" and sum(item.total for item in first.work) == 4
    titles = ["validate fold 0", "validate fold 1", "threshold", "predict", "check", "report"]
    assert [step.title for step in others] == titles and others[3].work[0].total == 16  # two networks on two GPUs


@pytest.fixture
def two_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> compete.Competing:
    """A run that is to be trained with SET=, and another one that was trained with other settings."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("tiny.yaml").write_text(CONFIG)
    overrides = ["data.scale=4", "data.pseudo=parent.csv.gz", "predict.tta=hflip", "train.seed=1", "data.workers=0"]
    common = compete.Common(config="tiny.yaml", data="data", run=RUN.name, set=overrides)
    for run, settings in ((RUN, common.settings), (OTHER, config.load(pathlib.Path("tiny.yaml"), OF_OTHER))):
        fold = run.fold(0)
        checkpoint.save(fold.best, {"settings": settings.model_dump()})
        fold.config.write_text(config.dump(settings))
        fold.log.write_text("{}\n" * 3)
        run.folds.write_text("car_id,make,fold\na,x,0\nb,y,1\n")
    for file, epochs in ((OTHER.fold(0).refiner.best, 0), (OTHER.fold(0).refiner.log, 2)):
        file.write_text("{}\n" * epochs)
    return compete.Competing(common, common.settings, RUN, [OTHER, RUN], {0: ["a"]}, 16, gpus=1, deterministic=False)


OF_OTHER = ["data.folder=data", "refine.scale=2", "refine.epochs=2", "predict.refine=false"]


def test_what_one_run_is_trained_with_is_not_asked_of_the_others(two_runs: compete.Competing) -> None:
    assert set(two_runs.common.set) <= set(two_runs.arguments(0))
    arguments = two_runs.joint_arguments()
    assert arguments[arguments.index("--set") :] == ["--set", "predict.tta=hflip", "data.workers=0"]
    of_other, own = (two_runs.later_settings(run.fold(0)) for run in (OTHER, RUN))
    assert (of_other.data.scale, of_other.data.pseudo, of_other.predict.tta) == (8, None, "hflip")
    assert (own.data.scale, own.data.pseudo, own.predict.tta) == (4, "parent.csv.gz", "hflip")


def test_each_run_predicts_with_its_refiner_or_without_as_its_own_settings_say(two_runs: compete.Competing) -> None:
    RUN.fold(0).refiner.best.touch()
    assert len(two_runs.checkpoints(RUN.fold(0))) == 2 and len(two_runs.checkpoints(OTHER.fold(0))) == 1
    two_runs.common.set.append("predict.refine=true")
    assert len(two_runs.checkpoints(OTHER.fold(0))) == 2


def test_a_run_that_is_not_trained_to_its_end_is_not_blended(two_runs: compete.Competing) -> None:
    files, common = OTHER.fold(0), two_runs.common
    compete.check_folds(common, RUN, [RUN, OTHER], [0])
    common.set.append("predict.refine=true")
    compete.check_folds(common, RUN, [RUN, OTHER], [0])
    for path, left, numbers in (
        (files.log, "{}\n", "1 of 3"), (files.refiner.log, "{}\n", "1 of 2"), (files.refiner.best, None, "2 of 2")
    ):  # fmt: skip
        before = path.read_text()
        path.write_text(left) if left else path.unlink()
        with pytest.raises(Problem, match=f"{numbers} epochs.* `make train RUN=other FOLD=0`"):
            compete.check_folds(common, RUN, [RUN, OTHER], [0])
        path.write_text(before)


def test_how_to_predict_cannot_change_in_the_config_after_a_fold_is_trained(two_runs: compete.Competing) -> None:
    """Neither in silence for all folds, nor for those that are trained later."""
    pathlib.Path("tiny.yaml").write_text(f"{CONFIG}predict: {{refine: false}}\n")
    RUN.fold(0).config.write_text(config.dump(two_runs.common.settings))  # as a start with that config leaves it
    with pytest.raises(Problem, match="night/fold0/best.pt was trained with predict.refine=true, but tiny.yaml has"):
        compete.check_folds(two_runs.common, RUN, [RUN], [0])
    assert two_runs.later_settings(RUN.fold(0)).predict.refine
    for value in ("true", "false"):
        overrides = [*two_runs.common.set, f"predict.refine={value}"]
        compete.check_folds(two_runs.common._replace(set=overrides), RUN, [RUN], [0])


def test_a_submission_of_other_test_images_or_with_empty_rows_is_made_again(
    two_runs: compete.Competing, monkeypatch: pytest.MonkeyPatch, demo_copy: pathlib.Path
) -> None:
    two_runs.runs, two_runs.common = [RUN], two_runs.common._replace(data=str(demo_copy))
    paths = RUN.fold(0).checkpoints()
    monkeypatch.setattr(compete, "weights_and_threshold", lambda *_: ({paths[0]: 1.0}, 128, {"threshold": 0.5}))
    RUN.submission.parent.mkdir()
    RUN.submission.write_bytes(b"rows")
    names, images = open_test_images(carvana.CARVANA, two_runs.later_settings(RUN.fold(0)))
    about: dict[str, Any] = {"threshold": 0.5, "predict_overrides": ("predict.tta=hflip",)}
    about |= {"sha256": sha256(RUN.submission), "checkpoints": {str(each): sha256(each) for each in paths}}
    good = about | {"test_images": fingerprint(images, names)}
    for origin, is_predicted in (
        (good, True), (good | {"bad_images": ("a.jpg",)}, False), (good | {"threshold": 0.6}, False),
        (good | {"predict_overrides": ("predict.tta=none",)}, False), (about, False),  # of an earlier version
    ):
        provenance.write(RUN.provenance, provenance.Provenance(**origin))
        assert two_runs.is_predicted() == is_predicted, origin
    provenance.write(RUN.provenance, provenance.Provenance(**good))
    loose = demo_copy / names[0]  # which replaces the one in the archive
    for size in (5, 6):
        loose.write_bytes(b"x" * size)
        assert not two_runs.is_predicted()
        names, images = open_test_images(carvana.CARVANA, two_runs.later_settings(RUN.fold(0)))
        new = good | {"test_images": fingerprint(images, names)}
        provenance.write(RUN.provenance, provenance.Provenance(**new))
        assert two_runs.is_predicted()


def test_defaults_of_the_settings_are_not_taken_for_others(
    tiny_place: None, demo_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fold that an interrupted start left with the same settings is no conflict: its last.pt is not looked at."""
    common, run = compete.Common(config="tiny.yaml", data=str(demo_folder)), Run("same")
    run.fold(0).folder.mkdir(parents=True)
    run.fold(0).config.write_text(config.dump(common.settings))
    run.folds.write_text("car_id,make,fold\na,x,0\nb,y,1\n")
    monkeypatch.setattr(compete.resume, "read_last", refuse("last.pt was looked at"))
    compete.check_folds(common, run, [run], [0, 1])
    with pytest.raises(Problem, match="last.pt was looked at"):
        compete.check_folds(common._replace(set=["train.seed=1"]), run, [run], [0, 1])
