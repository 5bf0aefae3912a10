"""Prediction: killed and continued, split among processes, averaged over runs, and past images that cannot be read."""
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import carvana, config
from pipeline.__main__ import main
from pipeline.masks import rle
from pipeline.model import checkpoint
from pipeline.model.factory import Segmenter
from pipeline.runtime import device
from pipeline.runtime.files import sha256
from pipeline.runtime.problem import Problem
from pipeline.submission import provenance, writer
from pipeline.submission.reader import read_rows
from pipeline.submission.shards import Shards

REPOSITORY = pathlib.Path(__file__).parent.parent
ROWS = carvana.ANGLES  # of the one test car
SETTINGS = """
data: {scale: 8, folds: 2, workers: 0}
model: {width: 16, depth: 2, patch: 2}
train: {epochs: 2, batch_size: 4, learning_rate: 1e-2, ema_decay: 0.9, validate_every_epochs: 2}
predict: {batch_size: 2, rows_per_shard: 3}
"""
SUBMISSIONS = pathlib.Path("submissions")
SHARDS = SUBMISSIONS / ".one.shards"


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory: pytest.TempPathFactory, demo_folder: pathlib.Path) -> Iterator[None]:
    """A run of two folds, briefly trained, and two runs derived from it. One thread, as in test_whole_run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("workplace"))
        pathlib.Path("one.yaml").write_text(SETTINGS)
        for stage, arguments in {"folds": (), "train": ("--fold", "all")}.items():
            assert main([stage, "--config", "one.yaml", "--data", str(demo_folder), *arguments]) == 0
        pathlib.Path("runs/one/threshold.json").write_text('{"threshold": 0.5}')
        derive("two", weights_times=1.1, scale=8)
        derive("fine", weights_times=1.0, scale=4)
        yield
    torch.set_num_threads(threads)


def derive(name: str, weights_times: float, scale: int) -> None:
    """Copy the run `one` with scaled weights, or with another scale of its images."""
    shutil.copytree("runs/one", f"runs/{name}")
    for path in pathlib.Path("runs", name).glob("fold*/best.pt"):
        state = checkpoint.load(path, ("network", "settings"))
        state["network"] = {
            key: value * weights_times if value.is_floating_point() else value
            for key, value in state["network"].items()
        }
        state["settings"]["data"]["scale"] = scale
        checkpoint.save(path, state)


@pytest.fixture(autouse=True)
def remove_shards() -> Iterator[None]:
    yield
    for folder in SUBMISSIONS.glob(".*.shards"):
        shutil.rmtree(folder)


def predict(*arguments: str) -> int:
    return main(["predict", "--config", "one.yaml", *arguments])


@pytest.fixture(scope="module")
def whole(workplace: None) -> bytes:
    """The submission of the run `one`, predicted in one go."""
    assert predict() == 0
    return (SUBMISSIONS / "one.csv.gz").read_bytes()


def rows_of(path: pathlib.Path) -> dict[str, str]:
    return dict(fields for _, fields in read_rows(path, carvana.CARVANA.submission_header))


def decode(text: str) -> np.ndarray:
    return rle.decode(text, carvana.HEIGHT_PX, carvana.WIDTH_PX)


# --- killed and continued ---------------------------------------------------------------------------


def test_a_submission_has_its_rows_and_leaves_no_shards(whole: bytes) -> None:
    masks = [decode(text) for text in rows_of(SUBMISSIONS / "one.csv.gz").values()]
    assert len(masks) == ROWS
    assert 0.01 < np.mean(masks) < 0.99  # there is something to compare
    assert not SHARDS.exists()


KILL = """
import json, os, random, signal, sys, time
from pipeline.__main__ import main
arguments, kills = sys.argv[1:], 20
import pipeline.predict  # once, so that a start takes no longer than a kill
sys.stdout = open(os.devnull, "w")

def start():
    child = os.fork()
    if child == 0:
        os._exit(main(arguments))
    return child

