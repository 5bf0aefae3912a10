"""How long the work of a run takes, from what its stages have written: for the bar of `compete`."""
import math
import pathlib

from pipeline.paths import Run
from pipeline.report.report import read_logs, refiner_rows
from pipeline.runtime.files import read_json, write_json
from pipeline.runtime.problem import Problem

# Kinds of work, in epochs, epochs, and images times the networks that predict each.
EPOCHS, REFINER_EPOCHS, IMAGES = "training", "refining", "predicting"


def count_epochs(log: pathlib.Path, parallel: int = 1) -> float:
    """Return how many epochs a log has, divided by the number of folds that are trained at once."""
    return (log.read_text().count("\n") if log.is_file() else 0) / parallel


class Speeds:
    """How long a unit of each kind of work takes, as measured in this run, now or at an earlier start."""

    def __init__(self, run: Run):
        self.run = run

    def seconds(self, kind: str) -> float | None:
        """Return the seconds of an epoch, or of an image by one network; None before one was measured."""
        if kind == IMAGES:
            images, seconds = self.predicted()
            return seconds / images if images else None
        try:
            logs = read_logs(self.run)
            rows = [row for fold in logs for row in (logs[fold] if kind == EPOCHS else refiner_rows(self.run, fold))]
            return sum(row["seconds"] for row in rows) / len(rows) if rows else None
        except (Problem, OSError, ValueError, LookupError):  # a damaged log, which the trainer writes again
            return None

    def predicted(self) -> tuple[float, float]:
        """Return how many held-out images were predicted, and in how many seconds."""
        try:
            stored = read_json(self.run.compete)
            images, seconds = float(stored["images"]), float(stored["seconds"])
            return (images, seconds) if math.isfinite(images + seconds) and min(images, seconds) >= 0 else (0.0, 0.0)
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0, 0.0

    def note_predicted(self, images: int, seconds: float) -> None:
        before = self.predicted()
        write_json(self.run.compete, {"images": before[0] + images, "seconds": before[1] + seconds})
