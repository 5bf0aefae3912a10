"""Public and private mean Dice of a submission, as Kaggle reports them, computed from run lengths without decoding."""
import pathlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.competition import Competition
from pipeline.masks import rle
from pipeline.runtime.problem import Problem
from pipeline.submission.reader import read_rows


@dataclass(frozen=True)
class Score:
    """Dice, 0 to 1, of each image by its name."""

    public_of_image: dict[str, float]
    private_of_image: dict[str, float]

    @property
    def of_image(self) -> dict[str, float]:
        return self.public_of_image | self.private_of_image

    @property
    def public(self) -> float | None:
        """Return the mean Dice; None if the solution has no such image."""
        return mean(self.public_of_image.values())

    @property
    def private(self) -> float | None:
        return mean(self.private_of_image.values())

    @property
    def images(self) -> int:
        """Return how many images were scored."""
        return len(self.of_image)


def mean(values: Collection[float]) -> float | None:
    return sum(values) / len(values) if values else None


def score(submission: pathlib.Path, solution: pathlib.Path, competition: Competition) -> Score:
    """Score a submission against a `solution.csv`. Problem if one is missing or damaged, or an image is missing."""
    pixels, dice = competition.pixels, dict[str, dict[str, float]](Public={}, Private={})
    truth = {}  # name -> (run lengths, usage)
    for line, (name, text, usage) in read_rows(solution, competition.solution_header):
        if usage not in (*dice, "Ignored"):
            raise Problem(f"{solution}, line {line}: the Usage {usage[:20]!r} must be Public, Private or Ignored.")
        if name in truth:
            raise Problem(f"{solution}, line {line}: the image {name[:40]} is there twice.")
        truth[name] = (text, usage)
    seen = set()
    for line, (name, text) in read_rows(submission, competition.submission_header):
        if name in seen:
            raise Problem(f"{submission}, line {line}: the image {name[:40]} is there twice.")
        seen.add(name)
        true_text, usage = truth.get(name, ("", "Ignored"))
        if usage in dice:
            prediction = parse_bounds(text, pixels, f"{submission}, line {line}")
            truth_bounds = parse_bounds(true_text, pixels, f"{solution}, image {name}")
            dice[usage][name] = rle.dice_score(prediction, truth_bounds)
    if missing := [name for name, (_, usage) in truth.items() if usage in dice and name not in seen]:
        raise Problem(f"{submission} lacks {len(missing)} images of {solution}; the first is {missing[0][:40]}.")
    if not any(dice.values()):
        raise Problem(f"{solution} has no image whose Usage is Public or Private; there is nothing to score.")
    return Score(dice["Public"], dice["Private"])


def parse_bounds(text: str, pixels: int, where: str) -> NDArray[np.int64]:
    """`rle.parse`, with a Problem that says where the text is."""
    try:
        return rle.parse(text, pixels)
    except ValueError as error:
        raise Problem(f"{where}: {error}.") from None
