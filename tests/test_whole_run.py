"""One whole run on a tiny demo competition, through the command line."""
import csv
import gzip
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny_run import RUN, Pipeline, listing, only_line, read_log, with_set

from pipeline import carvana
from pipeline.__main__ import main
from pipeline.data.csv_table import read_table
from pipeline.kaggle import ledger
from pipeline.masks import dice, rle
from pipeline.runtime.files import sha256
from pipeline.runtime.problem import Problem
from pipeline.synthetic import demo

pytestmark = pytest.mark.usefixtures("tiny_place")
REPOSITORY = pathlib.Path(__file__).parent.parent
SUBMISSION = pathlib.Path("submissions/tiny.csv.gz")


@pytest.fixture(scope="module")
def finished(pipeline: Pipeline) -> dict[str, int]:
    """All stages, one after another; the exit code of each."""
    codes = {"folds": pipeline("folds"), "train": pipeline("train", "--fold", "all")}
    return codes | {stage: pipeline(stage) for stage in ("validate", "threshold", "predict", "check", "score")}


@pytest.fixture(scope="module")
def trained(finished: dict[str, int]) -> None:
    """Let `run_copy` copy the finished run."""


# --- all stages -----------------------------------------------------------------------------------


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


def test_log_jsonl_has_one_object_an_epoch(finished: dict[str, int]) -> None:
    for fold in (0, 1):
        rows = read_log(RUN / f"fold{fold}")
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        for row in rows:
            assert {"train_loss", "val_dice", "val_dice_threshold", "images_per_s", "lr", "seconds"} < set(row)
            assert 0 < row["val_dice"] < 1 and 0 <= row["val_dice_threshold"] <= 1
        assert rows[-1]["train_loss"] < rows[0]["train_loss"]
        assert rows[-1]["lr"] < rows[0]["lr"]


def test_threshold_json_has_a_threshold_and_a_cross_fitted_dice_that_is_not_higher(finished: dict[str, int]) -> None:
    stored = json.loads((RUN / "threshold.json").read_text())
    keys = ["threshold", "oof_dice", "oof_dice_cross_fitted", "standard_errors", "images"]
    assert list(stored) == [*keys, "predicted_with", "predictions"]
    assert stored["predicted_with"] == "predict.tta hflip, data.scale 8"
    assert stored["predictions"] == {f"fold{fold}": sha256(RUN / f"oof/fold{fold}.npz") for fold in (0, 1)}
    assert stored["images"] == 4 * carvana.ANGLES
    assert 0 <= stored["threshold"] <= 1
    assert stored["oof_dice_cross_fitted"] <= stored["oof_dice"] < 1
    assert set(stored["standard_errors"]) == {"car", "make"}


def oof_dice(run: pathlib.Path, fold: int) -> float:
    """Mean out-of-fold Dice at the threshold 0.5."""
    with np.load(run / "oof" / f"fold{fold}.npz") as file:
        return float(dice.dice_at_thresholds(file["histograms"])[:, 128].mean())


def test_validation_finds_the_dice_that_training_saw(pipeline: Pipeline, run_copy: pathlib.Path) -> None:
    overrides = with_set("predict.tta=none", "predict.batch_size=5")
    assert pipeline("validate", "--run", "copy", "--fold", "0", *overrides) == 0
    best = max(row["val_dice"] for row in read_log(RUN / "fold0"))
    assert oof_dice(run_copy, 0) == pytest.approx(best, abs=1e-5)


def test_each_image_is_evaluated_by_the_network_that_never_saw_its_make(finished: dict[str, int]) -> None:
    fold_of_car = dict(line.split(",")[::2] for line in (RUN / "folds.csv").read_text().splitlines()[1:])
    for fold in (0, 1):
        with np.load(RUN / "oof" / f"fold{fold}.npz") as file:
            names = file["names"].tolist()
        assert len(names) == 2 * carvana.ANGLES
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


def test_the_score_is_the_last_line_and_too_high_for_a_constant_mask(
    pipeline: Pipeline, finished: dict[str, int], capsys: pytest.CaptureFixture
) -> None:
    assert pipeline("score") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    match = re.fullmatch(r"public (0\.\d{5})  private (0\.\d{5})  images 16", last)
    assert match is not None
    assert float(match[2]) > 0.75  # the same ellipse in every image reaches 0.72 at best


def test_the_same_run_predicts_the_same_bytes_again(pipeline: Pipeline, finished: dict[str, int]) -> None:
    before = SUBMISSION.read_bytes()
    assert pipeline("predict") == 0
    assert SUBMISSION.read_bytes() == before


