"""The jobs: each runs commands of this project as a user would, and returns the figures that they give."""
import json
import pathlib
import re
import shutil
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import config_speed, predict
from benchmarks.config_speed import DRAWN_CARS
from benchmarks.gpu_proof import checks
from benchmarks.gpu_proof.process import ROOT, Ended, run
from pipeline import config
from pipeline.config import Settings
from pipeline.data.competition import read_stored_scale
from pipeline.model import checkpoint
from pipeline.paths import Run
from pipeline.runtime.files import write_json, write_text

FOLD = 0
HALF_IMAGES, FULL_IMAGES = 15_000, 2_000
REHEARSED_CARS = 4
Figures = dict[str, Any]


class Stopped(Exception):
    """The time of a piece is over; what the job has done so far is saved."""


class Blocked(Exception):
    """A job cannot begin yet. The text says what comes before it."""


class Failed(Exception):
    """A job did not give its figures. The text is the last line of the command that failed."""


@dataclass(frozen=True)
class Clock:
    """When a piece must end, by time.monotonic(); None: never."""

    deadline: float | None = None

    def left(self) -> float | None:
        return None if self.deadline is None else self.deadline - time.monotonic()


@dataclass(frozen=True)
class Proof:
    """What is run, on what, and where."""

    rehearsal: bool
    name: str  # with which the names of its runs begin
    work: pathlib.Path  # for what is drawn and copied
    data: pathlib.Path | None  # the competition's files, or a copy by `make shrink`; None: drawn cars
    trained: pathlib.Path  # the config that is trained whole
    configs: list[pathlib.Path]  # those whose speed is measured

    @property
    def run(self) -> Run:
        """Return the run that is trained whole."""
        return self.named_run(self.trained.stem)

    def named_run(self, name: str) -> Run:
        return Run(f"{self.name}_{name}")

    def folder(self, settings: Settings) -> pathlib.Path:
        """Return a folder with the images of a config: the competition's if they are fine enough, else drawn ones."""
        finest = min(settings.data.scale, settings.refine.scale if settings.refine else settings.data.scale)
        kind = settings.data.kind
        if kind == "carvana" and self.data is not None and finest % read_stored_scale(self.data) == 0:
            return self.data
        return config_speed.draw(kind, self.work / f"drawn_{kind}", REHEARSED_CARS if self.rehearsal else DRAWN_CARS)

    def images(self, folder: pathlib.Path) -> str:
        """Say in a row what the images of a folder are."""
        if folder != self.data:
            return "drawn"
        scale = read_stored_scale(folder)
        return "real" if scale == 1 else f"real, a copy at 1/{scale}"


# --- tests and speed -------------------------------------------------------------------------------------------------


def tests(proof: Proof, clock: Clock) -> Figures:
    """Run the tests that need a GPU, and those that use one if there is one. A rehearsal runs the first on the CPU."""
    chosen = ["tests/test_gpu.py"] if proof.rehearsal else ["-m", "gpu"]
    environment = {"REHEARSE_GPU_TESTS": "1"} if proof.rehearsal else {}
    outcomes: dict[str, int] = {}
    failed: list[str] = []
    for arguments in (chosen,) if proof.rehearsal else (chosen, ["tests/test_on_device.py"]):
        where = ["--rootdir", str(ROOT), "-p", "no:cacheprovider", "-rfE"]
        paths = [str(ROOT / each) if each.startswith("tests") else each for each in arguments]
        paths += [str(ROOT / "tests")] if "-m" in arguments else []
        ended = finished(run(["-m", "pytest", *where, *paths], clock.left(), environment), codes=(0, 1))
        summaries = [line for line in ended.printed.splitlines() if re.search(r"\d (passed|failed|error).* in ", line)]
        for count, outcome in re.findall(r"(\d+) (passed|failed|skipped|error)", "".join(summaries[-1:])):
            outcomes[outcome] = outcomes.get(outcome, 0) + int(count)
        failed += re.findall(r"^(?:FAILED|ERROR) \S*?(test_\w+\.py::\S+)", ended.printed, re.MULTILINE)
        if ended.code and not failed:
            raise Failed(ended.last_line)
    if failed or not outcomes.get("passed"):
        raise Failed(f"{len(failed)} tests failed: {', '.join(failed[:5])}" if failed else "no test passed")
    return outcomes


def speed(proof: Proof, clock: Clock, path: pathlib.Path) -> Figures:
    """Measure the steps of a config; figures as benchmarks/config_speed.py returns them."""
    folder = proof.folder(config.load(path))
    arguments = ["-m", "benchmarks.train", "--config", str(path), "--data", str(folder)]
    arguments += ["--steps", "5", "--compile"] if proof.rehearsal else []
    arguments += predict.set_arguments(workers_of(config.load(path)))
    figures = last_json(finished(run(arguments, clock.left())))
    ways = [measured for measured in figures.values() if isinstance(measured, dict)]
    if all("error" in measured for measured in ways):
        raise Failed(str(ways[0]["error"]) if ways else "nothing was measured")
    return figures | {"images": proof.images(folder)}


