"""Runs with a refiner: through all stages, stopped and resumed, with a missing or a wrong one."""
import gzip
import json
import pathlib
import shutil
import signal

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import plain_folder
from tiny_run import RUN, Killed, Pipeline, assert_equal, only_line, read_log, with_set
from torch import nn

from pipeline import config
from pipeline.__main__ import main
from pipeline.data import shrink
from pipeline.data.images import to_u8, upsample
from pipeline.data.tiles import unsure_cells
from pipeline.inference.edge import EdgeRefiner
from pipeline.inference.ensemble import Ensemble, Member
from pipeline.inference.oof import COARSE, OofStore, read_oof_histograms
from pipeline.inference.probability import to_u8_on_device
from pipeline.inference.stored_threshold import read_threshold_u8
from pipeline.inference.tta import TTA_SETS
from pipeline.kaggle.ledger import Row
from pipeline.kaggle.reproduce import folds_of_runs, overrides_of
from pipeline.kaggle.submit import reason_to_predict
from pipeline.masks import dice
from pipeline.model import checkpoint
from pipeline.model.ema import Ema
from pipeline.model.refiner import build_refiner
from pipeline.paths import Run
from pipeline.report.errors import upsample_stored
from pipeline.runtime.files import sha256
from pipeline.runtime.problem import Problem
from pipeline.training.networks import build_refiner as build_network_of_refiner
from pipeline.training.previews import worst_window

REFINE = (
    "refine.epochs=2", "refine.batch_size=8", "refine.tiles_per_image=3", "refine.tile_px=64", "refine.margin_px=12",
    "refine.scale=2", "refine.width=4", "refine.depth=2", "refine.validate_every_epochs=2",
)  # fmt: skip
STEPS_PER_EPOCH = 12  # 32 images in batches of 8, each with 3 tiles
SUBMISSION = pathlib.Path("submissions/tiny.csv.gz")


@pytest.fixture(scope="module")
def refined(pipeline: Pipeline, trained: None) -> dict[str, int]:
    """All stages after `train`, one after another; the exit code of each."""
    codes = {"refine": pipeline("refine", *with_set(*REFINE))}
    stages = ("validate", "threshold", "predict", "check", "score", "report")
    return codes | {stage: pipeline(stage, "--fold", "0") for stage in stages}


@pytest.fixture
def refined_copy(refined: dict[str, int]) -> pathlib.Path:
    """The refined run under another name, `--run refined_copy`, for a test to damage."""
    copy = pathlib.Path("runs/refined_copy")
    shutil.rmtree(copy, ignore_errors=True)
    return pathlib.Path(shutil.copytree(RUN, copy))


def assert_same_refiner(one: pathlib.Path, other: pathlib.Path) -> None:
    for name, keys in {"refiner.pt": ("network",), "refiner.last.pt": ("network", "average", "optimizer")}.items():
        states = [checkpoint.load(fold / name, keys) for fold in (one, other)]
        for key in keys:
            assert_equal(states[0][key], states[1][key])


# --- all stages ------------------------------------------------------------------------------------------------------


def test_every_stage_ends_with_0(refined: dict[str, int]) -> None:
    assert set(refined.values()) == {0}


