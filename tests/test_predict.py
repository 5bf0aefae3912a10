"""Prediction: killed and continued, shared out, averaged over runs, and past pictures that cannot be read."""
import hashlib
import json
import os
import pathlib
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
from pipeline.runtime import device
from pipeline.runtime.files import sha256
from pipeline.submission import provenance, writer
from pipeline.submission.shards import Shards
from pipeline.submission.reader import read_rows
from pipeline.masks import rle
from pipeline.model import checkpoint
from pipeline.model.factory import Segmenter
from pipeline.runtime.problem import Problem

REPOSITORY = pathlib.Path(__file__).parent.parent
ROWS = carvana.ANGLES  # of the one test car
SETTINGS = """
data: {scale: 8, folds: 2, workers: 0}
model: {width: 16, depth: 2, patch: 2}
train: {epochs: 2, batch_size: 4, learning_rate: 1e-2, ema_decay: 0.9, validate_every_epochs: 2}
predict: {batch_size: 2, rows_per_shard: 3}
"""
SUBMISSIONS = pathlib.Path("submissions")
PARTS = SUBMISSIONS / ".one.shards"


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory: pytest.TempPathFactory, demo_folder: pathlib.Path) -> Iterator[None]:
    """A run of two folds, briefly trained, and two that are made of it. One thread, as in test_whole_run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("workplace"))
        pathlib.Path("one.yaml").write_text(SETTINGS)
        for stage, words in {"folds": (), "train": ("--fold", "all")}.items():
            assert main([stage, "--config", "one.yaml", "--data", str(demo_folder), *words]) == 0
        pathlib.Path("runs/one/threshold.json").write_text('{"threshold": 0.5}')
        derive("two", weights_times=1.1, scale=8)
        derive("fine", weights_times=1.0, scale=4)
        yield
    torch.set_num_threads(threads)


def derive(name: str, weights_times: float, scale: int) -> None:
    """A run with other weights than those of `one`, or that sees its pictures at another scale."""
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
def no_parts() -> Iterator[None]:
    yield
    for folder in SUBMISSIONS.glob(".*.shards"):
        shutil.rmtree(folder)


def predict(*words: str) -> int:
    return main(["predict", "--config", "one.yaml", *words])


@pytest.fixture(scope="module")
def whole(workplace: None) -> bytes:
    """The submission of the run `one`, predicted in one go."""
    assert predict() == 0
    return (SUBMISSIONS / "one.csv.gz").read_bytes()


def rows_of(path: pathlib.Path) -> dict[str, str]:
    return dict(fields for _, fields in read_rows(path, carvana.SUBMISSION_HEADER))


def mask(text: str) -> np.ndarray:
    return rle.decode(text, carvana.HEIGHT_PX, carvana.WIDTH_PX)


# --- killed and continued ---------------------------------------------------------------------------


def test_a_submission_has_its_rows_and_leaves_no_parts(whole: bytes) -> None:
    masks = [mask(text) for text in rows_of(SUBMISSIONS / "one.csv.gz").values()]
    assert len(masks) == ROWS
    assert 0.01 < np.mean(masks) < 0.99  # there is something to compare
    assert not PARTS.exists()


KILL = """
import json, os, random, signal, sys, time
from pipeline.__main__ import main
words, kills = sys.argv[1:], 20
import pipeline.predict  # once, so that a start takes no longer than a kill
sys.stdout = open(os.devnull, "w")

def start():
    child = os.fork()
    if child == 0:
        os._exit(main(words))
    return child

began = time.monotonic()
assert os.waitpid(start(), 0)[1] == 0
whole_s = time.monotonic() - began
chance = random.Random(0)
killed, parts_left = 0, set()
while killed < kills:
    child = start()
    time.sleep(chance.uniform(0, 0.8 * whole_s))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    parts_left.add(len([name for name in os.listdir("submissions/.one.shards") if name.endswith(".csv.gz")])
                   if os.path.isdir("submissions/.one.shards") else 0)
