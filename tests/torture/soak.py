"""A long prediction: 100,064 images, few of them distinct, through the whole stage with a tiny network.

    python -m tests.torture.soak             all of them: 20 minutes on two cores
    python -m tests.torture.soak 10000       so many

Looked at from outside every half second: the resident memory of the stage and of the process that reads for it, their
open files, threads and children, and /dev/shm. The last tenth of the way may need no more than 5 % above the second.
The archive is a real one, of the silhouettes of a drawn car, which pack well: 100,064 of them are 1 GB.
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import carvana, config
from pipeline.synthetic import cars
from pipeline.synthetic.car_makes import MAKES, make_car
from pipeline.runtime.files import write_json
from pipeline.submission.reader import read_rows
from pipeline.model import checkpoint
from pipeline.model.factory import build
from pipeline.paths import Run

ROOT = pathlib.Path(__file__).parent.parent.parent
LARGEST_GROWTH = 0.05
SETTINGS = """\
data: {folder: data, scale: 8, workers: 1}
model: {width: 2, depth: 1, patch: 4}
predict: {tta: none, batch_size: 8, verify_every_rows: 10}
"""


def main(count: int) -> int:
    with tempfile.TemporaryDirectory(prefix="soak.") as name:
        folder = pathlib.Path(name)
        make_competition(folder / "data", count)
        make_run(folder, rows_per_shard=max(8, count // 100 // 8 * 8))
        print(f"{count} images in {(folder / 'data/test.zip').stat().st_size / 1e6:.0f} MB.", flush=True)
        began = time.monotonic()
        arguments = [sys.executable, "-m", "pipeline", "predict", "--run", "tiny"]
        with open(folder / "output.txt", "w") as output:
            surroundings = os.environ | {"PYTHONPATH": str(ROOT)}
            stage = subprocess.Popen(arguments, cwd=folder, env=surroundings, stdout=output, stderr=output)
            readings = watch(stage, folder, -(-count // max(8, count // 100 // 8 * 8)))
        seconds = time.monotonic() - began
        whole = stage.returncode == 0 and count == sum(1 for _ in read_rows(
            folder / "submissions/tiny.csv.gz", carvana.CARVANA.submission_header
        ))  # fmt: skip
        print((folder / "output.txt").read_text())
    return print_result(readings, count, seconds, whole)


def make_competition(folder: pathlib.Path, count: int) -> None:
    """`test.zip` and `sample_submission.csv` of so many names."""
    folder.mkdir()
    car = make_car(next(iter(MAKES)), 0)
    jpegs = [small_jpeg(mask) for _, mask in cars.draw_car(car)]
    car_ids = [f"{number:012x}" for number in range(-(-count // 16))]
    names = [carvana.image_name(car_id, angle) for car_id in car_ids for angle in carvana.ANGLE_CODES]
    with zipfile.ZipFile(folder / "test.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for number, name in enumerate(names[:count]):
            archive.writestr(f"test/{name}", jpegs[number % len(jpegs)])
    with open(folder / "sample_submission.csv", "w") as file:
        file.write("img,rle_mask\n")
        file.writelines(f"{name},1 1\n" for name in names[:count])


def small_jpeg(mask: NDArray[np.bool_]) -> bytes:
    """The car in grey before white: 1918x1280, and small once it is packed again."""
    flat = cv2.cvtColor((~mask).astype("uint8") * 255, cv2.COLOR_GRAY2BGR)
    return cv2.imencode(".jpg", flat, (cv2.IMWRITE_JPEG_QUALITY, 30, cv2.IMWRITE_JPEG_OPTIMIZE, 1))[1].tobytes()


def make_run(folder: pathlib.Path, rows_per_shard: int) -> None:
    """A network that learnt nothing, so that its masks are rough: more runs than those of a good one."""
    path = folder / "tiny.yaml"
    path.write_text(SETTINGS)
    settings = config.load(path, [f"predict.rows_per_shard={rows_per_shard}"])
    torch.manual_seed(0)
    state = {"settings": settings.model_dump(), "network": build(**settings.model.model_dump()).state_dict(), "log": []}
    run = Run("tiny")
    checkpoint.save(folder / run.fold(0).best, state)
    write_json(folder / run.threshold, {"threshold": 0.5})


def watch(stage: subprocess.Popen, folder: pathlib.Path, shards: int) -> list[dict[str, float]]:
    """Readings while it predicts: `done_fraction` of the shards that are there, and what the stage has in use."""
    readings = []
    shards_folder = folder / Run("tiny").shards
    while stage.poll() is None:
        done = len(list(shards_folder.glob("[0-9]*.csv.gz")))
        if 0 < done < shards:
            readings.append({"done_fraction": done / shards} | in_use(stage.pid))
        time.sleep(0.5)
    return readings


def in_use(pid: int) -> dict[str, float]:
    """MB resident in the stage and in its workers; open files, threads, workers, segments of shared memory."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {
        "stage_mb": resident_mb(str(pid)),
        "workers_mb": sum(map(resident_mb, children)),
        "files": len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(pathlib.Path(f"/proc/{pid}/task").iterdir())),
        "workers": len(children),
        "shared": sum(1 for path in pathlib.Path("/dev/shm").glob("torch_*")),
    }


def resident_mb(pid: str) -> float:
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def print_result(readings: list[dict[str, float]], count: int, seconds: float, whole: bool) -> int:
    """The table of the tenths, what is wrong, and the figures as one JSON object."""
    tenths = [[reading for reading in readings if int(10 * reading["done_fraction"]) == tenth] for tenth in range(10)]
    keys = list(readings[0])[1:]
    means = [{key: statistics.fmean(one[key] for one in tenth) for key in keys} for tenth in tenths if tenth]
    print("tenth  " + "".join(f"{key:>12}" for key in keys))
    for number, mean in enumerate(means, start=1):
        print(f"{number:5}  " + "".join(f"{mean[key]:12.1f}" for key in keys))
    second, last = means[1], means[-1]
    growth = {key: last[key] / second[key] - 1 if second[key] else last[key] for key in keys}
    # A thread that comes and goes is none that is not given back: counts grow by one at least.
    grown = [key for key in keys if growth[key] > LARGEST_GROWTH and last[key] - second[key] >= 1]
    print(f"{count} images in {seconds:.0f} s; the file is {'whole' if whole else 'NOT WHOLE'}; "
          f"grown by more than {LARGEST_GROWTH:.0%}: {', '.join(grown) or 'nothing'}.")  # fmt: skip
    figures = {f"{key}_growth": round(growth[key], 4) for key in keys}
    print(json.dumps({"images": count, "images_per_s": round(count / seconds, 1), "whole": whole} | figures))
    return 0 if whole and not grown else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_064))
