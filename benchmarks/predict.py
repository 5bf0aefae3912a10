"""`make bench-predict`: from test images to a submission, against the usual way; and the submission by itself.

Images and masks are the competition's if its folder is given, else drawn. The network is that of a trained run
(--run), else one that is trained for a minute on drawn cars. Beside the whole, with the start of the process and the
compilation, stands the steady state: what `predict` prints, which counts from the first batch. With --short prediction
is all that is measured. The last line is one JSON object of figures, null where this machine cannot measure one.
"""
import argparse
import contextlib
import csv
import itertools
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import straightforward
from benchmarks.submission import seconds_of, test_names
from pipeline import carvana
from pipeline.inference.loading import load_network
from pipeline.masks import dice, rle
from pipeline.paths import Run
from pipeline.runtime.device import describe, pick_device
from pipeline.runtime.files import write_json
from pipeline.synthetic import write_competition

ROOT = pathlib.Path(__file__).resolve().parent.parent
DISTINCT_MASKS = 1000
ENCODED_MASKS = 200
STRAIGHTFORWARD_IMAGES = 100  # each takes the same time, so more would add nothing
DRAWN_CARS, DRAWN_TEST_CARS = 13, 50
HISTOGRAMS, SEARCH_IMAGES = 50, 5088


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/carvana", help="a competition folder; without it cars are drawn")
    parser.add_argument("--run", help="a trained run, whose first fold predicts")
    parser.add_argument("--images", type=int, help="images to predict; default 800, with a GPU 20,000")
    parser.add_argument("--short", type=int, default=0, metavar="1", help="leave out what only the CPU does")
    args = parser.parse_args()
    device = pick_device()
    on_gpu = device.type == "cuda"
    images = args.images or (20_000 if on_gpu else 800)

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        data = pathlib.Path(args.data)
        is_real = (data / "test.zip").is_file()
        drawn = draw(folder, with_test_set=not is_real)
        source = data if is_real else drawn
        print(f"{describe(device)}, torch {torch.__version__}, images of {source if is_real else 'drawn cars'}")
        if args.run:
            not_needed = shutil.ignore_patterns("*last*", "*tb", "coarse.zip")
            shutil.copytree(Run(args.run).folder, folder / "runs/bench", ignore=not_needed)
        else:
            train_quickly(folder, drawn, "unet_640" if on_gpu else "cpu")
        figures: dict[str, float | None] = {}
        if not args.short:
            figures |= encoder_figures(masks_of(source, ENCODED_MASKS))
            figures |= threshold_search_figures(masks_of(source, HISTOGRAMS))
            figures |= submission_figures(folder, masks_of(source, DISTINCT_MASKS))
        figures |= prediction_figures(folder, source, images, device, with_usual=not args.short)
    print(json.dumps({key: value if value is None else round(value, 4) for key, value in figures.items()}))


def draw(folder: pathlib.Path, with_test_set: bool) -> pathlib.Path:
    """Draw a competition folder; return its path."""
    write_competition.main(folder / "drawn", cars=DRAWN_CARS, test_cars=DRAWN_TEST_CARS if with_test_set else 1)
    return folder / "drawn"


def masks_of(source: pathlib.Path, count: int) -> Iterator[NDArray[np.bool_]]:
    """Yield `count` masks of a competition folder, repeating them if there are fewer."""
    masks = carvana.CARVANA.open_masks(source)
    return (masks.read(name) for name in itertools.islice(itertools.cycle(masks.names), count))


def encoder_figures(masks: Iterator[NDArray[np.bool_]]) -> dict[str, float | None]:
    """Time the encoders in turn on each mask, so that other processes disturb all equally; return medians."""
    encoders = (rle.encode, straightforward.encode, straightforward.encode_without_corners)
    seconds: list[list[float]] = []
    for mask in masks:
        assert not mask[0, 0] and not mask[-1, -1] and len({encode(mask) for encode in encoders}) == 1
        seconds.append([seconds_of(lambda: encode(mask)) for encode in encoders])
    ours, usual, lean = np.median(seconds, axis=0)
    print(f"\n{'':60}{'ours':>9}{'usual':>9}{'ratio':>7}")
    print_row("run lengths of a mask, ms", ours * 1e3, usual * 1e3)
    print_row("run lengths of a mask, ms; a leaner one, wrong at corners", ours * 1e3, lean * 1e3)
    return {"rle_ratio": usual / ours, "rle_ratio_lean": lean / ours, "rle_ms": ours * 1e3}