def test_the_competition_folder_is_only_read(pipeline: Pipeline, run_copy: pathlib.Path) -> None:
    before = listing(pipeline.folder)
    for path in (run_copy / "fold0").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    one_epoch = with_set("train.epochs=1", "train.batch_size=32")
    for stage in ("folds", "train", "validate", "threshold", "predict"):
        assert pipeline(stage, "--run", "copy", "--fold", "0", *(one_epoch if stage == "train" else ())) == 0
    assert listing(pipeline.folder) == before


def test_the_demo_downloads_from_and_submits_to_the_fake_kaggle(
    finished: dict[str, int],
    demo_copy: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    stages = []

    def run_here(stage: str, *arguments: str, environment: dict[str, str]) -> None:
        stages.append(stage)
        with monkeypatch.context() as patch:
            for name, text in environment.items():
                patch.setenv(name, text)
            assert main([stage, *arguments]) == 0

    monkeypatch.setattr(demo, "run_stage", run_here)
    arguments = ["--config", "tiny.yaml", "--data", str(demo_copy), "--fold", "all", "--cars", "4", "--test-cars", "1"]
    assert main(["demo", *arguments]) == 0
    ends = ["download", "submit"]
    assert [stage for stage in stages if stage not in ends] == [
        "demo-data", "folds", "train", "validate", "threshold", "predict", "check", "score", "report"
    ]  # fmt: skip
    assert [stage for stage in stages if stage in ends] == ends
    output = capsys.readouterr().out
    scores = re.findall(r"^(public \S+  private \S+)  ", output, flags=re.MULTILINE)
    assert len(scores) == 2 and scores[0] == scores[1]  # computed here, and returned by the server
    (row,) = ledger.read(RUN / "ledger.csv")
    assert (row.runs, row.folds, row.status) == (("tiny",), (0, 1), "complete")
    assert not pathlib.Path("submissions/ledger.csv").exists()
    page = RUN / "report/index.html"
    assert output.splitlines()[-1].endswith(f" {page}") and "Dice" in page.read_text()

    stages.clear()
    assert main(["demo", *arguments, "--offline"]) == 0
    assert not set(stages) & set(ends)


# --- exit codes and messages ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
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
def test_a_wrong_command_line_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments) == 2
    assert "--help" in only_line(capsys)


def test_a_wrong_value_is_named_as_in_the_makefile(capsys: pytest.CaptureFixture) -> None:
    assert main(["demo-data", "--test-cars", "-1"]) == 2
    assert "TEST_CARS (--test-cars)" in (line := only_line(capsys)) and "-1" in line


@pytest.mark.parametrize(
    "arguments, named",
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
        (["demo-data", "--cars", "0"], "CARS=0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_problem_is_one_line_on_stderr_and_exit_code_1(
    pipeline: Pipeline, finished: dict[str, int], capsys: pytest.CaptureFixture, arguments: list[str], named: str
) -> None:
    assert pipeline(*arguments) == 1
    line = only_line(capsys)
    assert line.startswith(f"{arguments[0]}: ") and named in line


def test_a_misspelt_setting_is_a_problem_in_later_stages_too(
    pipeline: Pipeline, finished: dict[str, int], capsys: pytest.CaptureFixture
) -> None:
    assert pipeline("predict", "--set", "predict.ttta=none") == 1
    assert "predict.tta" in only_line(capsys)


def test_a_finished_run_says_so_and_changes_nothing(
    pipeline: Pipeline, finished: dict[str, int], capsys: pytest.CaptureFixture
) -> None:
    before = listing(RUN)
    assert pipeline("folds") == 0 and pipeline("train", "--fold", "all") == 0
    out = capsys.readouterr().out
    assert "runs/tiny/fold0/best.pt is trained already" in out and "runs/tiny/fold1/best.pt is trained already" in out
    assert listing(RUN) == before


def test_debug_adds_the_traceback(pipeline: Pipeline) -> None:
    with pytest.raises(Problem, match="none.yaml"):
        pipeline("folds", "--debug", "--config", "none.yaml")


@pytest.mark.parametrize(
    "arguments, complaint", [(["fly"], "fly"), (["check", "--config", "none.yaml"], "none.yaml")]
)
def test_the_command_itself_ends_with_these_codes(arguments: list[str], complaint: str) -> None:
    command = [sys.executable, "-m", "pipeline", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == (2 if arguments == ["fly"] else 1)
    assert complaint in done.stderr and "Traceback" not in done.stderr


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