began = time.monotonic()
assert os.waitpid(start(), 0)[1] == 0
whole_s = time.monotonic() - began
rng = random.Random(0)
killed, shards_left = 0, set()
while killed < kills:
    child = start()
    time.sleep(rng.uniform(0, 0.8 * whole_s))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    shards_left.add(len([name for name in os.listdir("submissions/.one.shards") if name.endswith(".csv.gz")])
                    if os.path.isdir("submissions/.one.shards") else 0)
assert os.waitpid(start(), 0)[1] == 0
json.dump({"killed": killed, "shards_left": sorted(shards_left)}, sys.stderr)
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def test_killed_20_times_at_random_moments_it_ends_with_the_same_bytes(whole: bytes) -> None:
    command = [sys.executable, "-c", KILL, "predict", "--config", "one.yaml"]
    (SUBMISSIONS / "one.csv.gz").unlink()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stderr)
    assert counts["killed"] == 20
    assert len(counts["shards_left"]) > 1, counts  # so some kills did come in the middle
    assert (SUBMISSIONS / "one.csv.gz").read_bytes() == whole
    assert not SHARDS.exists()


class Killed(BaseException):
    """Stands for kill -9: none of our code runs after it."""


def kill_in_shard(number: int, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    write_shard = writer.write_shard

    def killed(path: pathlib.Path, rows: Iterator[writer.Row]) -> int:
        if path.name == f"{number:05d}.csv.gz":
            raise Killed
        return write_shard(path, rows)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(writer, "write_shard", killed)
        predict(*arguments)


def test_shards_on_disk_are_not_predicted_again(
    whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    kill_in_shard(4, monkeypatch)
    batch_sizes = []
    forward = Segmenter.forward
    monkeypatch.setattr(
        Segmenter, "forward", lambda self, image: batch_sizes.append(len(image)) or forward(self, image)
    )
    assert predict() == 0
    assert "4 of 6 shards" in capsys.readouterr().out
    networks_and_flips = 2 * 2
    assert len(batch_sizes) == networks_and_flips * (1 + 2 + 1)  # the trial, 3 images in batches of 2, and the last one
    assert set(batch_sizes) == {2}  # batches of one shape
    assert (SUBMISSIONS / "one.csv.gz").read_bytes() == whole


@pytest.mark.parametrize(
    "difference",
    ["checkpoints", "threshold", "settings", "batch_size", "test_images", "code", "packages", "machine", "damage"],
)
def test_shards_of_another_prediction_are_set_aside_and_found_again(
    whole: bytes,
    difference: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: pathlib.Path,
) -> None:
    kill_in_shard(2, monkeypatch)
    backup = shutil.copytree("runs/one", tmp_path / "backup")
    with pytest.MonkeyPatch.context() as patch:
        arguments = make_difference(difference, patch, tmp_path)
        capsys.readouterr()
        try:
            assert predict(*arguments) == 0
        finally:
            shutil.rmtree("runs/one")
            shutil.copytree(backup, "runs/one")
    out = capsys.readouterr().out
    assert "submissions/.one.shards had 2 shards" in out and "of 6 shards" not in out
    same_rows = difference in ("batch_size", "code", "packages", "machine", "damage")
    assert ((SUBMISSIONS / "one.csv.gz").read_bytes() == whole) == same_rows
    folders = list(SUBMISSIONS.glob(".one.shards.*"))
    if difference == "damage":
        assert folders == []
    else:
        (folder,) = folders
        (line,) = [line for line in out.splitlines() if "had 2 shards" in line]
        assert difference in line and str(folder) in line
        assert str(folder) in out.splitlines()[-2]  # and once more at the end
        assert predict() == 0
        assert "2 of 6 shards" in capsys.readouterr().out
        assert not folder.exists()
    assert (SUBMISSIONS / "one.csv.gz").read_bytes() == whole


def make_difference(difference: str, patch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> list[str]:
    """Change what the rows of run `one` depend on, or damage its state.json; return arguments for `predict`."""
    run = pathlib.Path("runs/one")
    if difference == "checkpoints":
        shutil.copy("runs/two/fold0/best.pt", run / "fold0" / "best.pt")
    elif difference == "threshold":
        (run / "threshold.json").write_text('{"threshold": 0.4}')
    elif difference == "settings":
        return ["--set", "predict.tta=none"]
    elif difference == "batch_size":
        return ["--set", "predict.batch_size=3"]
    elif difference == "code":
        patch.setattr("pipeline.runtime.git.code_digest", lambda: "of another commit")
    elif difference == "packages":
        patch.setattr("pipeline.runtime.git.PACKAGES", ("torch",))
    elif difference == "machine":
        patch.setattr("pipeline.submission.plan.describe_machine", lambda device: "another")
    elif difference == "test_images":
        folder = config.load(run / "fold0" / "config.yaml").data.folder
        copy = shutil.copytree(folder, tmp_path / "competition")
        name = next(iter(rows_of(SUBMISSIONS / "one.csv.gz")))
        Image.new("RGB", (carvana.WIDTH_PX, carvana.HEIGHT_PX)).save(copy / name)
        return ["--data", str(copy)]
    else:
        (SHARDS / "state.json").write_text("{")
    return []


def test_only_the_last_shards_that_were_set_aside_are_saved(tmp_path: pathlib.Path) -> None:
    shards, notes = Shards(tmp_path / ".x.shards", ["a", "b"], rows_per_shard=1), []
    for threshold_u8 in (1, 2, 1, 3, 4, 5):
        notes += shards.resume_or_start({"threshold_u8": threshold_u8})
        shards.write_shard(0, [("a", f"{threshold_u8} 1")])
    assert len([note for note in notes if "1 of 2 shards" in note]) == 1
    assert len([note for note in notes if "the oldest shards that were set aside" in note]) == 2
    assert len(list(tmp_path.iterdir())) == 3
    saved = [number for number in range(1, 6) if shards.find_state({"threshold_u8": number})]
    assert saved == [3, 4, 5]  # the two that were set aside last, and the one in place


def test_a_kill_while_shards_are_removed_leaves_none_without_the_list_of_bad_images(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Shards(tmp_path / "shards", ["a"], rows_per_shard=1)
    shards.resume_or_start({"threshold_u8": 1})
    shards.note_bad_images({"a": "no JPEG"})
    shards.write_shard(0, [("a", "")])
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda folder, **more: shards.bad_images_path.unlink())  # and killed
        shards.remove()
    (note,) = shards.resume_or_start({"threshold_u8": 1})
    assert str(shards.folder) in note and "deleted" in note and shards.missing() == [0]


def test_a_processor_is_named_by_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_line", lambda name: f"{name}\t: Some model\n")
    assert device.describe_machine(torch.device("cpu")).startswith("Some model, ")


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: pathlib.Path
) -> None:
    """So that no submission names weights that did not make it."""
    path, load = pathlib.Path("runs/fine/fold0/best.pt"), checkpoint.load
    before = shutil.copy(path, tmp_path / "best.pt")

    def load_and_replace(*args: Any, **kwargs: Any) -> Any:
        state = load(*args, **kwargs)
        shutil.copy("runs/two/fold0/best.pt", path)
        return state

    monkeypatch.setattr(checkpoint, "load", load_and_replace)
    assert predict("--run", "fine") == 1
    assert "runs/fine/fold0/best.pt" in (err := capsys.readouterr().err) and "replaced" in err
    shutil.copy(before, path)
    assert not (SUBMISSIONS / "fine.csv.gz").exists()


def test_shards_are_continued_with_their_batch_size_though_a_larger_one_would_fit_now(
    whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.predict.batch_that_fits", lambda ensemble, batch_size: 1)
        kill_in_shard(4, monkeypatch)
    assert predict() == 0
    assert "4 of 6 shards" in capsys.readouterr().out
    assert (SUBMISSIONS / "one.csv.gz").read_bytes() == whole


def test_a_damaged_shard_is_a_problem_that_names_it(
    whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    kill_in_shard(4, monkeypatch)
    shard = SHARDS / "00001.csv.gz"
    shard.write_bytes(shard.read_bytes()[:-20])
    assert predict() == 1
    assert "00001.csv.gz" in capsys.readouterr().err
    shard.unlink()
    assert predict() == 0
    assert (SUBMISSIONS / "one.csv.gz").read_bytes() == whole


def test_joining_some_of_the_shards_is_a_problem_that_names_the_missing_ones(tmp_path: pathlib.Path) -> None:
    shards = Shards(tmp_path / "shards", ["a", "b", "c"], rows_per_shard=2)
    assert shards.resume_or_start({"threshold_u8": 1}) == [] and shards.missing() == [0, 1]
    shards.write_shard(0, [("a", "1 2"), ("b", "")])
    with pytest.raises(Problem, match=r"shards \[1\]"):
        shards.join(tmp_path / "x.csv.gz", ("img", "rle_mask"))
    with pytest.raises(AssertionError, match="shard 1 has 2 rows"):
        shards.write_shard(1, [("c", "1 2"), ("d", "")])


def test_as_many_rows_are_verified_as_the_config_says(whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    verified = []
    monkeypatch.setattr(
        "pipeline.predict.verified_rle", lambda *args: verified.append(args) or writer.verified_rle(*args)
    )
    for every in (1, 5):
        assert predict("--set", f"predict.verify_every_rows={every}") == 0
        assert (SUBMISSIONS / "one.csv.gz").read_bytes() == whole
    assert len(verified) == ROWS + 4  # rows 0, 5, 10, 15


# --- several processes ------------------------------------------------------------------------------


def test_two_processes_write_the_bytes_of_one(whole: bytes) -> None:
    (SUBMISSIONS / "one.csv.gz").unlink()
    command = [sys.executable, "-m", "pipeline", "predict", "--config", "one.yaml", "--gpus", "2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout and f"{ROWS} rows" in done.stdout
    assert hashlib.sha256((SUBMISSIONS / "one.csv.gz").read_bytes()).digest() == hashlib.sha256(whole).digest()


# --- images that cannot be read ---------------------------------------------------------------------


def test_an_image_that_cannot_be_read_is_named_or_gets_an_empty_row(
    whole: bytes, demo_copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    good = rows_of(SUBMISSIONS / "one.csv.gz")
    bad = list(good)[7]
    (demo_copy / bad).write_bytes(b"\xff\xd8 not the rest of it")
    arguments = ("--run", "one", "--data", str(demo_copy))
    assert predict(*arguments) == 1
    assert bad in capsys.readouterr().err
    kill_in_shard(4, monkeypatch, *arguments, "--on-bad-image", "empty")  # after the bad one: it is remembered
    state = json.loads((SHARDS / "state.json").read_text())
    assert state["on_bad_image"] == "empty"
    assert predict(*arguments, "--on-bad-image", "empty") == 0
    out = capsys.readouterr().out
    assert out.count(f"{bad} has an empty row: ") == 1 and "not a JPEG" in out
    assert rows_of(SUBMISSIONS / "one.csv.gz") == good | {bad: ""}
    assert provenance.find_by_hash(SUBMISSIONS, sha256(SUBMISSIONS / "one.csv.gz")).bad_images == (bad,)
    (SUBMISSIONS / "one.csv.gz").write_bytes(whole)


def test_a_batch_that_does_not_fit_is_lowered_and_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    forward = Segmenter.forward

    def forward_of_at_most_3(self: Segmenter, image_NHWC: torch.Tensor) -> torch.Tensor:
        if len(image_NHWC) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, image_NHWC)

    monkeypatch.setattr(Segmenter, "forward", forward_of_at_most_3)
    assert predict("--run", "two", "--set", "predict.batch_size=8", "predict.tta=none") == 0
    assert "Only 3 images at once fit" in capsys.readouterr().out


# --- several runs -----------------------------------------------------------------------------------


def test_runs_are_averaged_with_equal_weights_or_those_of_blend(capsys: pytest.CaptureFixture) -> None:
    arguments = ("--runs", "one", "fine", "--fold", "0", "--set", "predict.tta=none")
    assert predict(*arguments) == 0
    assert "equal weights" in capsys.readouterr().out
    equal = (SUBMISSIONS / "one+fine.csv.gz").read_bytes()
    assert main(["blend", "--config", "one.yaml", *arguments]) == 0
    out = capsys.readouterr().out
    blend = json.loads(pathlib.Path("runs/one+fine/blend.json").read_text())
    assert set(blend["weights"]) == {"one", "fine"} and sum(blend["weights"].values()) == pytest.approx(1)
    assert blend["images"] == 2 * carvana.ANGLES
    assert blend["oof_dice"] >= blend["oof_dice_cross_fitted"] and blend["best_single_run"] in ("one", "fine")
    gain = re.search(r"(\S+) against the best single run", out)
    assert gain and float(gain[1]) == pytest.approx(blend["gain_cross_fitted"], abs=6e-6)  # of five and six digits
    weights = {"weights": {"one": 0.0, "fine": 1.0}, "threshold": 0.5}
    pathlib.Path("runs/one+fine/blend.json").write_text(json.dumps(blend | weights))
    assert predict(*arguments) == 0
    assert (SUBMISSIONS / "one+fine.csv.gz").read_bytes() != equal
    assert predict("--run", "fine", "--fold", "0", "--set", "predict.tta=none") == 0
    assert (SUBMISSIONS / "one+fine.csv.gz").read_bytes() == (SUBMISSIONS / "fine.csv.gz").read_bytes()
    shutil.rmtree("runs/one+fine")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["blend", "--runs", "one"], "RUNS="),
        (["blend", "--runs", "one", "none"], "No fold is trained in all of runs/one, runs/none"),
        (["predict", "--runs", "one", "none"], "runs/none has no trained fold"),
        (["cutout", "--image", "none.jpg", "--run", "one", "--out", "o"], "no none.jpg"),
        (["cutout", "--image", "x.jpg", "--run", "none", "--out", "o"], "no trained fold"),
    ],
)
def test_a_problem_is_one_line(arguments: list[str], named: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*arguments, "--config", "one.yaml"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{arguments[0]}: ") and named in line


def test_a_blend_of_other_weights_or_runs_is_a_problem(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pathlib.Path("runs/one+two/blend.json")
    path.parent.mkdir()
    good = {"weights": {"one": 0.5, "two": 0.5}, "threshold": 0.5, "checkpoints": {"runs/one/fold0/best.pt": "0" * 64}}
    for damaged, named in (
        (json.dumps(good), "another runs/one/fold0/best.pt"),
        (json.dumps(good | {"weights": {"one": 1.0}, "checkpoints": {}}), "the runs one"),
        ("{}", "damaged"),
    ):
        path.write_text(damaged)
        assert predict("--runs", "one", "two") == 1
        assert named in capsys.readouterr().err
    for stage in ("validate", "predict", "report"):  # of the blend alone, as if it were a run with networks
        assert main([stage, "--config", "one.yaml", "--run", "one+two"]) == 1
        assert 'name those runs: RUNS="a b" for predict' in capsys.readouterr().err
    shutil.rmtree(path.parent)


def test_runs_with_other_folds_cannot_be_blended(capsys: pytest.CaptureFixture) -> None:
    shutil.copytree("runs/two", "runs/other")
    table = pathlib.Path("runs/other/folds.csv")
    table.write_text("\n".join([(rows := table.read_text().splitlines())[0], *(r[:-1] + "0" for r in rows[1:])]) + "\n")
    assert main(["blend", "--config", "one.yaml", "--runs", "one", "other"]) == 1
    assert "runs/other/folds.csv differ" in capsys.readouterr().err
    shutil.rmtree("runs/other")


def test_cutout_writes_an_image_of_the_same_size_with_transparency(tmp_path: pathlib.Path) -> None:
    Image.new("RGB", (300, 200), (250, 250, 250)).save(tmp_path / "car.jpg")
    arguments = ["--config", "one.yaml", "--out", str(tmp_path / "cutouts")]
    assert main(["cutout", "--image", str(tmp_path / "car.jpg"), *arguments]) == 0
    with Image.open(tmp_path / "cutouts" / "car.png") as image:
        assert image.size == (300, 200) and image.mode == "RGBA"


def test_shards_that_cannot_be_removed_are_reported(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(tmp_path / ".x.shards", ["a"], rows_per_shard=1)
    shards.resume_or_start({"a state": 1})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda folder, ignore_errors: None)
        assert str(shards.folder) in shards.remove()
    assert shards.remove() == "" and not shards.folder.exists()