def test_a_refiner_leaves_its_files_beside_those_of_the_network(refined: dict[str, int]) -> None:
    names = {path.name for path in (RUN / "fold0").iterdir()}
    assert {"refiner.pt", "refiner.last.pt", "refiner.last.previous.pt", "refiner.log.jsonl", "refiner.tb"} <= names
    assert {"refiner.config.yaml", "coarse.zip", "best.pt", "last.pt", "log.jsonl", "tb", "config.yaml"} <= names
    rows = [json.loads(line) for line in (RUN / "fold0/refiner.log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and rows[0]["val_dice"] is None
    assert rows[1]["train_loss"] < rows[0]["train_loss"] and 0 < rows[1]["val_dice"] < 1 and rows[1]["tiles_per_s"] > 0


def test_the_refined_mask_is_better_than_the_coarse_one(refined: dict[str, int]) -> None:
    rows = [json.loads(line) for line in (RUN / "fold0/refiner.log.jsonl").read_text().splitlines()]
    assert rows[-1]["val_dice"] > read_log(RUN / "fold0")[-1]["val_dice"]


def test_what_validate_keeps_shows_the_refined_mask_to_the_pixel(pipeline: Pipeline, refined: dict[str, int]) -> None:
    oof = read_oof_histograms(Run("tiny").oof(0))
    store = OofStore(Run("tiny").oof_predictions(0))
    assert oof.refiner_sha256 == sha256(RUN / "fold0/refiner.pt") and oof.predicted_with.endswith(", refined")
    masks = config_dataset(pipeline.folder)
    for name, histogram in list(zip(oof.names, oof.histograms))[:4]:
        assert np.array_equal(dice.histogram(store.read(name), masks.truth(name)), histogram)
        assert store.read(name, COARSE).shape == (160, 240)


def config_dataset(folder: pathlib.Path):  # type: ignore[no-untyped-def]
    from pipeline.carvana import CARVANA

    return CARVANA.open_dataset(folder)


def test_the_threshold_and_the_submission_name_the_refiner(refined: dict[str, int]) -> None:
    assert json.loads((RUN / "threshold.json").read_text())["predicted_with"].endswith(", refined")
    origin = json.loads(pathlib.Path("submissions/tiny.json").read_text())
    paths = {f"runs/tiny/fold0/{name}": sha256(RUN / "fold0" / name) for name in ("best.pt", "refiner.pt")}
    assert origin["checkpoints"] == paths


def test_the_batch_size_does_not_change_a_row(
    pipeline: Pipeline, refined: dict[str, int], refined_copy: pathlib.Path
) -> None:
    overrides = with_set("predict.batch_size=3", "predict.rows_per_shard=5", "data.workers=1")
    assert pipeline("predict", "--run", "refined_copy", "--fold", "0", *overrides) == 0
    assert rows_of(pathlib.Path("submissions/refined_copy.csv.gz")) == rows_of(SUBMISSION)


def rows_of(path: pathlib.Path) -> str:
    """The text of a submission; its compressed bytes depend on the shards."""
    return gzip.decompress(path.read_bytes()).decode()


def test_predict_refine_false_leaves_the_refiner_out(
    pipeline: Pipeline, refined: dict[str, int], refined_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    without = ("--run", "refined_copy", "--fold", "0", "--set", "predict.refine=false")
    assert pipeline("predict", *without) == 0
    assert "refined" in capsys.readouterr().out  # the threshold was chosen on refined predictions
    plain = sha256(pathlib.Path("submissions/refined_copy.csv.gz"))
    assert plain != sha256(SUBMISSION)
    remove_refiner(refined_copy)
    assert pipeline("predict", "--run", "refined_copy", "--fold", "0") == 1  # its threshold is of refined predictions
    assert "was predicted by another runs/refined_copy/fold0/refiner.pt" in capsys.readouterr().err
    (refined_copy / "threshold.json").write_bytes((RUN / "threshold.json").read_bytes())
    shutil.rmtree(refined_copy / "oof")
    assert pipeline("predict", "--run", "refined_copy", "--fold", "0") == 0
    assert sha256(pathlib.Path("submissions/refined_copy.csv.gz")) == plain


def remove_refiner(run: pathlib.Path) -> None:
    for path in (run / "fold0").glob("refiner*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_tiles_have_a_tta_set_of_their_own(
    pipeline: Pipeline, refined: dict[str, int], refined_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ("--run", "refined_copy", "--fold", "0", "--set")
    oof = refined_copy / "oof" / "fold0.npz"
    histograms = {}
    for tta, of_tiles in (("none", "null"), ("hflip", "null"), ("hflip", "none"), ("hflip", "hflip")):
        assert pipeline("validate", *arguments, f"predict.tta={tta}", f"predict.refiner_tta={of_tiles}") == 0
        with np.load(oof) as stored:
            histograms[tta, of_tiles] = stored["histograms"]
            differs = f", refined with predict.refiner_tta {of_tiles}" if of_tiles == "none" else ", refined"
            assert str(stored["predicted_with"]) == f"predict.tta {tta}, data.scale 8{differs}"
        assert f"predict.tta {tta}{differs}, over" in capsys.readouterr().out
    same = np.array_equal(histograms["hflip", "null"], histograms["hflip", "hflip"])
    assert same and len({array.tobytes() for array in histograms.values()}) == 3
    assert pipeline("validate", *arguments, "predict.refiner_tta=vflip") == 1
    assert "predict.refiner_tta is 'vflip': it must be one of none, hflip" in capsys.readouterr().err


def test_predictions_from_before_the_refiner_are_pointed_out(
    pipeline: Pipeline, refined: dict[str, int], refined_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ("--run", "refined_copy", "--fold", "0")
    assert pipeline("validate", *arguments, "--set", "predict.refine=false") == 0
    capsys.readouterr()
    assert pipeline("threshold", *arguments) == 0
    assert "was predicted without runs/refined_copy/fold0/refiner.pt" in capsys.readouterr().out


def test_a_blend_of_a_refined_and_a_plain_run(
    pipeline: Pipeline, refined: dict[str, int], tiny_runs: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(tiny_runs / "tiny", "runs/plain", dirs_exist_ok=True)
    arguments = ("--runs", "tiny", "plain", "--fold", "0")
    assert pipeline("blend", *arguments) == 0
    blend = json.loads(pathlib.Path("runs/tiny+plain/blend.json").read_text())
    assert set(blend["checkpoints"]) == {
        "runs/tiny/fold0/best.pt", "runs/tiny/fold0/refiner.pt", "runs/plain/fold0/best.pt"
    }  # fmt: skip
    blend["weights"] = {"tiny": 0.5, "plain": 0.5}  # whatever weights so short a training deserves
    pathlib.Path("runs/tiny+plain/blend.json").write_text(json.dumps(blend))
    assert pipeline("predict", *arguments) == 0
    assert pipeline("predict", *arguments, "--set", "predict.refine=false") == 1
    assert "was made with runs/tiny/fold0/refiner.pt, other than this prediction" in capsys.readouterr().err


def test_submit_predicts_again_only_after_a_change_of_the_refiner(refined: dict[str, int]) -> None:
    run, refiner = Run("tiny"), RUN / "fold0/refiner.pt"
    before = refiner.read_bytes()
    assert reason_to_predict(run, [0]) is None
    try:
        refiner.write_bytes(b"another")
        assert "made by other weights" in str(reason_to_predict(run, [0]))
    finally:
        refiner.write_bytes(before)
    assert "SET=predict.refine=false" in str(reason_to_predict(run, [0], ["predict.refine=false"]))


def test_a_row_from_before_the_refiner_is_reproduced_without_it(refined: dict[str, int]) -> None:
    common = {"time": "2026-11-27T12:00:00Z", "file": "submissions/tiny.csv.gz", "sha256": "0" * 64}
    best, refiner = (f"runs/tiny/fold0/{name}={'1' * 64}" for name in ("best.pt", "refiner.pt"))
    common |= {"message": "x tag", "runs": "tiny"}
    with_refiner, without = (Row.model_validate(common | {"checkpoints": f"{best} {more}"}) for more in (refiner, ""))
    assert overrides_of(with_refiner) == () and overrides_of(without) == ("predict.refine=false",)
    assert folds_of_runs(with_refiner.model_copy(update={"runs": ("tiny", "b")})) == {"tiny": "0"}


def test_find_batch_measures_tiles_too(
    pipeline: Pipeline, refined: dict[str, int], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pipeline.runtime.memory", "pipeline.training.find_batch"):
        monkeypatch.setattr(f"{module}.MAX_BATCH_TRIED", {"cpu": 2})
    assert pipeline("find-batch", *with_set(*REFINE)) == 0
    images, tiles = capsys.readouterr().out.splitlines()[-2:]
    assert images.startswith("2 images at once or more fit") and images.endswith("at data.scale 8.")
    assert tiles.startswith("2 tiles at once or more fit") and tiles.endswith("at refine.tile_px 64.")


def test_a_preview_shows_the_worst_place() -> None:
    wrong = np.zeros((30, 40), bool)
    wrong[20:24, 31:36] = True
    rows, columns = worst_window(wrong, 10)
    assert wrong[rows, columns].sum() == 20 and wrong[rows, columns].shape == (10, 10)
    assert worst_window(wrong, 99) == (slice(0, 30), slice(0, 40))


def test_a_cutout_is_refined(pipeline: Pipeline, refined: dict[str, int], jpeg: bytes) -> None:
    pathlib.Path("car.jpg").write_bytes(jpeg)
    alphas = []
    for out, overrides in (("refined", []), ("plain", with_set("predict.refine=false"))):
        arguments = ("--image", "car.jpg", "--out", out, *overrides)
        assert pipeline("cutout", "--fold", "0", *arguments) == 0
        alphas.append(cv2.imread(f"{out}/car.png", cv2.IMREAD_UNCHANGED)[..., 3])
    assert alphas[0].shape == alphas[1].shape and (alphas[0] != alphas[1]).any()


def test_the_report_shows_what_refinement_changed(refined: dict[str, int]) -> None:
    page = (RUN / "report/index.html").read_text()
    assert "What refinement changed" in page and 'id="layer-coarse"' in page and 'class="layer coarse"' in page
    images = pd.read_csv(RUN / "report/images.csv")
    first = images.iloc[0]
    coarse_u8 = upsample_stored(OofStore(Run("tiny").oof_predictions(0)).read(first["img"], COARSE), 8, 1280, 1918)
    coarse = coarse_u8 >= read_threshold_u8(RUN / "threshold.json")
    assert first["coarse_predicted_px"] == coarse.sum()
    lost = images[[f"coarse_errors_{band}_px" for band in ("1", "2", "4", "8", "far")]].sum(axis=1)
    size = images["coarse_truth_px"] + images["coarse_predicted_px"]
    assert np.allclose(1 - lost / size, images["coarse_dice"])  # the bands add up
    assert (images["coarse_truth_px"] == images["truth_px"]).all()


# --- other data ------------------------------------------------------------------------------------------------------


def test_a_plain_folder_of_one_object_is_refined_at_full_size(tiny_place: None, tmp_path: pathlib.Path) -> None:
    folder = plain_folder.draw(tmp_path / "discs", binary=True)
    pathlib.Path("discs.yaml").write_text("""
data: {kind: folder, height: 64, width: 96, scale: 4, folds: 2, workers: 0}
model: {width: 8, depth: 2}
train: {epochs: 2, batch_size: 2, learning_rate: 1e-2, ema_decay: 0.9}
refine: {scale: 1, tile_px: 32, margin_px: 4, width: 4, depth: 2, batch_size: 2, tiles_per_image: 2, epochs: 2}
""")
    common = ["--config", "discs.yaml", "--data", str(folder), "--fold", "0"]
    assert [main([stage, *common]) for stage in ("folds", "train", "validate", "threshold", "report")] == [0] * 5
    assert main(["cutout", *common, "--image", str(folder / "images/p00.jpg"), "--out", "discs"]) == 0
    oof = read_oof_histograms(Run("discs").oof(0))
    assert oof.refiner_sha256 and OofStore(Run("discs").oof_predictions(0)).read(oof.names[0]).shape == (64, 96)


def test_a_shrunk_copy_is_refined_at_its_own_scale_and_no_finer(
    demo_folder: pathlib.Path, trained: None, run_copy: pathlib.Path, tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
) -> None:
    half = tmp_path / "half"
    shrink.main(demo_folder, half, scale=2, quality=95)
    remove_refiner(run_copy)
    common = ["refine", "--config", "tiny.yaml", "--data", str(half), "--run", "copy", *with_set(*REFINE)]
    assert main([*common, "--set", "refine.scale=1"]) == 1
    assert f"{half} is a copy at 1/2, but refine.scale is 1" in only_line(capsys)
    assert main(common) == 0


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, STEPS_PER_EPOCH + 4])
def test_a_refiner_that_was_stopped_ends_with_the_same_weights(
    pipeline: Pipeline, refined: dict[str, int], run_copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
    signals: None, step: int,
) -> None:  # fmt: skip
    update = Ema.update

    def update_and_interrupt(self: Ema, number: int) -> None:
        update(self, number)
        if number == step:
            signal.raise_signal(signal.SIGINT)

    remove_refiner(run_copy)
    arguments = ("refine", "--run", "copy", *with_set(*REFINE))
    with monkeypatch.context() as patch:
        patch.setattr(Ema, "update", update_and_interrupt)
        assert pipeline(*arguments) == 1
    assert checkpoint.load(run_copy / "fold0/refiner.last.pt", ("step",))["step"] == step + 1
    assert pipeline(*arguments, "--set", "data.workers=1") == 0
    assert_same_refiner(run_copy / "fold0", RUN / "fold0")


def test_a_refiner_that_is_killed_between_its_two_files_ends_with_the_same_weights(
    pipeline: Pipeline, refined: dict[str, int], run_copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_refiner(run_copy)
    (run_copy / "fold0/coarse.zip").unlink()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_between(patch, run_copy / "fold0/refiner.pt", "refiner.last.pt")
        pipeline("refine", "--run", "copy", *with_set(*REFINE))
    assert (run_copy / "fold0/refiner.pt").exists()
    assert pipeline("refine", "--run", "copy", *with_set(*REFINE)) == 0
    assert_same_refiner(run_copy / "fold0", RUN / "fold0")


def kill_between(patch: pytest.MonkeyPatch, best: pathlib.Path, last: str) -> None:
    """Let the training end where its best checkpoint is written and its last one is not."""
    save = checkpoint.save

    def killed(path: pathlib.Path, *arguments: object, **options: object) -> None:
        if path.name == last and best.exists():
            raise Killed
        save(path, *arguments, **options)  # type: ignore[arg-type]

    patch.setattr(checkpoint, "save", killed)


def test_train_goes_on_into_the_refiner(pipeline: Pipeline, refined: dict[str, int], run_copy: pathlib.Path) -> None:
    remove_refiner(run_copy)
    assert pipeline("train", "--run", "copy", *with_set(*REFINE)) == 0
    assert_same_refiner(run_copy / "fold0", RUN / "fold0")


def test_a_trained_refiner_is_not_trained_again(
    pipeline: Pipeline, refined: dict[str, int], run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    (run_copy / "fold0/coarse.zip").unlink()  # which is not needed any more
    assert pipeline("refine", "--run", "copy", *with_set(*REFINE)) == 0
    assert "refiner.pt is trained already" in capsys.readouterr().out and not (run_copy / "fold0/coarse.zip").exists()


def test_a_refiner_starts_from_another_one_of_the_same_fold(
    pipeline: Pipeline, refined: dict[str, int], run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    parent = RUN / "fold0/refiner.pt"
    assert pipeline("refine", *with_set(*REFINE, "refine.epochs=3")) == 1
    line = only_line(capsys)
    assert "runs/tiny/fold0/refiner.* is trained for all of its 2 epochs" in line
    overrides = line.partition('SET="')[2].partition('"')[0].split()
    assert overrides == [f"refine.init_from={parent}", "refine.epochs=1"]
    remove_refiner(run_copy)
    assert pipeline("refine", "--run", "copy", *with_set(*REFINE, *overrides)) == 0
    state = checkpoint.load(run_copy / "fold0/refiner.pt", ("settings", "trained_on"))
    assert state["settings"]["refine"]["init_sha256"] == sha256(parent) and len(state["trained_on"]) == 2
    first_losses = [read_losses(run / "fold0")[0] for run in (run_copy, RUN)]
    assert first_losses[0] < first_losses[1]
    hyper = config.parse(state["settings"], "").refine
    saved = checkpoint.load(parent, ("network",))["network"]
    assert_equal(build_network_of_refiner(hyper, pretrained=True).state_dict(), saved)

    remove_refiner(run_copy)
    shutil.copytree(run_copy / "fold0", run_copy / "fold1")
    override = f"refine.init_from={parent}"
    assert pipeline("refine", "--run", "copy", "--fold", "1", *with_set(*REFINE, override)) == 1
    assert "too good" in only_line(capsys)
    other = with_set(*REFINE, f"refine.init_from={RUN}/fold0/best.pt")
    assert pipeline("refine", "--run", "copy", *other) == 1
    assert "which is of another network" in only_line(capsys)


def read_losses(fold: pathlib.Path) -> list[float]:
    return [json.loads(line)["train_loss"] for line in (fold / "refiner.log.jsonl").read_text().splitlines()]


def test_a_network_of_another_config_is_refined_by_its_own_settings(
    pipeline: Pipeline, refined: dict[str, int], run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    remove_refiner(run_copy)
    other = with_set(*REFINE, "train.batch_size=16", "train.accumulate=3", "model.width=99", "data.exclude=none.csv")
    assert pipeline("refine", "--run", "copy", *other) == 0
    message = "was trained with other settings (data.exclude: None -> none.csv, model.width: 16 -> 99"
    assert message in capsys.readouterr().out
    assert_same_refiner(run_copy / "fold0", RUN / "fold0")


def test_predictions_of_another_network_are_not_trained_on(
    pipeline: Pipeline, refined: dict[str, int], run_copy: pathlib.Path
) -> None:
    before, coarse = (RUN / "fold0/coarse.zip").read_bytes(), run_copy / "fold0/coarse.zip"
    for damaged in (before[: len(before) // 2], before.replace(before[-64:], b"0" * 64)):  # half; another fingerprint
        remove_refiner(run_copy)
        coarse.write_bytes(damaged)
        assert pipeline("refine", "--run", "copy", *with_set(*REFINE)) == 0
        assert coarse.read_bytes() == before
        assert_same_refiner(run_copy / "fold0", RUN / "fold0")


SHORT = with_set(*REFINE, "refine.epochs=1", "refine.short_epochs=2")


def test_a_refiner_learns_from_the_predictions_of_a_short_training(
    pipeline: Pipeline, refined: dict[str, int], run_copy: pathlib.Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fold, ended = run_copy / "fold0", RUN / "fold0"
    remove_refiner(run_copy)
    assert pipeline("train", "--run", "copy", *SHORT) == 0
    out = capsys.readouterr().out
    assert "Fold 0: short training of unet of" in out and "epoch 2/2" in out and "the refiner learns from what" in out
    assert sha256(fold / "best.pt") == sha256(ended / "best.pt")
    short, best = (checkpoint.load(fold / name, ("network", "log")) for name in ("short.pt", "best.pt"))
    assert len(short["log"]) == 2 and not same_weights(short["network"], best["network"])
    coarse = (fold / "coarse.zip").read_bytes()
    assert coarse != (ended / "coarse.zip").read_bytes()
    assert pipeline("validate", "--run", "copy", "--fold", "0") == 0
    assert read_oof_histograms(Run("copy").oof(0)).refiner_sha256 == sha256(fold / "refiner.pt")

    # The same bits again, after a kill in the short training; those of the network itself where none is asked for
    refiner = (fold / "refiner.pt").read_bytes()
    for path in (*fold.glob("short*.pt"), fold / "coarse.zip"):
        path.unlink()
    remove_refiner(run_copy)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_between(patch, fold / "short.pt", "short.last.pt")
        pipeline("train", "--run", "copy", *SHORT)
    assert (fold / "short.pt").exists() and not (fold / "coarse.zip").exists()
    assert pipeline("train", "--run", "copy", *SHORT) == 0
    assert (fold / "refiner.pt").read_bytes() == refiner and (fold / "coarse.zip").read_bytes() == coarse
    remove_refiner(run_copy)
    assert pipeline("refine", "--run", "copy", *with_set(*REFINE)) == 0
    assert_same_refiner(fold, ended)


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def test_a_short_training_is_there_and_like_the_long_one(
    pipeline: Pipeline, refined: dict[str, int], run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    fold = run_copy / "fold0"
    remove_refiner(run_copy)
    assert pipeline("refine", "--run", "copy", *SHORT) == 1
    missing = "There is no runs/copy/fold0/short.pt, but refine.short_epochs is 2; run `make train` with it"
    assert missing in only_line(capsys)
    shutil.copy(fold / "best.pt", fold / "short.pt")
    assert pipeline("refine", "--run", "copy", *SHORT) == 1
    assert "short.pt is of a training of 3 epochs, but refine.short_epochs is 2; set it back" in only_line(capsys)
    state = checkpoint.load(fold / "short.pt", ("settings", "folds"))
    state["settings"]["train"] |= {"epochs": 2, "validate_every_epochs": 2}
    checkpoint.save(fold / "short.pt", state | {"folds": "of others"})
    assert pipeline("refine", "--run", "copy", *SHORT) == 1
    assert "short.pt was trained with other settings than runs/copy/fold0/best.pt (folds.csv)" in only_line(capsys)
    state["settings"]["train"] |= {"init_sha256": "0" * 64}
    checkpoint.save(fold / "short.pt", state)
    assert pipeline("refine", "--run", "copy", *SHORT) == 1
    assert "short.pt was trained with other settings than runs/copy/fold0/best.pt (train.init_sha" in only_line(capsys)
    assert pipeline("train", "--run", "copy", *SHORT, "--set", "refine.short_epochs=3") == 1
    assert "refine.short_epochs is 3, but train.epochs is 3; set it lower, or to null" in only_line(capsys)


def test_a_short_training_of_other_epochs_is_a_problem(
    pipeline: Pipeline, refined: dict[str, int], run_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    remove_refiner(run_copy)
    assert pipeline("train", "--run", "copy", *SHORT, "--set", "refine.short_epochs=1") == 0
    capsys.readouterr()
    assert pipeline("train", "--run", "copy", *SHORT) == 1
    line = capsys.readouterr().err
    assert "runs/copy/fold0/refiner.* was begun with other settings (refine.short_epochs: 1 -> 2" in line
    remove_refiner(run_copy)
    assert pipeline("train", "--run", "copy", *SHORT) == 1
    line = capsys.readouterr().err
    assert "fold0/short.* is of a training of 1 epoch," in line and "refine.short_epochs is 2 now; set it back" in line


# --- problems --------------------------------------------------------------------------------------------------------


def test_a_config_without_the_section_has_nothing_to_refine(
    pipeline: Pipeline, trained: None, capsys: pytest.CaptureFixture
) -> None:
    assert pipeline("refine") == 1
    assert "no section refine" in only_line(capsys)


def test_a_network_must_be_trained_before_it_is_refined(
    pipeline: Pipeline, new_run: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    assert pipeline("refine", "--run", "new", *with_set(*REFINE)) == 1
    assert "runs/new/fold0/best.pt" in only_line(capsys)


def test_other_settings_of_a_refiner_that_was_begun_are_a_problem(
    pipeline: Pipeline, refined: dict[str, int], capsys: pytest.CaptureFixture
) -> None:
    assert pipeline("refine", *with_set(*REFINE, "refine.width=8")) == 1
    assert "refine.width: 4 -> 8" in only_line(capsys)


def test_a_refiner_of_another_network_is_not_used(
    pipeline: Pipeline, refined_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    best = checkpoint.load(refined_copy / "fold0/best.pt", keys=())
    checkpoint.save(refined_copy / "fold0/best.pt", best | {"note": "trained again"})
    for stage in ("validate", "predict", "refine"):
        assert pipeline(stage, "--run", "refined_copy", "--fold", "0", *with_set(*REFINE)) == 1
        assert "another runs/refined_copy/fold0/best.pt" in only_line(capsys)
    assert pipeline("validate", "--run", "refined_copy", "--fold", "0", "--set", "predict.refine=false") == 0


def test_a_missing_refiner_is_a_problem_where_the_settings_ask_for_one(
    pipeline: Pipeline, new_run: pathlib.Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.refine.main", lambda *arguments: None)  # as if it had been killed before
    assert pipeline("train", "--run", "new", *with_set(*REFINE, "train.epochs=1")) == 0
    capsys.readouterr()
    assert pipeline("validate", "--run", "new", "--fold", "0") == 1
    assert "no runs/new/fold0/refiner.pt" in only_line(capsys)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no zip"])
def test_a_damaged_refiner_is_a_problem(
    pipeline: Pipeline, refined_copy: pathlib.Path, capsys: pytest.CaptureFixture, damage: bytes
) -> None:
    (refined_copy / "fold0/refiner.pt").write_bytes(damage)
    assert pipeline("validate", "--run", "refined_copy", "--fold", "0") == 1
    assert "runs/refined_copy/fold0/refiner.pt is damaged" in only_line(capsys)


@pytest.mark.parametrize("override", ["refine.tile_px=100", "refine.margin_px=64", "refine.scale=4", "data.scale=1"])
def test_tiles_that_do_not_fit_are_refused(tiny_place: None, override: str) -> None:
    with pytest.raises(Problem, match=override.split("=")[0].split(".")[1]):
        config.load(pathlib.Path("tiny.yaml"), ["refine.epochs=2", override])


def test_several_classes_have_no_refiner(tiny_place: None) -> None:
    with pytest.raises(Problem, match="refine is for task.kind binary"):
        of_classes = ["data.kind=folder", "task.kind=multiclass", "task.classes=3", "refine.epochs=1"]
        config.load(pathlib.Path("tiny.yaml"), of_classes)


# --- one image -------------------------------------------------------------------------------------------------------


class Coarse(nn.Module):
    """Logits that follow the green channel."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, image_NHWC: torch.Tensor) -> torch.Tensor:
        return (image_NHWC[..., 1].float()[:, None] - 128) / 10


def images(count: int) -> dict[int, torch.Tensor]:
    """Discs of several sizes at 1/4 and at full size, 158x150."""
    full = np.zeros((count, 158, 150, 3), np.uint8)
    for number, image in enumerate(full):
        cv2.circle(image, (70, 80), 20 + 10 * number, (0, 255, 0), -1)
        image[:] = cv2.GaussianBlur(image, (15, 15), 0)
    small = np.stack([cv2.resize(image, (38, 40), interpolation=cv2.INTER_AREA) for image in full])
    return {1: torch.from_numpy(full), 4: torch.from_numpy(small)}


def refined_ensemble(network: nn.Module, transforms: str = "none", margin_px: int = 4) -> Ensemble:
    refiner = EdgeRefiner(network.eval(), scale=1, tile_px=32, margin_px=margin_px, transforms=TTA_SETS[transforms])
    return Ensemble([Member(Coarse(), 4, TTA_SETS[transforms], 1.0, refiner)], 158, 150)


def test_a_refiner_that_has_learnt_nothing_leaves_the_coarse_prediction_as_it_is() -> None:
    ensemble = refined_ensemble(build_refiner(4, 2, 2))
    plain = Ensemble([Member(Coarse(), 4, TTA_SETS["none"], 1.0)], 158, 150)
    one, other = ensemble(images(3)).int(), plain(images(3)).int()
    assert (one - other).abs().max() <= 2  # of 255: rounding


@pytest.mark.parametrize("transforms", TTA_SETS)
def test_every_tta_set_brings_tiles_back_to_their_place(transforms: str) -> None:
    """The refiner has learnt nothing: all but the smoothing of a resized tile is undone. The largest shift is 5."""
    ensemble = refined_ensemble(build_refiner(4, 2, 2), transforms, margin_px=8)
    coarse = Ensemble([Member(Coarse(), 4, TTA_SETS[transforms], 1.0)], 158, 150)
    difference = (ensemble(images(3)).int() - coarse(images(3)).int()).abs()
    assert difference.max() <= (16 if "scales" in transforms else 2) and difference.float().mean() < 0.5


def test_an_image_without_an_unsure_cell_stays_as_it_is() -> None:
    black = {scale: torch.zeros_like(each) for scale, each in images(2).items()}
    assert not refined_ensemble(Everything())(black).any()


class Everything(nn.Module):
    """A refiner that sees the object in every pixel."""

    def forward(self, tile_NHWC: torch.Tensor) -> torch.Tensor:
        return torch.full((*tile_NHWC.shape[:3],), 20.0)[:, None]


def test_only_tiles_around_unsure_cells_are_replaced() -> None:
    batch = images(3)
    ensemble, plain = refined_ensemble(Everything()), Ensemble([Member(Coarse(), 4, TTA_SETS["none"], 1.0)], 158, 150)
    before, after = plain(batch), ensemble(batch)
    coarse_u8 = to_u8_on_device(Coarse()(batch[4])[:, 0].sigmoid()).numpy()
    cells = np.stack([unsure_cells(each) for each in coarse_u8])
    unsure = torch.from_numpy(cells.repeat(4, axis=1).repeat(4, axis=2))[:, :158, :150]
    assert unsure.any() and (after[unsure] == 255).all()
    assert (after[:, :8] == before[:, :8]).all()  # far from the discs
    assert ((after == before) | (after == 255)).all()


@pytest.mark.parametrize("transforms", ["none", "hflip"])
def test_an_image_is_refined_alike_alone_and_in_a_batch(transforms: str) -> None:
    torch.manual_seed(0)
    network = build_refiner(4, 2, 2)
    nn.init.normal_(network.network.head.weight)
    ensemble, batch = refined_ensemble(network, transforms), images(3)
    batched = ensemble(batch)
    alone = torch.cat([ensemble({scale: each[n : n + 1] for scale, each in batch.items()}) for n in range(3)])
    assert torch.equal(batched, alone)


def test_the_maps_of_a_batch_are_those_of_its_images() -> None:
    """`read_all` is what a GPU uses, `read` what a CPU does."""
    torch.manual_seed(0)
    network = build_refiner(4, 2, 2)
    nn.init.normal_(network.network.head.weight)
    ((_, maps),) = refined_ensemble(network).predict(images(3)).refined
    assert np.array_equal(maps.read_all().numpy(), np.stack([maps.read(image) for image in range(3)]))


def test_members_with_and_without_a_refiner_are_averaged_at_full_size() -> None:
    batch, half = images(2), 0.5
    refiner = EdgeRefiner(Everything(), scale=1, tile_px=32, margin_px=4, transforms=TTA_SETS["none"])
    refined, plain = (Member(Coarse(), 4, TTA_SETS["none"], half, each) for each in (refiner, None))
    both = Ensemble([refined, plain], 158, 150).predict_unrounded(batch)
    coarse = [upsample(Coarse()(batch[4])[n, 0].sigmoid().numpy(), 4, 158, 150) for n in range(2)]
    single = refined_ensemble(Everything()).predict_unrounded(batch)
    assert np.allclose(both, (single + torch.from_numpy(np.stack(coarse))) / 2, atol=1e-6)
    assert to_u8(coarse[0]).max() == 255
