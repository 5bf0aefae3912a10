"""`make bench-report`: time the report of a whole training set, 5,088 out-of-fold images; prediction is not included.

Images and masks are those of the competition folder if there is one, else drawn; fewer of them are repeated under other
names. Predictions are made from the masks, at half size, with soft edges that are off by a pixel or so. The last line
is one JSON object of figures.
"""
import argparse
import contextlib
import itertools
import json
import pathlib
import tempfile
import time
import zipfile
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.submission import peak_mb, seconds_of
from pipeline import carvana, config
from pipeline.config import Settings
from pipeline.data import grouping
from pipeline.inference.oof import oof_writer, png
from pipeline.masks import dice, rle
from pipeline.paths import Run
from pipeline.report import report
from pipeline.report.errors import upsample_stored
from pipeline.runtime.files import replacing, sha256, write_json, write_text
from pipeline.runtime.progress import THREADS, in_order
from pipeline.synthetic import write_competition

SCALE, FOLDS = 2, 5
DRAWN_CARS = 13
DISTINCT_CARS = 20  # whose masks are turned into predictions
WRONG_FRACTION = 0.02  # of the masks, which get a hole, so that there are suspects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/carvana", help="a competition folder; without one, cars are drawn")
    parser.add_argument("--cars", type=int, default=carvana.TRAIN_CARS, help="with fewer, seconds_5088 is null")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, source = pathlib.Path(name), pathlib.Path(args.data).resolve()
        images = args.cars * carvana.ANGLES
        is_real = (source / "train.zip").is_file()
        if not is_real:
            source = folder / "drawn"
            write_competition.main(source, cars=DRAWN_CARS, test_cars=1)
        print(f"{images} images of {'real' if is_real else 'drawn'} cars, {THREADS} threads")
        with contextlib.chdir(folder):
            run = Run("bench")
            write_run(run, source, folder / "data", args.cars)
            cpu_started = time.process_time()
            seconds = seconds_of(lambda: report.main(run, [f"data.folder={folder / 'data'}"], []))
            cpu_seconds = time.process_time() - cpu_started
            page_mb = run.report_page.stat().st_size / 1e6
            suspects = len((run.report / "suspects.csv").read_text().splitlines()) - 1
    print(f"{images} images in {seconds:.0f} s, {cpu_seconds:.0f} s of one core; a page of {page_mb:.1f} MB")
    figures = {
        "seconds_5088": round(seconds, 1) if args.cars == carvana.TRAIN_CARS else None,
        "cpu_seconds": round(cpu_seconds, 1),
        "images": images,
        "suspects": suspects,
        "page_mb": round(page_mb, 1),
        "peak_mb": None if (peak := peak_mb()) is None else round(peak),
    }
    print(json.dumps(figures))


def write_run(run: Run, source: pathlib.Path, data: pathlib.Path, cars: int) -> None:
    """Write a competition folder with this many cars at `data`, and a run as if trained and validated on it."""
    masks = carvana.CARVANA.open_masks(source)
    distinct = masks.names[: DISTINCT_CARS * carvana.ANGLES]
    names = [carvana.image_name(f"{car:012x}", code) for car in range(cars) for code in carvana.ANGLE_CODES]
    source_of = dict(zip(names, itertools.cycle(distinct)))
    write_images(data, source, source_of)
    makes = [f"make {number}" for number in range(min(cars, 27))]
    make_of_car = {f"{car:012x}": makes[car % len(makes)] for car in range(cars)}
    write_competition.write_table(data / "metadata.csv.zip", [("id", "make"), *make_of_car.items()])

    predicted = dict(zip(distinct, in_order(lambda name: prediction(masks.read(name), distinct.index(name)), distinct)))
    wrong = set(np.random.default_rng(0).permutation(names)[: round(WRONG_FRACTION * len(names))].tolist())
    rows: list[write_competition.Row] = [carvana.CARVANA.submission_header]
    for name, source_name in source_of.items():
        mask = masks.read(source_name)
        rows.append((name, rle.encode(with_hole(mask) if name in wrong else mask)))
    write_competition.write_table(data / "train_masks.csv.zip", rows)

    table = grouping.assign_folds(make_of_car, FOLDS, carvana.CARVANA.group_columns)
    write_text(run.folds, table.to_csv(index=False))
    for number in range(FOLDS):
        _, held_out = grouping.split(table, number, names, carvana.car_of)
        fold = run.fold(number)
        write_text(fold.config, config.dump(Settings()))
        write_text(fold.best, f"stands for the network of fold {number}\n")
        row = {"epoch": 1, "train_loss": 0.01, "val_dice": 0.99, "val_dice_threshold": 0.5, "images_per_s": 9.0,
               "waited_fraction": 0.0, "lr": 1e-3, "seconds": 60.0}  # fmt: skip
        write_text(fold.log, json.dumps(row) + "\n")
        with oof_writer(run.oof_predictions(number)) as store:
            for name in held_out:
                store(name, predicted[source_of[name]][0])
        histograms = np.stack([predicted[source_of[name]][1] for name in held_out])
        about: dict[str, Any] = {"checkpoint_sha256": sha256(fold.best), "predicted_with": ""}
        about["predictions_sha256"] = sha256(run.oof_predictions(number))
        with replacing(run.oof(number)) as draft, open(draft, "wb") as file:
            np.savez_compressed(file, names=np.array(held_out), histograms=histograms, **about)
    write_json(run.threshold, {"threshold": 0.5, "oof_dice": 0.99, "oof_dice_cross_fitted": 0.99, "images": len(names)})


def write_images(data: pathlib.Path, source: pathlib.Path, source_of: dict[str, str]) -> None:
    """Write `train.zip` with the images of the source under other names."""
    data.mkdir()
    files = carvana.CARVANA.open_images(source, "train").files
    with zipfile.ZipFile(data / "train.zip", "w") as archive:
        for name, source_name in source_of.items():
            archive.writestr(f"train/{name}", files.read(source_name))


def prediction(mask: NDArray[np.bool_], seed: int) -> tuple[bytes, NDArray[np.int32]]:
    """Make up a prediction of an image: the PNG that validation stores, and its histogram."""
    rng = np.random.default_rng(seed)
    rows, columns = carvana.HEIGHT_PX // SCALE, carvana.WIDTH_PX // SCALE
    truth = cv2.resize(mask.view(np.uint8) * np.float32(1), (columns, rows), interpolation=cv2.INTER_AREA)
    # Soft edges, and smooth noise that moves them by a pixel or so.
    noise = cv2.resize(rng.standard_normal((20, 30)).astype(np.float32), (columns, rows), interpolation=cv2.INTER_CUBIC)
    soft = cv2.GaussianBlur(truth, (0, 0), 2)
    prob = np.clip(0.5 + (soft - 0.5) * 2 + 0.15 * noise * (soft > 0.01) * (soft < 0.99), 0, 1)
    prob_u8 = np.rint(255 * prob).astype(np.uint8)
    full = upsample_stored(prob_u8, SCALE, carvana.HEIGHT_PX, carvana.WIDTH_PX)
    return png(prob_u8), dice.histogram(full, mask)


def with_hole(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    row, column = (int(np.median(places)) for places in np.nonzero(mask[::8, ::8]))
    wrong = mask.copy()
    wrong[8 * row : 8 * row + 80, 8 * column : 8 * column + 80] = False
    return wrong


if __name__ == "__main__":
    main()
