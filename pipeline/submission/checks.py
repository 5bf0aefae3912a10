"""What Kaggle would refuse in a submission, or what would score badly by accident."""
import pathlib
from collections.abc import Collection

from pipeline import carvana
from pipeline.submission.reader import read_rows
from pipeline.masks import rle
from pipeline.runtime.problem import Problem

PIXELS = carvana.WIDTH_PX * carvana.HEIGHT_PX
# Means over hundreds of cars; a network that finds no car, or a mask turned inside out, lies far outside.
LOWEST_MEAN_COVERAGE, HIGHEST_MEAN_COVERAGE = carvana.MEAN_COVERAGE / 2, carvana.MEAN_COVERAGE * 2


def check(path: pathlib.Path, expected_names: list[str], bad_images: Collection[str] = ()) -> float:
    """Mean share of the pixels that the masks cover; Problem that names the first wrong row.

    expected_names: those of the sample submission, in its order. unreadable: those whose masks may be empty.
    """
    position = {name: i for i, name in enumerate(expected_names)}
    line_of: dict[str, int] = {}
    covered = 0
    for line, (name, text) in read_rows(path, carvana.SUBMISSION_HEADER):
        where = f"{path}, line {line}"
        if name not in position:
            raise Problem(f"{where}: the image {name[:40]!r} is not in the sample submission.")
        if name in line_of:
            raise Problem(f"{where}: the image {name} stands in line {line_of[name]} already.")
        if position[name] != len(line_of):
            raise Problem(
                f"{where}: the image {name} stands where the sample submission has {expected_names[len(line_of)]}; "
                "an image is missing, or the order is another."
            )
        line_of[name] = line
        try:
            runs = rle.parse(text, PIXELS)
        except ValueError as error:
            raise Problem(f"{where}, image {name}: {error}.") from None
        if len(runs) == 0 and name not in bad_images:
            raise Problem(f"{where}, image {name}: the mask is empty, but each picture shows a car.")
        covered += int((runs[:, 1] - runs[:, 0]).sum())
    if len(line_of) < len(expected_names):
        missing = expected_names[len(line_of)]
        raise Problem(
            f"{path} ends after {len(line_of)} of {len(expected_names)} images; the first that is missing is {missing}."
        )
    mean_coverage = covered / (PIXELS * len(line_of))
    if not LOWEST_MEAN_COVERAGE <= mean_coverage <= HIGHEST_MEAN_COVERAGE:
        raise Problem(
            f"{path}: the masks cover {mean_coverage:.1%} of their pictures on average, but cars cover "
            f"{carvana.MEAN_COVERAGE:.0%}; look at the cut and at some masks."
        )
    return mean_coverage
