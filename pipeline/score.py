"""Stage `score`: a submission and a `solution.csv` in; public and private mean Dice out, as Kaggle reports them."""
import pathlib

from pipeline.data.dataset import competition_of
from pipeline.runtime.problem import Problem
from pipeline.submission.scoring import score


def main(submission: pathlib.Path, solution: pathlib.Path, kind: str = "carvana") -> None:
    """kind: `data.kind` of the competition."""
    if not solution.is_file():
        raise Problem(f"There is no {solution}; Kaggle publishes none: run `make submit`, or set SOLUTION=.")
    result = score(submission, solution, competition_of(kind))
    public, private = ("none" if dice is None else f"{dice:.5f}" for dice in (result.public, result.private))
    print(f"public {public}  private {private}  images {result.images}")
