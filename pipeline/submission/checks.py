"""Find what Kaggle would refuse in a submission, or what would score badly by accident."""
import pathlib
from collections.abc import Collection

from pipeline.data.competition import Competition
from pipeline.masks import rle
from pipeline.runtime.problem import Problem
from pipeline.submission.reader import read_rows


def check(
    path: pathlib.Path, expected_names: list[str], competition: Competition, bad_images: Collection[str] = ()
) -> float:
    """Return the mean coverage of the masks, 0 to 1; raise Problem that names the first wrong row.

    expected_names: of the sample submission, in its order. bad_images: names of images whose masks may be empty.
    """
    position = {name: i for i, name in enumerate(expected_names)}
    line_of: dict[str, int] = {}
    covered_px = 0
    for line, (name, text) in read_rows(path, competition.submission_header):
        where = f"{path}, line {line}"
        if name not in position:
            raise Problem(f"{where}: the image {name[:40]!r} is not in the sample submission.")
        if name in line_of:
            raise Problem(f"{where}: the image {name} is in line {line_of[name]} already.")
        if position[name] != len(line_of):
            what = f"{where}: the image {name} is where the sample submission has {expected_names[len(line_of)]}"
            raise Problem(f"{what}; an image is missing, or the order differs.")
        line_of[name] = line
        try:
            bounds = rle.parse(text, competition.pixels)
        except ValueError as error:
            raise Problem(f"{where}, image {name}: {error}.") from None
        if len(bounds) == 0 and not competition.allow_empty_masks and name not in bad_images:
            raise Problem(f"{where}, image {name}: the mask is empty, but each image shows an object.")
        covered_px += int((bounds[:, 1] - bounds[:, 0]).sum())
    if len(line_of) < len(expected_names):
        missing = expected_names[len(line_of)]
        what = f"ends after {len(line_of)} of {len(expected_names)} images"
        raise Problem(f"{path} {what}; the first missing one is {missing}.")
    mean_coverage, (lowest, highest) = covered_px / (competition.pixels * len(line_of)), competition.mean_coverage_range
    if not lowest <= mean_coverage <= highest:
        what = f"{mean_coverage:.1%} of their images on average, but {lowest:.1%} to {highest:.1%} are plausible"
        raise Problem(f"{path}: the masks cover {what}; check the threshold, and look at some masks.")
    return mean_coverage
