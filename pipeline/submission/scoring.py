"""Public and private mean Dice of a submission, as Kaggle tells them. Computed on the runs; no pixel is touched."""
import pathlib
from dataclasses import dataclass

from pipeline import carvana
from pipeline.submission.reader import read_rows
from pipeline.masks import rle
from pipeline.runtime.problem import Problem

PIXELS = carvana.WIDTH_PX * carvana.HEIGHT_PX


@dataclass(frozen=True)
class Score:
    """Mean Dice, 0 to 1; None where the solution has no such picture."""

    public: float | None
    private: float | None
    images: int  # that were scored


def score(submission: pathlib.Path, solution: pathlib.Path) -> Score:
    """Grade a submission against a `solution.csv`. Problem when either is missing or damaged, or lacks an image."""
    dice: dict[str, list[float]] = {"Public": [], "Private": []}
    truth = {}
    for line, (name, text, usage) in read_rows(solution, carvana.SOLUTION_HEADER):
        if usage not in (*dice, "Ignored"):
            raise Problem(f"{solution}, line {line}: the Usage {usage[:20]!r} must be Public, Private or Ignored.")
        if name in truth:
            raise Problem(f"{solution}, line {line}: the image {name[:40]} stands there twice.")
        truth[name] = (text, usage)
    seen = set()
    for line, (name, text) in read_rows(submission, carvana.SUBMISSION_HEADER):
        if name in seen:
            raise Problem(f"{submission}, line {line}: the image {name[:40]} stands there twice.")
        seen.add(name)
        true_text, usage = truth.get(name, ("", "Ignored"))
        if usage in dice:
            prediction = runs_of(text, f"{submission}, line {line}")
            dice[usage].append(rle.dice_score(prediction, runs_of(true_text, f"{solution}, image {name}")))
    if missing := [name for name, (_, usage) in truth.items() if usage in dice and name not in seen]:
        raise Problem(f"{submission} lacks {len(missing)} images of {solution}, the first is {missing[0][:40]}.")
    if not any(dice.values()):
        raise Problem(f"{solution} has no image whose Usage is Public or Private; there is nothing to score.")
    public, private = (sum(d) / len(d) if d else None for d in dice.values())
    return Score(public, private, sum(map(len, dice.values())))


def runs_of(text: str, where: str):
    try:
        return rle.parse(text, PIXELS)
    except ValueError as error:
        raise Problem(f"{where}: {error}.") from None