def find_batch(proof: Proof, clock: Clock, path: pathlib.Path) -> Figures:
    """Find the largest batch of a config, and of its refiner."""
    folder, its_run = proof.folder(config.load(path)), proof.named_run(f"batch_{path.stem}")
    arguments = ["--config", str(path), "--data", str(folder), "--run", its_run.name]
    stage("folds", clock, *arguments)
    ended = stage("find-batch", clock, *arguments, "--fold", str(FOLD))
    shutil.rmtree(its_run.folder, ignore_errors=True)
    fits = re.findall(r"^(\d+) (images|tiles) at once (or more )?fit", ended.printed, re.MULTILINE)
    if not fits:
        raise Failed(ended.last_line)
    return {noun: int(count) for count, noun, _ in fits} | {"or_more": any(more for *_, more in fits)}


def reference(proof: Proof, clock: Clock) -> Figures:
    """Measure our loop against the reference's, as `make bench-train` does."""
    arguments = ["--steps", "1", "--batch", "1"] if proof.rehearsal else []
    return last_json(finished(run(["-m", "benchmarks.train", *arguments], clock.left())))


# --- from training to a score ----------------------------------------------------------------------------------------


def train(proof: Proof, clock: Clock) -> Figures:
    """Train a fold whole, and its refiner if it has one, or what is left of it."""
    folder = proof.folder(config.load(proof.trained))
    arguments = arguments_of(proof, folder)
    stage("folds", clock, *arguments)
    stage("train", clock, *arguments, "--fold", str(FOLD))
    fold = proof.run.fold(FOLD)
    figures = {"network": training_figures(fold.log), "images": proof.images(folder)}
    return figures | ({"refiner": training_figures(fold.refiner.log)} if fold.refiner.log.is_file() else {})


