"""Write, check and score a submission of 100,064 rows from given masks. Called by `make bench-predict`.

`python -m benchmarks.submission MASKS.npy FOLDER` prints one JSON object. It is a separate process, so that its peak
memory is that of the work and of the masks, a bit a pixel, and not that of torch.
"""
import gzip
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline import carvana, score
from pipeline.config import Predict
from pipeline.submission import writer
from pipeline.submission.checks import check

ROWS = carvana.TEST_IMAGES
SHAPE = (carvana.HEIGHT_PX, carvana.WIDTH_PX)


def main(masks_path: pathlib.Path, folder: pathlib.Path) -> None:
    names = test_names(ROWS)
    path = folder / "submission.csv.gz"
    masks = cycle_masks(np.load(masks_path, allow_pickle=False))
    write_s = seconds_of(lambda: write(path, ((name, writer.verified_rle(mask)) for name, mask in zip(names, masks))))
    write_peak_mb = peak_mb()
    check_s = seconds_of(lambda: check(path, names, carvana.CARVANA))
    write_solution(path, folder / "solution.csv")
    score_s = seconds_of(lambda: score.main(path, folder / "solution.csv"))
    figures = {
        "write_100064_s": write_s,
        "write_peak_mb": write_peak_mb,
        "check_100064_s": check_s,
        "score_100064_s": score_s,
        "submission_mb": path.stat().st_size / 1e6,
    }
    print(json.dumps(figures))


def write(path: pathlib.Path, rows: Iterator[writer.Row]) -> None:
    """Write a submission as the stage `predict` does, in shards of its size: joining holds one of them in memory."""
    rows_per_shard = Predict().rows_per_shard
    shards = [path.with_name(f"{number:05d}.csv.gz") for number in range(-(-ROWS // rows_per_shard))]
    for shard in shards:
        writer.write_shard(shard, itertools.islice(rows, rows_per_shard))
    writer.join_shards(shards, path, carvana.CARVANA.submission_header)
    for shard in shards:
        shard.unlink()


def test_names(count: int) -> list[str]:
    """Return names of the form of the competition's images."""
    cars = (f"{car:012x}" for car in itertools.count())
    names = (carvana.image_name(car, angle) for car in cars for angle in carvana.ANGLE_CODES)
    return list(itertools.islice(names, count))


def cycle_masks(packed_masks: NDArray[np.uint8]) -> Iterator[NDArray[np.bool_]]:
    """Yield masks from rows of bits, over and over."""
    for bits in itertools.cycle(packed_masks):
        yield np.unpackbits(bits).view(bool).reshape(SHAPE)


def write_solution(submission: pathlib.Path, path: pathlib.Path) -> None:
    """Write the solution that the submission matches exactly; each row is scored."""
    with gzip.open(submission, "rt") as rows, open(path, "w") as solution:
        next(rows)
        solution.write(",".join(carvana.CARVANA.solution_header) + "\n")
        solution.writelines(row.rstrip() + ",Private\n" for row in rows)


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_mb() -> float | None:
    """Return the peak memory of this process so far; None if the system does not report it.

    Not `getrusage`, which includes the memory of the process that started this one.
    """
    status = pathlib.Path("/proc/self/status")
    if not status.is_file():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