assert os.waitpid(start(), 0)[1] == 0
json.dump({"killed": killed, "parts_left": sorted(parts_left)}, sys.stderr)
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def test_killed_20_times_at_random_moments_it_ends_with_the_same_bytes(whole: bytes) -> None:
    command = [sys.executable, "-c", KILL, "predict", "--config", "one.yaml"]
    (SUBMISSIONS / "one.csv.gz").unlink()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stderr)
    assert told["killed"] == 20
    assert len(told["parts_left"]) > 1, told  # so that some kills did come in the middle
    assert (SUBMISSIONS / "one.csv.gz").read_bytes() == whole
    assert not PARTS.exists()


class Killed(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


def kill_in_part(number: int, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    write_shard = writer.write_shard

    def killed(path: pathlib.Path, rows: Iterator[writer.Row]) -> int:
        if path.name == f"{number:05d}.csv.gz":
            raise Killed
        return write_shard(path, rows)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(writer, "write_part", killed)
        predict(*words)


def test_what_is_there_is_not_predicted_again(
    whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    kill_in_part(4, monkeypatch)
    seen = []
    forward = Segmenter.forward
    monkeypatch.setattr(Segmenter, "forward", lambda self, image: seen.append(len(image)) or forward(self, image))
    assert predict() == 0
    assert "4 of 6 parts are there already: going on" in capsys.readouterr().out
    networks_and_flips = 2 * 2
    assert len(seen) == networks_and_flips * (1 + 2 + 1)  # the trial, 3 pictures in batches of 2, and the last one
    assert set(seen) == {2}  # batches of one shape
    assert (SUBMISSIONS / "one.csv.gz").read_bytes() == whole


@pytest.mark.parametrize(
    "change", ["checkpoint", "threshold", "settings", "batch", "pictures", "code", "packages", "machine", "damage"]
)
def test_parts_of_another_prediction_are_set_aside_and_found_again(
    whole: bytes, change: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: pathlib.Path
) -> None:
    kill_in_part(2, monkeypatch)
    run, words, named = pathlib.Path("runs/one"), [], change
    slip = pytest.MonkeyPatch()
    backup = shutil.copytree(run, tmp_path / "backup")
    if change == "checkpoint":
        shutil.copy("runs/two/fold0/best.pt", run / "fold0" / "best.pt")
    elif change == "threshold":
        (run / "threshold.json").write_text('{"threshold": 0.4}')
    elif change == "settings":
        words = ["--set", "predict.tta=none"]
    elif change == "batch":
        words = ["--set", "predict.batch_size=3"]
    elif change == "code":
        slip.setattr("pipeline.runtime.git.code_digest", lambda: "of another commit")
    elif change == "packages":
        slip.setattr("pipeline.runtime.git.PACKAGES", ("torch",))
    elif change == "machine":
        slip.setattr("pipeline.predict.describe_machine", lambda device: "another")
    elif change == "pictures":
        folder = config.load(run / "fold0" / "config.yaml").data.folder
        words = ["--data", str(shutil.copytree(folder, tmp_path / "competition"))]
        some = next(iter(rows_of(SUBMISSIONS / "one.csv.gz")))
        Image.new("RGB", (carvana.WIDTH_PX, carvana.HEIGHT_PX)).save(tmp_path / "competition" / some)
    else:
        (PARTS / "state.json").write_text("{")
    capsys.readouterr()
    try:
        assert predict(*words) == 0
    finally:
        slip.undo()
        shutil.rmtree(run)
        shutil.copytree(backup, run)
    out = capsys.readouterr().out
    assert ".one.parts had 2 parts" in out and "are there already" not in out
    same_rows = change in ("batch", "code", "packages", "machine", "damage")
    assert ((SUBMISSIONS / "one.csv.gz").read_bytes() == whole) == same_rows
    if change == "damage":
        assert "they are discarded" in out
    else:
        (aside,) = SUBMISSIONS.glob(".one.shards.*")
        (line,) = [line for line in out.splitlines() if "with another " in line]
        assert named in line and f": they are kept in {aside}, where" in line
        assert f"Parts of other predictions are kept in {aside}; remove" in out
        assert predict() == 0
        assert "2 of 6 parts are there already: going on" in capsys.readouterr().out
        assert not aside.exists()
    assert (SUBMISSIONS / "one.csv.gz").read_bytes() == whole


def test_only_the_last_parts_that_were_set_aside_are_kept(tmp_path: pathlib.Path) -> None:
    parts, told = Shards(tmp_path / ".x.shards", ["a", "b"], rows_per_shard=1), []
    for cut in (1, 2, 1, 3, 4, 5):
        told += parts.open({"threshold": cut})
        parts.write(0, [("a", f"{cut} 1")])
    assert len([line for line in told if "1 of 2 parts are there already: going on" in line]) == 1
    assert len([line for line in told if "the oldest parts that were set aside, are removed" in line]) == 2
    assert len(list(tmp_path.iterdir())) == 3
    assert parts.earlier({"threshold": 4}) and parts.earlier({"threshold": 3}) and not parts.earlier({"threshold": 1})


def test_a_kill_while_parts_are_removed_leaves_none_without_the_list_of_what_is_empty(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Shards(tmp_path / "parts", ["a"], rows_per_shard=1)
    parts.open({"threshold": 1})
    parts.note_bad_images({"a": "no JPEG"})
    parts.write(0, [("a", "")])
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda folder, **more: parts.bad_images_path.unlink())  # and killed
        parts.remove()
    (told,) = parts.open({"threshold": 1})
    assert "they are discarded" in told and parts.missing() == [0]


def test_a_processor_is_named_by_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_line", lambda word: f"{word}\t: Such a one\n")
    assert device.describe_machine(torch.device("cpu")).startswith("Such a one, ")


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: pathlib.Path
) -> None:
    """So that no submission names weights that did not make it."""
    path, load = pathlib.Path("runs/fine/fold0/best.pt"), checkpoint.load
    before = shutil.copy(path, tmp_path / "best.pt")

    def load_and_train_on(*given: Any, **more: Any) -> Any:
        found = load(*given, **more)
        shutil.copy("runs/two/fold0/best.pt", path)
        return found

    monkeypatch.setattr(checkpoint, "load", load_and_train_on)
    assert predict("--run", "fine") == 1
    assert "runs/fine/fold0/best.pt" in (err := capsys.readouterr().err) and "was replaced while it was loaded" in err
    shutil.copy(before, path)
    assert not (SUBMISSIONS / "fine.csv.gz").exists()


def test_parts_go_on_with_their_batch_though_a_larger_one_would_fit_now(
    whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.predict.batch_that_fits", lambda ensemble, batch_size: 1)
        kill_in_part(4, monkeypatch)
    assert predict() == 0
    assert "4 of 6 parts are there already: going on" in capsys.readouterr().out
    assert (SUBMISSIONS / "one.csv.gz").read_bytes() == whole


def test_a_part_that_is_damaged_is_a_problem_that_names_it(
    whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    kill_in_part(4, monkeypatch)
    part = PARTS / "00001.csv.gz"
    part.write_bytes(part.read_bytes()[:-20])
    assert predict() == 1
    assert "00001.csv.gz" in capsys.readouterr().err
    part.unlink()
    assert predict() == 0
    assert (SUBMISSIONS / "one.csv.gz").read_bytes() == whole


def test_joining_less_than_all_parts_is_a_problem(tmp_path: pathlib.Path) -> None:
    parts = Shards(tmp_path / "parts", ["a", "b", "c"], rows_per_shard=2)
    assert parts.open({"threshold": 1}) == [] and parts.missing() == [0, 1]
    parts.write(0, [("a", "1 2"), ("b", "")])
    with pytest.raises(Problem, match=r"parts \[1\]"):
        parts.join(tmp_path / "x.csv.gz", ("img", "rle_mask"))
    with pytest.raises(AssertionError, match="part 1 has 2 rows"):
        parts.write(1, [("c", "1 2"), ("d", "")])


def test_a_sample_of_the_rows_is_proven_where_the_config_says_so(
    whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    proven = []
    monkeypatch.setattr(
        "pipeline.predict.proven_text", lambda *given: proven.append(given) or writer.verified_rle(*given)
    )
    for every in (1, 5):
        assert predict("--set", f"predict.verify_every_rows={every}") == 0
        assert (SUBMISSIONS / "one.csv.gz").read_bytes() == whole
    assert len(proven) == ROWS + 4  # rows 0, 5, 10, 15


# --- shared out -------------------------------------------------------------------------------------


def test_two_processes_write_the_bytes_of_one(whole: bytes) -> None:
    (SUBMISSIONS / "one.csv.gz").unlink()
    command = [sys.executable, "-m", "pipeline", "predict", "--config", "one.yaml", "--gpus", "2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout and f"{ROWS} rows" in done.stdout
    assert hashlib.sha256((SUBMISSIONS / "one.csv.gz").read_bytes()).digest() == hashlib.sha256(whole).digest()


# --- pictures that cannot be read -------------------------------------------------------------------


def test_a_picture_that_cannot_be_read_is_named_or_gets_an_empty_row(
    whole: bytes, demo_copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    good = rows_of(SUBMISSIONS / "one.csv.gz")
    bad = list(good)[7]
    (demo_copy / bad).write_bytes(b"\xff\xd8 not the rest of it")
    words = ("--run", "one", "--data", str(demo_copy))
    assert predict(*words) == 1
    assert bad in capsys.readouterr().err
    kill_in_part(4, monkeypatch, *words, "--on-bad-image", "empty")  # after the bad one: it is remembered
    assert predict(*words, "--on-bad-image", "empty") == 0
    out = capsys.readouterr().out
    assert out.count(f"{bad} has an empty row: ") == 1 and "not a JPEG" in out
    assert rows_of(SUBMISSIONS / "one.csv.gz") == good | {bad: ""}
    assert provenance.find(SUBMISSIONS, sha256(SUBMISSIONS / "one.csv.gz")).bad_images == (bad,)
    (SUBMISSIONS / "one.csv.gz").write_bytes(whole)


def test_a_batch_that_does_not_fit_is_lowered_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    forward = Segmenter.forward

    def forward_of_at_most_3(self: Segmenter, image_NHWC: torch.Tensor) -> torch.Tensor:
        if len(image_NHWC) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, image_NHWC)

    monkeypatch.setattr(Segmenter, "forward", forward_of_at_most_3)
    assert predict("--run", "two", "--set", "predict.batch_size=8", "predict.tta=none") == 0
    assert "Only 3 pictures at once fit" in capsys.readouterr().out


# --- several runs -----------------------------------------------------------------------------------


def test_runs_are_averaged_with_equal_weights_or_those_of_blend(capsys: pytest.CaptureFixture) -> None:
    words = ("--runs", "one", "fine", "--fold", "0", "--set", "predict.tta=none")
    assert predict(*words) == 0
    assert "equal weights, mean cut" in capsys.readouterr().out
    equal = (SUBMISSIONS / "one+fine.csv.gz").read_bytes()
    assert main(["blend", "--config", "one.yaml", *words]) == 0
    told = capsys.readouterr().out
    blend = json.loads(pathlib.Path("runs/one+fine/blend.json").read_text())
    assert set(blend["weights"]) == {"one", "fine"} and sum(blend["weights"].values()) == pytest.approx(1)
    assert blend["images"] == 2 * carvana.ANGLES
    assert blend["oof_dice"] >= blend["oof_dice_cross_fitted"] and blend["best_single_run"] in ("one", "fine")
    assert f"{blend['gain_cross_fitted']:+.5f} against the best single run" in told
    weights = {"weights": {"one": 0.0, "fine": 1.0}, "threshold": 0.5}
    pathlib.Path("runs/one+fine/blend.json").write_text(json.dumps(blend | weights))
    assert predict(*words) == 0
    assert (SUBMISSIONS / "one+fine.csv.gz").read_bytes() != equal
    assert predict("--run", "fine", "--fold", "0", "--set", "predict.tta=none") == 0
    assert (SUBMISSIONS / "one+fine.csv.gz").read_bytes() == (SUBMISSIONS / "fine.csv.gz").read_bytes()
    shutil.rmtree("runs/one+fine")


@pytest.mark.parametrize(
    "words, named",
    [
        (["blend", "--runs", "one"], "RUNS="),
        (["blend", "--runs", "one", "none"], "No fold is trained in all of runs/one, runs/none"),
        (["predict", "--runs", "one", "none"], "runs/none has no trained fold"),
        (["cutout", "--image", "none.jpg", "--run", "one", "--out", "o"], "no none.jpg"),
        (["cutout", "--image", "a/x.jpg", "b/x.png", "--run", "one", "--out", "o"], "would both become o/x.png"),
        (["cutout", "--image", "o/x.png", "--run", "one", "--out", "o"], "overwritten"),
        (["cutout", "--image", "x.jpg", "--run", "none", "--out", "o"], "no trained fold"),
    ],
)
def test_a_problem_is_one_line(words: list[str], named: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*words, "--config", "one.yaml"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{words[0]}: ") and named in line


def test_a_blend_of_other_weights_or_runs_is_a_problem(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pathlib.Path("runs/one+two/blend.json")
    path.parent.mkdir()
    good = {"weights": {"one": 0.5, "two": 0.5}, "threshold": 0.5, "checkpoints": {"runs/one/fold0/best.pt": "0" * 64}}
    for damaged, named in (
        (json.dumps(good), "another runs/one/fold0/best.pt"),
        (json.dumps(good | {"weights": {"one": 1.0}, "checkpoints": {}}), "weighs the runs one"),
        ("{}", "damaged"),
    ):
        path.write_text(damaged)
        assert predict("--runs", "one", "two") == 1
        assert named in capsys.readouterr().err
    shutil.rmtree(path.parent)


def test_runs_with_other_folds_cannot_be_blended(capsys: pytest.CaptureFixture) -> None:
    shutil.copytree("runs/two", "runs/other")
    table = pathlib.Path("runs/other/folds.csv")
    table.write_text("\n".join([(rows := table.read_text().splitlines())[0], *(r[:-1] + "0" for r in rows[1:])]) + "\n")
    assert main(["blend", "--config", "one.yaml", "--runs", "one", "other"]) == 1
    assert "runs/other/folds.csv differ" in capsys.readouterr().err
    shutil.rmtree("runs/other")


def test_a_photo_is_cut_out(tmp_path: pathlib.Path) -> None:
    Image.new("RGB", (300, 200), (250, 250, 250)).save(tmp_path / "car.jpg")
    words = ["--config", "one.yaml", "--out", str(tmp_path / "threshold")]
    assert main(["cutout", "--image", str(tmp_path / "car.jpg"), *words]) == 0
    with Image.open(tmp_path / "threshold" / "car.png") as cut:
        assert cut.size == (300, 200) and cut.mode == "RGBA"


def test_parts_that_stay_behind_are_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Shards(tmp_path / ".x.shards", ["a"], rows_per_shard=1)
    parts.open({"a state": 1})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda folder, ignore_errors: None)
        assert parts.remove().endswith(".x.parts could not be removed; nothing needs it any more.")
    assert parts.remove() == "" and not parts.folder.exists()