def training_figures(log: pathlib.Path) -> Figures:
    """Return what a `log.jsonl` says: minutes of all epochs, speed of those after the first, Dice of the last."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    noun = "images" if "images_per_s" in rows[0] else "tiles"
    settled = rows[1:] or rows  # without the compilation
    return {
        "epochs": len(rows), "minutes": round(sum(row["seconds"] for row in rows) / 60, 2),
        f"{noun}_per_s": round(statistics.median(row[f"{noun}_per_s"] for row in settled), 1),
        "waited_fraction": round(statistics.median(row["waited_fraction"] for row in settled), 4),
        "val_dice": max((row["val_dice"] for row in rows if row["val_dice"] is not None), default=None),
        "device": rows[-1]["device"],
    }  # fmt: skip


def validate(proof: Proof, clock: Clock) -> Figures:
    """Predict the held-out images with TTA, and choose the threshold."""
    needs_training(proof)
    folder = proof.folder(config.load(proof.trained))
    arguments = arguments_of(proof, folder)
    seconds = stage("validate", clock, *arguments).seconds
    stage("threshold", clock, *arguments)
    chosen = json.loads(proof.run.threshold.read_text())
    keys = ("threshold", "oof_dice", "oof_dice_cross_fitted", "images")
    return {key: chosen[key] for key in keys} | {"validate_s": round(seconds, 1), "of": proof.images(folder)}


def score(proof: Proof, clock: Clock) -> Figures:
    """Predict the test images and score them, where the folder has test images and a solution.csv."""
    needs_training(proof, with_threshold=True)
    folder = proof.folder(config.load(proof.trained))
    if lacking := [name for name in ("test.zip", "solution.csv") if not (folder / name).is_file()]:
        return {"skipped": f"{folder} has no {' and no '.join(lacking)}"}
    arguments = arguments_of(proof, folder)
    printed = stage("predict", clock, *arguments).printed
    stage("check", clock, *arguments, *(["--force"] if proof.rehearsal else []))  # so short a training is refused
    line = stage("score", clock, *arguments).last_line
    scores = re.fullmatch(r"public (\S+)  private (\S+)  images (\d+)", line)
    if scores is None:
        raise Failed(line)
    public, private, images = scores.groups()
    public_dice = None if public == "none" else float(public)
    speed = predict.steady_images_per_s(printed)
    return {"public": public_dice, "private": float(private), "images": int(images), "images_per_s": speed,
            "of": proof.images(folder)}


# --- speed of prediction ---------------------------------------------------------------------------------------------


def predict_half(proof: Proof, clock: Clock) -> Figures:
    """Predict many images with the trained network, compiled, at its own scale."""
    needs_training(proof, with_threshold=True)
    return predict_many(proof, clock, "half", 24 if proof.rehearsal else HALF_IMAGES, None)


def predict_full(proof: Proof, clock: Clock) -> Figures:
    """Predict images with the same network at full size, for which it was not trained: only the speed counts."""
    needs_training(proof, with_threshold=True)
    return predict_many(proof, clock, "full", 8 if proof.rehearsal else FULL_IMAGES, 1)


def predict_many(proof: Proof, clock: Clock, name: str, images: int, scale: int | None) -> Figures:
    """Predict so many test images; figures for the whole process and for its steady state."""
    settings, copy = config.load(proof.trained), proof.named_run(name)
    data = settings.data.model_copy(update={"scale": scale} if scale else {})
    source = proof.folder(settings.model_copy(update={"data": data, "refine": None if scale else settings.refine}))
    goes_on = copy.shards.is_dir()
    copy_run(proof.run, copy, scale)
    competition = test_set(proof.work / name, source, images)
    overrides = predict.set_arguments(workers_of(settings.model_copy(update={"data": data})), "predict.compile=true")
    arguments = ["--run", copy.name, "--data", str(competition), *overrides]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # no context: the stage needs the memory
    with predict.watch_gpu(device) as busy_fractions:
        ended = stage("predict", clock, *arguments, "--fold", str(FOLD))
    busy = predict.mean_of_second_half(busy_fractions)
    figures = {
        "images": images, "scale": scale or settings.data.scale, "seconds": round(ended.seconds, 1),
        "images_per_s": predict.steady_images_per_s(ended.printed), "gpu_busy_fraction": busy and round(busy, 3),
        "of": proof.images(source), "was_resumed": goes_on,
    }  # fmt: skip
    copy.submission.unlink(missing_ok=True)
    for folder in (copy.folder, proof.work / name):
        shutil.rmtree(folder)
    return figures


def copy_run(source: Run, target: Run, scale: int | None) -> None:
    """Copy a trained fold and its threshold, so that the submission of `source` stays. scale: that it predicts at."""
    fold, to = source.fold(FOLD), target.fold(FOLD)
    if not to.best.is_file() or to.best.stat().st_mtime < fold.best.stat().st_mtime:
        shutil.rmtree(target.folder, ignore_errors=True)
        to.folder.mkdir(parents=True)
        if scale is None:
            for path in (*fold.checkpoints(), fold.config):
                shutil.copyfile(path, to.folder / path.name)
        else:  # without its refiner, which belongs to the very bytes of best.pt
            state = checkpoint.load(fold.best, keys=("settings", "network"))
            state["settings"]["data"]["scale"], state["settings"]["refine"] = scale, None
            checkpoint.save(to.best, state)
            write_text(to.config, config.dump(config.parse(state["settings"], where=str(fold.best))))
    write_json(target.threshold, {"threshold": json.loads(source.threshold.read_text())["threshold"]})


def test_set(folder: pathlib.Path, source: pathlib.Path, images: int) -> pathlib.Path:
    """Return a competition folder of so many test images, made of those of `source` unless it is there."""
    competition = folder / "competition"
    table = competition / "sample_submission.csv"
    if not table.is_file() or table.read_text().count("\n") != images + 1:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        predict.test_set(folder, source, images)
    return competition


# --- commands --------------------------------------------------------------------------------------------------------


def arguments_of(proof: Proof, folder: pathlib.Path) -> list[str]:
    workers = predict.set_arguments(workers_of(config.load(proof.trained)))
    return ["--config", str(proof.trained), "--data", str(folder), "--run", proof.run.name, *workers]


def workers_of(settings: Settings) -> str:
    """Return the override of `data.workers` for this machine."""
    return f"data.workers={checks.fitting_workers(settings)}"


def needs_training(proof: Proof, with_threshold: bool = False) -> None:
    """Raise Blocked unless the fold is trained whole, and its threshold chosen."""
    fold = proof.run.fold(FOLD)
    epochs = len(fold.log.read_text().splitlines()) if fold.log.is_file() else 0
    if not fold.best.is_file() or epochs < config.load(proof.trained).train.epochs:
        raise Blocked(f"{fold.folder} is not trained whole; run the piece that trains it first")
    if with_threshold and not proof.run.threshold.is_file():
        raise Blocked(f"{proof.run.threshold} is missing; run the piece that validates first")


def stage(name: str, clock: Clock, *arguments: str) -> Ended:
    """Run a stage of the pipeline. Raises Stopped and Failed."""
    return finished(run(["-m", "pipeline", name, *arguments], clock.left()))


def finished(ended: Ended, codes: tuple[int, ...] = (0,)) -> Ended:
    """Return a command that ended well. Raises Stopped if its time was over, Failed if it ended otherwise."""
    if ended.code in codes:
        return ended
    if ended.was_stopped:
        raise Stopped
    raise Failed(ended.last_line or f"exit code {ended.code}")


def last_json(ended: Ended) -> Figures:
    """Return the JSON object that a benchmark prints last; warnings may follow it."""
    lines = [line for line in ended.printed.splitlines() if line.startswith("{")]
    if not lines:
        raise Failed(ended.last_line)
    return json.loads(lines[-1])
