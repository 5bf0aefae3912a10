"""Stage `demo`: draw a competition, train on it, predict, submit, print the score, and show where it comes from.

A fake Kaggle on the loopback interface lets the real `kaggle` package download the competition and submit to it without
an account. The demo's ledger lies in its run's folder, since its scores are those of drawn cars.
"""
import contextlib
import filecmp
import pathlib
import sys
import tempfile

from pipeline.paths import Run
from pipeline.runtime.launch import run_stage
from pipeline.synthetic.fake_kaggle import SOLUTION, FakeKaggle

KAGGLE_STAGES = ("download", "submit")
SESSION_STAGES = ("train", "validate", "predict")
DONE_THERE = ("folds", "threshold", "check")  # by the sessions of these
ON_KAGGLE = ("--on", "kaggle", "--gpu", "none", "--force")


def main(
    run: Run, drawn: pathlib.Path, drawing_arguments: list[str], arguments: list[str], offline: bool,
    on_kaggle: bool = False,
) -> None:  # fmt: skip
    """drawn: the folder to draw the competition in. drawing_arguments: of `demo-data`. arguments: of all other stages.

    offline: skip download and submit, and use the drawn folder directly. on_kaggle: train, validate and predict in
    sessions of the fake Kaggle, as `ON=kaggle` does at the real one.
    """
    folder = drawn if offline else drawn.with_name(f"{drawn.name}-downloaded")
    arguments_there, arguments = [*arguments, *ON_KAGGLE], [*arguments, "--data", str(folder)]
    steps = [
        ("Draw a competition of synthetic cars", "demo-data", ["--data", str(drawn), *drawing_arguments]),
        ("Download it from a fake Kaggle on this machine", "download", arguments),
        ("Split the cars into folds, each make in one fold only", "folds", arguments),
        ("Train a network and its refiner on each of two folds", "train", arguments),
        ("Validate each network on makes that it never saw", "validate", arguments),
        ("Find the threshold with the best out-of-fold Dice", "threshold", arguments),
        ("Predict the test images", "predict", arguments),
        ("Check the submission", "check", arguments),
        ("Score it as Kaggle would", "score", [*arguments, "--solution", str(drawn / SOLUTION)]),
        ("Submit it and wait for the score", "submit", [*arguments, "--force", "--ledger", str(run.demo_ledger)]),
        ("Write a page that shows where the networks are wrong", "report", arguments),
    ]
    steps = [step for step in steps if not (offline and step[1] in KAGGLE_STAGES)]
    if on_kaggle:
        steps = [(title, name, arguments_there if name in SESSION_STAGES else own) for title, name, own in steps]
        steps = [step for step in steps if step[1] not in DONE_THERE]
    with contextlib.ExitStack() as stack:
        environment: dict[str, str] = {}  # the variables that direct the client to the fake Kaggle
        if not offline:
            inbox = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            environment = stack.enter_context(FakeKaggle(drawn, inbox)).environment()
        for number, (title, stage, stage_arguments) in enumerate(steps, start=1):
            print_header(f"{number}/{len(steps)}  {title}")
            if stage == "download":
                remove_outdated(drawn, folder)
            run_stage(stage, *stage_arguments, environment=environment)
    print_header(f"Done. The submission is {run.submission}; open its report in a browser: {run.report_page}")


def remove_outdated(drawn: pathlib.Path, folder: pathlib.Path) -> None:
    """Remove files of an earlier demo with other cars: download trusts them, since Kaggle's files never change."""
    for path in drawn.glob("*.zip"):
        copy = folder / path.name
        if copy.is_file() and not filecmp.cmp(path, copy, shallow=False):
            copy.unlink()


def print_header(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")
