"""`make bench-rooms`: train briefly on drawn rooms, and compare with the best constant prediction.

Draws a file with the structure of NYU Depth v2, trains configs/rooms.yaml on it as a user would, and compares the mean
IoU of the held-out rooms with that of the best constant prediction: the one class that scores highest when it is
predicted everywhere. The last line is one JSON object of figures.
"""
import argparse
import json
import os
import pathlib
import resource
import shlex
import subprocess
import sys
import tempfile
import time

import numpy as np

from pipeline import config
from pipeline.data.dataset import SegmentationDataset, open_dataset
from pipeline.data.grouping import read_folds, split
from pipeline.masks import confusion
from pipeline.paths import RUNS

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs/rooms.yaml"
FOLD = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="", metavar="a.b=1", help="settings that override the config's")
    overrides = parser.parse_args().set.split()
    settings = config.load(CONFIG, overrides)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        data, run = work / "rooms", work / RUNS / "rooms"
        figures["draw_s"], _ = stage(work, "demo-rooms", "--data", str(data))
        arguments = ["--config", str(CONFIG), "--data", str(data), "--run", "rooms"]
        arguments += [f"--set={override}" for override in overrides]
        stage(work, "folds", *arguments)
        figures["train_s"], figures["train_cpu_s"] = stage(work, "train", *arguments, "--fold", str(FOLD))
        figures["validate_s"], _ = stage(work, "validate", *arguments)

        last = json.loads((run / f"fold{FOLD}/log.jsonl").read_text().splitlines()[-1])
        figures |= {key: last[key] for key in ("val_mean_iou", "val_pixel_accuracy", "images_per_s")}
        dataset = open_dataset(settings.data, settings.task, data)
        _, held_out = split(read_folds(run / "folds.csv"), FOLD, dataset.names, dataset.group_key)
        figures["constant_mean_iou"], best = best_constant(dataset, held_out)
        figures["read_ms"] = read_ms(dataset, settings.data.scale)

    print(f"\n{len(dataset.names)} images of {dataset.width}x{dataset.height}, {len(held_out)} held out, "
          f"{len(dataset.classes)} classes, inputs {settings.data.inputs}")
    print(f"  mean IoU at full size    {figures['val_mean_iou']:.3f}")
    print(f"  of {dataset.classes[best] + ' everywhere':22}{figures['constant_mean_iou']:.3f}")
    print(f"  pixel accuracy           {figures['val_pixel_accuracy']:.3f}")
    print(f"  training                 {figures['train_s']:.0f} s, {figures['train_cpu_s']:.0f} s of CPU time")
    print(f"  reading an image         {figures['read_ms']:.1f} ms, its classes included")
    print(json.dumps(figures))


def stage(work: pathlib.Path, *arguments: str) -> tuple[float, float]:
    """Run a stage as a command in the folder `work`; return wall-clock and CPU seconds."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "pipeline", *arguments]
    process = subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if process.returncode:
        sys.exit(f"{shlex.join(command)} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def best_constant(dataset: SegmentationDataset, names: list[str]) -> tuple[float, int]:
    """Return the highest mean IoU over these images of one class predicted everywhere, and that class."""
    classes = len(dataset.classes)
    pixels = np.zeros(classes, np.int64)
    for name in names:
        truth = dataset.truth(name)
        pixels += np.bincount(truth[truth != confusion.ignored(truth.dtype)], minlength=classes)
    scores = []
    for index in range(classes):
        matrix = np.zeros((classes, classes), np.int64)
        matrix[:, index] = pixels
        scores.append(float(confusion.mean_of_classes(confusion.iou(confusion.counts(matrix)))))
    return max(scores), int(np.argmax(scores))


def read_ms(dataset: SegmentationDataset, scale: int) -> float:
    """Return the mean time to read an image and its classes, in one process."""
    names = dataset.names[:100]
    began = time.monotonic()
    for name in names:
        dataset.read(name, scale)
        dataset.target(name, scale)
    return (time.monotonic() - began) / len(names) * 1000


if __name__ == "__main__":
    main()
