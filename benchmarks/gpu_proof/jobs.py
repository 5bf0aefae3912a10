"""What is measured, in its order, and how it is split into pieces of at most nine minutes.

What is asked for first comes first: a session may end at any time. The seconds of a job are those of an H100, with some
room; a slower card needs the same piece more than once. A job that resumes may lie in several pieces.
"""
import functools
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_proof import work
from benchmarks.gpu_proof.work import Clock, Proof
from pipeline import config
from pipeline.config import Settings

PIECE_S = 540.0
SAVING_S = 20.0  # at the end of a piece: a training ends its step, or its validation, and saves
START_S = 40.0  # of a piece: its checks and that
LEAST_PART_S = 90.0  # of a job that resumes: its start and its compilation come again
SECONDS_AN_EPOCH = 45.0  # of 4,000 images at 105 images/s; of a refiner, whose images are decoded, it is about the same


@dataclass(frozen=True)
class Job:
    """A measurement, which becomes a row."""

    key: str  # of the row
    seconds: float
    work: Callable[[Proof, Clock], dict[str, Any]]  # -> the figures; raises Stopped, Blocked, Failed
    command: str  # by which a user measures the same
    resumes: bool = False  # it goes on where it was stopped

    @property
    def least_s(self) -> float:
        """Return the time below which it is not begun at the end of a piece."""
        return 30.0 if self.resumes else 0.6 * self.seconds


def all_jobs(proof: Proof) -> list[Job]:
    """Return all that is measured, in its order."""
    settings = config.load(proof.trained)
    name, path = proof.trained.stem, proof.trained
    run = f"CONFIG={path} RUN={proof.run.name}"
    speed = {each: speed_job(each.stem, each, config.load(each)) for each in proof.configs}
    later = [job for each, job in speed.items() if each != path]
    return [
        Job("tests", 180, work.tests, "python -m pytest -m gpu"),
        *([speed[path]] if path in speed else []),
        Job(f"train {name}", training_s(settings), work.train, f"make train FOLD=0 {run}", resumes=True),
        Job(f"validate {name}", 90, work.validate, f"make validate threshold {run}"),
        Job(f"score {name}", 90, work.score, f"make predict check score {run}", resumes=True),
        Job(f"predict half {name}", 220, work.predict_half, "make gpu-proof", resumes=True),
        Job(f"predict full {name}", 160, work.predict_full, "make gpu-proof", resumes=True),
        *later,
        *(find_batch_job(each.stem, each, config.load(each)) for each in proof.configs),
        *([] if proof.rehearsal else [Job("reference", 240, work.reference, "make bench-train")]),
    ]


def speed_job(name: str, path: pathlib.Path, settings: Settings) -> Job:
    measure = functools.partial(work.speed, path=path)
    return Job(f"speed {name}", 110 + 90 * bool(settings.refine), measure, f"make bench-train CONFIG={path}")


def find_batch_job(name: str, path: pathlib.Path, settings: Settings) -> Job:
    measure = functools.partial(work.find_batch, path=path)
    return Job(f"find-batch {name}", 45 + 25 * bool(settings.refine), measure, f"make find-batch CONFIG={path}")


def training_s(settings: Settings) -> float:
    """Return the time of a training: two minutes for starts, compilation and validation, and its epochs."""
    epochs = settings.train.epochs + (settings.refine.epochs if settings.refine else 0)
    return 120 + SECONDS_AN_EPOCH * epochs


def pieces(jobs: list[Job], piece_s: float = PIECE_S - START_S) -> list[list[Job]]:
    """Split jobs into pieces, in their order; a job that resumes is in as many neighbouring ones as its time needs."""
    split: list[list[Job]] = [[]]
    left = piece_s
    for job in jobs:
        needed = job.seconds
        if split[-1] and needed > left and not (job.resumes and left >= LEAST_PART_S):
            split.append([])
            left = piece_s
        split[-1].append(job)
        while job.resumes and needed > left:
            needed += LEAST_PART_S - left
            split.append([job])
            left = piece_s
        left -= needed
    return split
