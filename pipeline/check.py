"""Stage `check`: a submission and the sample submission in; exit 0, or a Problem that names the wrong row."""
import pathlib

from pipeline.data.dataset import competition_of
from pipeline.paths import SUBMISSIONS
from pipeline.submission import provenance
from pipeline.submission.checks import check


def main(submission: pathlib.Path, folder: pathlib.Path, kind: str = "carvana") -> None:
    """folder: of the competition; kind: its `data.kind`."""
    competition = competition_of(kind)
    names = competition.read_sample(folder)
    bad_images = provenance.read_bad_images(SUBMISSIONS, submission)
    mean_coverage = check(submission, names, competition, bad_images)
    if bad_images:
        print(f"{len(bad_images)} images could not be read and have empty rows: {', '.join(bad_images)}.")
    facts = f"{len(names)} images, masks cover {mean_coverage:.1%} on average"
    print(f"{submission}: {facts}; it matches the sample submission of {folder}.")
