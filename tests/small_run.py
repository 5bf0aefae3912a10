"""A run without training, for tests of the report: its predictions are masks of the demo, shifted and blurred."""
import gzip
import json
import pathlib

import cv2
import numpy as np

from pipeline import carvana, config
from pipeline.data import competition, grouping
from pipeline.inference.oof import oof_writer, png
from pipeline.masks import dice, rle
from pipeline.paths import Run
from pipeline.report.errors import upsample_stored
from pipeline.runtime.files import sha256, write_json, write_text

SCALE = 8


def make(name: str, folder: pathlib.Path, shift_cells: float) -> Run:
    """Write `runs/NAME/` as two trained and validated folds would; each prediction is shifted a little off its mask."""
    run = Run(name)
    cars = sorted({carvana.car_of(image) for image in competition.ImageSet(folder, "train").names})
    makes = competition.read_makes(folder)
    table = grouping.assign({car: makes[car] for car in cars}, folds=2)
    write_text(run.folds, table.to_csv(index=False))
    overrides = [f"data.folder={folder}", f"data.scale={SCALE}", "data.folds=2", "train.epochs=2"]
    settings = config.load(pathlib.Path(__file__).parent.parent / "configs/demo.yaml", overrides)
    masks = competition.open_masks(folder)
    for fold in (0, 1):
        held_out = table[table["fold"] == fold]["car_id"]
        names = [carvana.image_name(car, code) for car in held_out for code in carvana.ANGLE_CODES]
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
        with oof_writer(run.oof_probabilities(fold)) as store:
            for number, image in enumerate(names):
                prob_u8 = predicted(masks.coverage(image, SCALE), shift_cells * (1 + number % 5) / 5)
                store(image, png(prob_u8))
                full = upsample_stored(prob_u8, SCALE, carvana.HEIGHT_PX, carvana.WIDTH_PX)
                histograms.append(dice.histogram(full, masks.read(image)))
        with open(run.oof(fold), "wb") as file:
            hashes = {"checkpoint": sha256(run.fold(fold).best), "probabilities": sha256(run.oof_probabilities(fold))}
            np.savez_compressed(file, names=np.array(names), histograms=np.stack(histograms), **hashes)
    dice_values = {"oof_dice": 0.99, "oof_dice_cross_fitted": 0.989}
    write_json(run.threshold, {"threshold": 0.5, **dice_values, "images": len(names) * 2})
    return run


def predicted(coverage_u8: np.ndarray, shift_cells: float) -> np.ndarray:
    """Shift a coverage to the right and blur it; uint8 of the same shape."""
    move = np.array([[1, 0, shift_cells], [0, 1, 0]], np.float32)
    return cv2.GaussianBlur(cv2.warpAffine(coverage_u8, move, coverage_u8.shape[::-1]), (3, 3), 0)


def submit(run: Run, folder: pathlib.Path) -> None:
    """Write a submission with one mask for every test image, but an empty one for the first."""
    names = competition.ImageSet(folder, "test").names
    mask = np.zeros((carvana.HEIGHT_PX, carvana.WIDTH_PX), bool)
    mask[400:1000, 500:1400] = True
    lines = [f"{name},{rle.encode(mask) if number else ''}\n" for number, name in enumerate(names)]
    run.submission.parent.mkdir(exist_ok=True)
    with gzip.open(run.submission, "wt") as file:
        file.write(",".join(carvana.SUBMISSION_HEADER) + "\n" + "".join(lines))
