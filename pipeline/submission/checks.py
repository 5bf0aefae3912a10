"""Find what Kaggle would refuse in a submission, or what would score badly by accident."""
import pathlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipeline.data.competition import Competition
from pipeline.masks import rle
from pipeline.runtime.problem import Problem
from pipeline.submission.known_mistakes import Bounds, Coverage, count_first_column, find_mistake, sample_names
from pipeline.submission.reader import read_header, read_rows


@dataclass(frozen=True)
class Checked:
    """What is worth saying of a submission that passes."""

    mean_coverage: float  # of the masks, 0 to 1
    notes: tuple[str, ...]  # sentences


def check(
    path: pathlib.Path, expected_names: list[str], competition: Competition, bad_images: Collection[str] = (),
    means: Mapping[int, Coverage] = {}, force: bool = False,
) -> Checked:  # fmt: skip
    """Raise Problem that names the first wrong row, or a known mistake in the masks unless `force` says it is meant.

    expected_names: of the sample submission, in its order; the rows may have another. bad_images: names of images
    whose masks may be empty. means: `known_mistakes.mean_masks` of the training masks; {}: compare with none.
    """
    expected, sample = set(expected_names), set(sample_names(expected_names))
    line_of: dict[str, int] = {}
    masks: dict[str, Bounds] = {}
    covered_px = at_first = before_first = 0
    for line, (name, text) in read_rows(path, competition.submission_header):
        where = f"{path}, line {line}"
        if name not in expected:
            raise Problem(f"{where}: the image {name[:40]!r} is not in the sample submission.")
        if name in line_of:
            raise Problem(f"{where}: the image {name} is in line {line_of[name]} already.")
        line_of[name] = line
        try:
            bounds = rle.parse(text, competition.pixels)
        except ValueError as error:
            raise Problem(f"{where}, image {name}: {error}.") from None
        if len(bounds) == 0 and not competition.allow_empty_masks and name not in bad_images:
            raise Problem(f"{where}, image {name}: the mask is empty, but each image shows an object.")
        covered_px += int((bounds[:, 1] - bounds[:, 0]).sum())
        counts = count_first_column(bounds, competition)
        at_first, before_first = at_first + counts[0], before_first + counts[1]
        if name in sample:
            masks[name] = bounds
    if missing := [name for name in expected_names if name not in line_of]:
        what = f"has {len(line_of)} of {len(expected_names)} images"
        raise Problem(f"{path} {what}; {missing[0]} is the first of the sample submission that is missing.")
    notes = order_notes(path, list(line_of), expected_names, competition)
    if mistake := find_mistake(masks, expected_names, competition, means, (at_first, before_first)):
        if not force:
            raise Problem(f"{path}: {mistake}; correct that, or run `make submit FORCE=1` if it is meant.")
        notes.append(f"It looks like a known mistake, which is accepted: {mistake}.")
    mean_coverage, (lowest, highest) = covered_px / (competition.pixels * len(line_of)), competition.mean_coverage_range
    if not lowest <= mean_coverage <= highest:
        what = f"{mean_coverage:.1%} of their images on average, but {lowest:.1%} to {highest:.1%} are plausible"
        raise Problem(f"{path}: the masks cover {what}; check the threshold, and look at some masks.")
    return Checked(mean_coverage, tuple(notes))


def order_notes(
    path: pathlib.Path, names: list[str], expected_names: list[str], competition: Competition
) -> list[str]:
    """Say where rows or columns have another order than the sample submission, which Kaggle matches by name."""
    notes = []
    if names != expected_names:
        first = next(name for name, expected in zip(names, expected_names) if name != expected)
        what = "The rows have another order than the sample submission, which does not matter: Kaggle matches names"
        notes.append(f"{what}. The first one elsewhere is {first}.")
    if (header := read_header(path)) != list(competition.submission_header):
        notes.append(f"The columns are {','.join(header)}, in another order, which does not matter.")
    return notes
