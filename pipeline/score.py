"""Stage `score`: submissions and a `solution.csv` in; public and private mean Dice out, as Kaggle reports them.

Of two submissions it also tells whether one is better, with a confidence interval over cars.
"""
import pathlib

import pandas as pd

from pipeline.data.competition import Competition
from pipeline.data.dataset import competition_of
from pipeline.data.grouping import NOUNS
from pipeline.runtime.problem import Problem
from pipeline.submission.scoring import Score, score


def main(
    submission: pathlib.Path, solution: pathlib.Path, kind: str = "carvana", against: pathlib.Path | None = None
) -> None:
    """kind: `data.kind` of the competition. against: another submission, whose Dice is subtracted."""
    if not solution.is_file():
        raise Problem(f"There is no {solution}; Kaggle publishes none: run `make submit`, or set SOLUTION=.")
    competition = competition_of(kind)
    result = score(submission, solution, competition)
    print(summary(result))
    if against is not None:
        other = score(against, solution, competition)
        print(f"{against}: {summary(other)}")
        print("\n".join(differences(result, other, competition)))


def summary(result: Score) -> str:
    public, private = ("none" if dice is None else f"{dice:.5f}" for dice in (result.public, result.private))
    return f"public {public}  private {private}  images {result.images}"


def differences(result: Score, other: Score, competition: Competition) -> list[str]:
    """Return a line for the public, the private and all images: how much better `result` is than `other`."""
    from pipeline.report.paired import mean_difference  # which imports scipy; one submission alone needs none

    dice, other_dice, column = result.of_image, other.of_image, competition.group_columns[0]
    lines = []
    for name, images in {"public": result.public_of_image, "private": result.private_of_image, "all": dice}.items():
        pairs = pd.DataFrame(
            {"cluster": competition.group_key(image), "difference": dice[image] - other_dice[image]} for image in images
        )
        if len(pairs):
            lines.append(f"{name} {mean_difference(pairs).sentence(NOUNS.get(column, column))}")
    return lines
