"""Stage `check`: a submission, the sample submission and the training masks in; exit 0, or a Problem that says why."""
import pathlib

from pipeline.data.dataset import competition_of
from pipeline.paths import SUBMISSIONS
from pipeline.submission import provenance
from pipeline.submission.checks import check
from pipeline.submission.known_mistakes import read_mean_masks


def main(submission: pathlib.Path, folder: pathlib.Path, kind: str = "carvana", force: bool = False) -> None:
    """folder: of the competition; kind: its `data.kind`; force: accept what looks like a known mistake."""
    competition = competition_of(kind)
    names = competition.read_sample(folder)
    bad_images = provenance.read_bad_images(SUBMISSIONS, submission)
    means, why_none = read_mean_masks(folder, competition)
    checked = check(submission, names, competition, bad_images, means, force)
    if bad_images:
        print(f"{len(bad_images)} images could not be read and have empty rows: {', '.join(bad_images)}.")
    for note in (*checked.notes, *filter(None, [why_none])):
        print(note)
    facts = f"{len(names)} images, masks cover {checked.mean_coverage:.1%} on average"
    print(f"{submission}: {facts}; it matches the sample submission of {folder}.")
