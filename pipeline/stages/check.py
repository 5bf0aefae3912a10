"""Stage `check`: a submission and the sample submission in; exit 0, or a Problem that names the wrong row."""
import pathlib

from pipeline import carvana
from pipeline.data.competition import read_table
from pipeline.leaderboard.check import check


def run(submission: pathlib.Path, folder: pathlib.Path) -> None:
    sample = read_table(folder, "sample_submission.csv", carvana.SUBMISSION_HEADER)
    names = sample["img"].tolist()
    mean_share = check(submission, names)
    print(
        f"{submission}: {len(names)} images, masks cover {mean_share:.1%} on average; "
        f"it fits the sample submission of {folder}."
    )
