"""A run without training, for tests of the report: its predictions are masks of the demo, moved and blurred."""
import gzip
import json
import pathlib

import cv2
import numpy as np

from pipeline import carvana, config
from pipeline.report.errors import upsample_stored
from pipeline.data import grouping
from pipeline.runtime.files import sha256, write_json, write_text
from pipeline.inference.oof import oof_writer, png
from pipeline.masks import dice, rle
from pipeline.paths import Run

SCALE = 8


def make(name: str, folder: pathlib.Path, shift_cells: float) -> Run:
    """Write `runs/NAME/` as if two folds were trained and validated; each prediction is its mask moved a little."""
    run = Run(name)
    cars = sorted({carvana.car_of(name) for name in carvana.CARVANA.open_images(folder, "train").names})
    makes = carvana.read_makes(folder)
    table = grouping.assign_folds(
        {car: carvana.normal_make(makes[car]) for car in cars}, 2, carvana.CARVANA.group_columns
    )
    write_text(run.folds, table.to_csv(index=False))
    overrides = [f"data.folder={folder}", f"data.scale={SCALE}", "data.folds=2", "train.epochs=2"]
    settings = config.load(pathlib.Path(__file__).parent.parent / "configs/demo.yaml", overrides)
    settings = settings.model_copy(update={"refine": None})
    masks = carvana.CARVANA.open_masks(folder)
    for fold in (0, 1):
        held_out = table[table["fold"] == fold]["car_id"]
        names = [carvana.image_name(car, angle) for car in held_out for angle in carvana.ANGLE_CODES]
        write_text(run.fold(fold).config, config.dump(settings))
        write_text(run.fold(fold).best, f"weights of fold {fold} of {name}")
        rows = [
            {"epoch": epoch, "train_loss": 0.1 / epoch, "val_dice": 0.98 + 0.005 * epoch, "val_dice_threshold": 0.5,
             "images_per_s": 40.0 + fold, "waited_fraction": 0.01, "lr": 0.001 / epoch, "seconds": 60.0,
             "device": "CPU, bfloat16, 2 threads", "commit": "0123456789abcdef"}
            for epoch in (1, 2)
        ]  # fmt: skip
        write_text(run.fold(fold).log, "".join(json.dumps(row) + "\n" for row in rows))
        histograms = []
        with oof_writer(run.oof_predictions(fold)) as write:
            for number, image_name in enumerate(names):
                grid_u8 = predicted(masks.coverage(image_name, SCALE), shift_cells * (1 + number % 5) / 5)
                write(image_name, png(grid_u8))
                full_size_u8 = upsample_stored(grid_u8, SCALE, carvana.HEIGHT_PX, carvana.WIDTH_PX)
                histograms.append(dice.histogram(full_size_u8, masks.read(image_name)))
        with open(run.oof(fold), "wb") as file:
            about = {"checkpoint_sha256": sha256(run.fold(fold).best), "predicted_with": ""}
            about["predictions_sha256"] = sha256(run.oof_predictions(fold))
            np.savez_compressed(file, names=np.array(names), histograms=np.stack(histograms), **about)
    stored = {"threshold": 0.5, "oof_dice": 0.99, "oof_dice_cross_fitted": 0.989, "images": len(names) * 2}
    write_json(run.threshold, stored)
    return run


def predicted(coverage_u8: np.ndarray, shift_cells: float) -> np.ndarray:
    """Return the coverage, moved to the right and blurred, uint8 of the same shape."""
    move = np.array([[1, 0, shift_cells], [0, 1, 0]], np.float32)
    return cv2.GaussianBlur(cv2.warpAffine(coverage_u8, move, coverage_u8.shape[::-1]), (3, 3), 0)


def submit(run: Run, folder: pathlib.Path) -> None:
    """Write a submission with the same mask for every test image, but an empty one for the first."""
    names = carvana.CARVANA.open_images(folder, "test").names
    mask = np.zeros((carvana.HEIGHT_PX, carvana.WIDTH_PX), bool)
    mask[400:1000, 500:1400] = True
    lines = [f"{name},{rle.encode(mask) if number else ''}\n" for number, name in enumerate(names)]
    run.submission.parent.mkdir(exist_ok=True)
    with gzip.open(run.submission, "wt") as file:
        file.write(",".join(carvana.CARVANA.submission_header) + "\n" + "".join(lines))
