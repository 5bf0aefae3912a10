"""Stage `score`: a submission and a `solution.csv` in; public and private mean Dice out, as Kaggle tells them.

Dice is computed on the runs; no pixel is touched.
"""
import pathlib

from pipeline import carvana
from pipeline.leaderboard.submission import read_rows
from pipeline.masks import rle
from pipeline.problem import Problem

PIXELS = carvana.WIDTH_PX * carvana.HEIGHT_PX


def run(submission: pathlib.Path, solution: pathlib.Path) -> None:
    if not solution.is_file():
        raise Problem(f"There is no {solution}; Kaggle keeps its own, submit there, or name one with SOLUTION=.")
    dice: dict[str, list[float]] = {"Public": [], "Private": []}
    truth = {}
    for line, (name, text, usage) in read_rows(solution, carvana.SOLUTION_HEADER):
        if usage not in (*dice, "Ignored"):
            raise Problem(f"{solution}, line {line}: the Usage {usage[:20]!r} must be Public, Private or Ignored.")
        truth[name] = (text, usage)
    seen = set()
    for line, (name, text) in read_rows(submission, carvana.SUBMISSION_HEADER):
        if name in seen:
            raise Problem(f"{submission}, line {line}: the image {name} stands there twice.")
        seen.add(name)
        true_text, usage = truth.get(name, ("", "Ignored"))
        if usage in dice:
            prediction = runs_of(text, f"{submission}, line {line}")
            dice[usage].append(rle.dice_score(prediction, runs_of(true_text, f"{solution}, image {name}")))
    if missing := [name for name, (_, usage) in truth.items() if usage in dice and name not in seen]:
        raise Problem(f"{submission} lacks {len(missing)} images of {solution}, the first is {missing[0]}.")
    if not any(dice.values()):
        raise Problem(f"{solution} has no image whose Usage is Public or Private; there is nothing to score.")
    public, private = (f"{sum(d) / len(d):.5f}" if d else "none" for d in dice.values())
    print(f"public {public}  private {private}  images {sum(map(len, dice.values()))}")


def runs_of(text: str, where: str):
    try:
        return rle.parse(text, PIXELS)
    except ValueError as error:
        raise Problem(f"{where}: {error}.") from None