def threshold_search_figures(masks: Iterator[NDArray[np.bool_]]) -> dict[str, float | None]:
    """Measure one core's time beyond the network's, for the training set: histograms, and Dice at every threshold."""
    blurred = np.random.default_rng(0).integers(256, size=(carvana.HEIGHT_PX, carvana.WIDTH_PX), dtype=np.uint8)
    counting_s = statistics.median(seconds_of(lambda: dice.histogram(blurred, mask)) for mask in masks)
    histograms = np.random.default_rng(0).integers(9999, size=(SEARCH_IMAGES, 2, dice.THRESHOLDS), dtype=np.int32)
    search_s = seconds_of(lambda: dice.best_threshold_u8(dice.dice_at_thresholds(histograms)))
    total_s = counting_s * SEARCH_IMAGES + search_s
    print_row(f"search among 256 thresholds on {SEARCH_IMAGES} images, s of one core", total_s)
    return {"threshold_search_5088_s": total_s}


def submission_figures(folder: pathlib.Path, masks: Iterator[NDArray[np.bool_]]) -> dict[str, float | None]:
    """Run `benchmarks/submission.py` in a process of its own."""
    np.save(folder / "masks.npy", np.stack([np.packbits(mask) for mask in masks]))
    arguments = ["-m", "benchmarks.submission", str(folder / "masks.npy"), str(folder)]
    figures = json.loads(run_python(arguments, cwd=ROOT).splitlines()[-1])
    for file in ("masks.npy", "submission.csv.gz", "solution.csv"):
        (folder / file).unlink()
    print_row("100,064 rows from given masks: verified and written, s", figures["write_100064_s"])
    print_row("  peak memory, the thousand masks as bits included, MB", figures["write_peak_mb"])
    print_row("  checked, s", figures["check_100064_s"])
    print_row("  scored, each row, s", figures["score_100064_s"])
    return figures


def prediction_figures(
    folder: pathlib.Path, source: pathlib.Path, images: int, device: torch.device, with_usual: bool
) -> dict[str, float | None]:
    """Time from archive to submission with the start of the process; the usual way half before and half after."""
    jpegs = test_set(folder, source, images)
    run = Run("bench")
    number = int(next((folder / run.folder).glob("fold*/best.pt")).parent.name.removeprefix("fold"))
    network, settings = load_network(folder / run.fold(number).best, device)
    threshold_u8 = dice.threshold_to_u8(json.loads((folder / run.threshold).read_text())["threshold"])
    out = folder / "usual"
    out.mkdir()

    def usual_s(paths: list[pathlib.Path]) -> float:
        if not with_usual:
            return 0.0
        return seconds_of(lambda: straightforward.predict(network, settings.data.scale, paths, out, threshold_u8))

    def run_stage(*overrides: str) -> tuple[float, float]:
        """Return the seconds of the whole process, and the images/s that it prints."""
        arguments = ["predict", "--run", "bench", "--fold", str(number), "--data", str(folder / "competition")]
        arguments += set_arguments(*overrides)
        if device.type == "cuda":
            arguments += set_arguments("data.workers=12", "predict.compile=true", "predict.batch_size=16")
        printed = ""

        def run_it() -> None:
            nonlocal printed
            printed = run_python(["-m", "pipeline", *arguments], cwd=folder)

        return seconds_of(run_it), steady_images_per_s(printed)

    usual_s(jpegs[:2])  # what happens only once: kernels are chosen, libraries loaded
    half = len(jpegs) // 2
    before_s = usual_s(jpegs[:half])
    with watch_gpu(device) as busy_fractions:
        ours_s, steady = run_stage("predict.refine=false")
    is_refined = (folder / run.fold(number).refiner.best).exists()
    refined_s, refined_steady = run_stage() if is_refined else (None, None)
    usual = len(jpegs) / (before_s + usual_s(jpegs[half:])) if with_usual else None
    busy_fraction = mean_of_second_half(busy_fractions)
    images_per_s = images / ours_s
    label = f"prediction of {images} images at 1/{settings.data.scale} with flips, images/s"
    print_row(label, images_per_s, usual)
    print_row("  the same without start and compilation", steady)
    print_row("  fraction of the time that the GPU is busy", busy_fraction)
    if refined_s:
        print_row("  the same with its refiner, images/s; beside it without", images / refined_s, images_per_s)
        print_row("  the same without start and compilation", refined_steady, steady)
    return {
        "predict_ratio": images_per_s / usual if usual else None,
        "images_per_s": images_per_s,
        "steady_images_per_s": steady,
        "usual_images_per_s": usual,
        "gpu_busy_fraction": busy_fraction,
        "refined_images_per_s": images / refined_s if refined_s else None,
        "refined_steady_images_per_s": refined_steady,
        "refined_time_ratio": refined_s / ours_s if refined_s else None,
    }


