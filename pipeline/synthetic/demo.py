"""Stage `demo`: nothing in; a drawn competition, trained, predicted and submitted, and the score that came back out.

A loopback server stands in for Kaggle: the real `kaggle` package downloads the competition from it and submits to
it, without an account. The ledger of the demo lies with its run, for its scores are of drawn cars.
"""
import contextlib
import filecmp
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from pipeline.synthetic.fake_kaggle import SOLUTION, FakeKaggle
from pipeline.paths import Run
from pipeline.runtime.launch import run_stage

AT_KAGGLE = ("download", "submit")


def main(run: Run, drawn: pathlib.Path, drawing: list[str], words: list[str], offline: bool) -> None:
    """drawn: the folder to draw the competition in. drawing: words of `demo-data`; words: of all the other stages.

    offline: no Kaggle, not even a pretended one: the drawn folder is used as it is.
    """
    folder = drawn if offline else drawn.with_name(f"{drawn.name}-downloaded")
    words = [*words, "--data", str(folder)]
    steps = [
        ("Draw a competition of cars that nobody photographed", "demo-data", ["--data", str(drawn), *drawing]),
        ("Download it, from a loopback server that stands in for Kaggle", "download", words),
        ("Split its cars into folds that no make crosses", "folds", words),
        ("Train a network for two of the folds", "train", words),
        ("Judge each network on the makes that it never saw", "validate", words),
        ("Find the cut with the best out-of-fold Dice", "threshold", words),
        ("Predict the test pictures", "predict", words),
        ("Check the submission", "check", words),
        ("Score it as the leaderboard would", "score", [*words, "--solution", str(drawn / SOLUTION)]),
        ("Submit it, and wait for the score", "submit", [*words, "--force", "--ledger", str(run.demo_ledger)]),
    ]
    steps = [step for step in steps if not (offline and step[1] in AT_KAGGLE)]
    nothing: contextlib.AbstractContextManager[dict[str, str]] = contextlib.nullcontext({})
    with nothing if offline else pretended_kaggle(drawn) as environment:
        for number, (title, stage, its_words) in enumerate(steps, start=1):
            print_header(f"{number}/{len(steps)}  {title}")
            if stage == "download":
                remove_others(drawn, folder)
            run_stage(stage, *its_words, environment=environment)
    print_header(f"The submission: {run.submission}. Where it is wrong: `make report RUN={run.name}`")


def remove_others(drawn: pathlib.Path, folder: pathlib.Path) -> None:
    """Remove what an earlier demo downloaded of other cars: Kaggle's files never change, so download trusts them."""
    for path in drawn.glob("*.zip"):
        copy = folder / path.name
        if copy.is_file() and not filecmp.cmp(path, copy, shallow=False):
            copy.unlink()


@contextlib.contextmanager
def pretended_kaggle(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """A server with this competition; the variables that lead the client to it."""
    with tempfile.TemporaryDirectory() as inbox, FakeKaggle(folder, pathlib.Path(inbox)) as server:
        yield server.environment()


def print_header(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")