def steady_images_per_s(printed: str) -> float:
    """Return the speed that `predict` printed in its last lines: from its first batch to its last row."""
    return float(re.findall(r" rows, [\d.]+ MB, ([\d.]+) images/s\.", printed)[-1])


def mean_of_second_half(fractions: list[float]) -> float | None:
    """Return the mean of what was seen at full speed; None if nothing was."""
    second_half = fractions[len(fractions) // 2 :]
    return statistics.mean(second_half) if second_half else None


def test_set(folder: pathlib.Path, source: pathlib.Path, images: int) -> list[pathlib.Path]:
    """Write a competition folder of `images` test images, those of `source` repeated; return some as loose files.

    A folder without test images, as `make shrink TRAIN_ONLY=1` writes it, gives its training images.
    """
    has_test_images = (source / "test.zip").is_file() or (source / "test").is_dir()
    source_images = carvana.CARVANA.open_images(source, "test" if has_test_images else "train")
    names = test_names(images)
    target = folder / "competition"
    target.mkdir()
    (folder / "loose").mkdir()
    with zipfile.ZipFile(target / "test.zip", "w") as archive:
        for name, source_name in zip(names, itertools.cycle(source_images.names)):
            archive.writestr(f"test/{name}", source_images.files.read(source_name))
    with open(target / "sample_submission.csv", "w", newline="") as file:
        csv.writer(file).writerows([carvana.CARVANA.submission_header, *((name, "1 1") for name in names)])
    if (source / "shrink.json").is_file():  # which says the scale of the images
        shutil.copy(source / "shrink.json", target)
    jpegs = [folder / "loose" / name for name in names[:STRAIGHTFORWARD_IMAGES]]
    for path, source_name in zip(jpegs, itertools.cycle(source_images.names)):
        path.write_bytes(source_images.files.read(source_name))
    return jpegs


def train_quickly(folder: pathlib.Path, drawn: pathlib.Path, config_name: str) -> None:
    """Train a network whose masks look like cars, since noise has a hundred times as many runs; write a threshold."""
    arguments = ["--config", str(ROOT / f"configs/{config_name}.yaml"), "--data", str(drawn), "--run", "bench"]
    arguments += set_arguments("train.epochs=4", "train.compile=false")
    run_python(["-m", "pipeline", "folds", *arguments], cwd=folder)
    run_python(["-m", "pipeline", "train", *arguments], cwd=folder)
    write_json(folder / Run("bench").threshold, {"threshold": 0.5})


def set_arguments(*overrides: str) -> list[str]:
    return [argument for override in overrides for argument in ("--set", override)]


def run_python(arguments: list[str], cwd: pathlib.Path) -> str:
    """Run Python with this checkout's modules; return what it prints. Its errors are shown."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


@contextlib.contextmanager
def watch_gpu(device: torch.device) -> Iterator[list[float]]:
    """Fill a list with the fraction of time that the GPU is busy, several a second, when the block is left."""
    fractions: list[float] = []
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        yield fractions
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    watcher = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
    try:
        yield fractions
    finally:
        watcher.terminate()
        printed, _ = watcher.communicate()
        fractions += [int(line) / 100 for line in printed.splitlines() if line.strip().isdecimal()]


def print_row(label: str, ours: float | None, usual: float | None = None) -> None:
    """Print figures and their ratio; a dash for what is not measured."""
    ours_text, usual_text = (f"{value:.3g}" if value is not None else "-" for value in (ours, usual))
    ratio = f"{max(ours, usual) / min(ours, usual):.2f}" if ours and usual else ""
    print(f"{label:60}{ours_text:>9}{usual_text if usual else '':>9}{ratio:>7}", flush=True)


if __name__ == "__main__":
    main()
