"""The command line: a command is a typed function of a line or two.

An option has one name on all levels: the parameter `dry_run` is the flag `--dry-run` and the make variable `DRY_RUN`.
The Makefile reads the signatures below (.ci/commands.awk), so every option stands on a line of its own:
`name: Annotated[TYPE, Option(...)]`, where bool is a switch, list an option that can be repeated, and others a value.

A stage is imported when its command is called, so that none waits for what only another one needs.
"""
import functools
import os
import pathlib
import sys
from typing import Annotated, Any, Literal

import typer
from typer import BadParameter, Context, Option

from pipeline.execution import run_on_kaggle, run_trainers, trainer_options
from pipeline.options import Common, declare, path_or_none, runs_of
from pipeline.paths import LEDGER
from pipeline.runtime.arguments import positive_number, repeat_list_flags, run_name, usage_sentence, whole_number
from pipeline.runtime.problem import Problem, sentence_of

PROGRAM = "python -m pipeline"
DEFAULT_DATA = "data/carvana"
UsageError: Any = BadParameter.__base__  # typer has no public name for it

app = typer.Typer(
    help="From Kaggle's archives to a submission.", add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False, context_settings={"terminal_width": 120},
)  # fmt: skip


command = functools.partial(declare, app)


# --- from data to a submission ---------------------------------------------------------------------------------------


@command(config="configs/demo.yaml", data="data/demo", fold="0,1")
def demo(
    common: Common,
    offline: Annotated[bool, Option("--offline", help="without the local server that stands in for Kaggle")] = False,
    cars: Annotated[int, Option(parser=whole_number, metavar="N", help="synthetic cars to train on")] = 32,
    test_cars: Annotated[int, Option(parser=whole_number, metavar="N", help="synthetic cars to predict")] = 8,
    seed: Annotated[int, Option(parser=whole_number, metavar="N", help="another number draws other cars")] = 0,
) -> None:
    """Run every stage on synthetic cars, from no data to a score from (a local stand-in for) Kaggle."""
    from pipeline.synthetic import demo as stage
    drawing = ["--cars", str(cars), "--test-cars", str(test_cars), "--seed", str(seed)]
    on_kaggle = common.on == "kaggle"
    if on_kaggle and offline:
        raise Problem("OFFLINE=1 leaves Kaggle out, and ON=kaggle trains there; set one of them.")
    if common.gpu not in (None, "none"):
        raise Problem(f"The fake Kaggle of the demo has no {common.gpu}; leave GPU out.")
    run = common.named_run(["demo-kaggle"] if on_kaggle else [])  # not among the files of a demo that trained here
    arguments = common._replace(data=None, on="here", gpu=None, run=run.name).arguments()
    stage.main(run, pathlib.Path(common.data or "data/demo"), drawing, arguments, offline, on_kaggle)


@command()
def download(
    common: Common,
    hq: Annotated[bool, Option("--hq", help="the images with less JPEG compression")] = False,
    only: Annotated[list[str], Option(metavar="FILE", help="download only these files")] = [],
) -> None:
    """Download the competition's files from Kaggle and verify them."""
    from pipeline.kaggle import download as stage
    data = common.settings.data
    stage.main(pathlib.Path(data.folder), hq or data.hq, only, data.kind)


@command()
def demo_data(
    common: Common,
    cars: Annotated[int, Option(parser=whole_number, metavar="N", help="synthetic cars to train on")] = 32,
    test_cars: Annotated[int, Option(parser=whole_number, metavar="N", help="synthetic cars to predict")] = 8,
    seed: Annotated[int, Option(parser=whole_number, metavar="N", help="another number draws other cars")] = 0,
) -> None:
    """Draw a synthetic competition folder."""
    from pipeline.synthetic import write_competition as stage
    stage.main(pathlib.Path(common.data or "data/demo"), cars, test_cars, seed)


@command()
def demo_rooms(
    common: Common,
    scenes: Annotated[int, Option(parser=whole_number, metavar="N", help="rooms, of four images each")] = 48,
    height: Annotated[int, Option(parser=whole_number, metavar="PX", help="of an image")] = 240,
    width: Annotated[int, Option(parser=whole_number, metavar="PX", help="of an image")] = 320,
    seed: Annotated[int, Option(parser=whole_number, metavar="N", help="another number draws other rooms")] = 0,
    splits: Annotated[bool, Option("--splits", help="also write splits.mat: train on the first half")] = False,
) -> None:
    """Draw synthetic rooms into a file with the structure of NYU Depth v2."""
    from pipeline.synthetic import write_rooms as stage
    stage.main(pathlib.Path(common.data or "data/rooms"), scenes, height, width, seed, splits)


@command()
def shrink(
    common: Common,
    out: Annotated[str, Option(metavar="DIR", help="folder to write to")],
    scale: Annotated[Literal[2, 4, 8], Option(help="how many times smaller")] = 2,
    quality: Annotated[int, Option(parser=whole_number, metavar="N", help="of the JPEGs, 1 to 100")] = 90,
    train_only: Annotated[bool, Option("--train-only", help="leave the test images out")] = False,
) -> None:
    """Make a small copy of a competition folder, for a slow link."""
    from pipeline.data import shrink as stage
    folder = pathlib.Path(common.data or DEFAULT_DATA)
    stage.main(folder, pathlib.Path(out), scale, quality, train_only, common.kind)


@command()
def folds(common: Common) -> None:
    """Split the images into folds so that no make (or other group) is in two of them."""
    from pipeline import folds as stage
    if common.on == "kaggle":
        print("The session on Kaggle splits the images itself, before it trains.")
        return
    settings = common.settings
    stage.main(settings, common.named_run(), pathlib.Path(settings.data.folder))


@command()
def train(
    common: Common,
    context: Context,
    pseudo: Annotated[str | None, Option(metavar="FILE", help="submission, or folder, whose masks to learn")] = None,
    gpus: Annotated[int | None, Option(parser=positive_number, metavar="N", help="fold on each, or one on all")] = None,
    deterministic: Annotated[bool, Option("--deterministic", help="same bits each time on a GPU too; slower")] = False,
    force: Annotated[bool, Option("--force", help="send uncommitted code to Kaggle")] = False,
) -> None:
    """Train a fold, or continue where it was stopped."""
    common = common.with_pseudo(pseudo)
    if common.on == "kaggle":
        run_on_kaggle(common, [["folds"], ["train", *trainer_options(gpus, deterministic)]], force)
        return
    from pipeline import refine, train
    stages = [train.main, *([refine.main] if common.settings.refine else [])]
    run_trainers(stages, common, context.obj, gpus or 1, deterministic)


@command()
def refine(
    common: Common,
    context: Context,
    pseudo: Annotated[str | None, Option(metavar="FILE", help="submission, or folder, whose masks to learn")] = None,
    gpus: Annotated[int | None, Option(parser=positive_number, metavar="N", help="fold on each, or one on all")] = None,
    deterministic: Annotated[bool, Option("--deterministic", help="same bits each time on a GPU too; slower")] = False,
    force: Annotated[bool, Option("--force", help="send uncommitted code to Kaggle")] = False,
) -> None:
    """Train the refiner of a trained fold, which corrects its masks along the edge."""
    common = common.with_pseudo(pseudo)
    if common.on == "kaggle":
        run_on_kaggle(common, [["refine", *trainer_options(gpus, deterministic)]], force)
        return
    from pipeline import refine as stage
    run_trainers([stage.main], common, context.obj, gpus or 1, deterministic)


@command()
def find_batch(common: Common) -> None:
    """Measure the largest batch that fits into memory; train nothing."""
    from pipeline.training import find_batch as stage
    settings, numbers = common.settings, common.folds_to_train()
    stage.main(settings, common.named_run(), numbers, pathlib.Path(settings.data.folder))


@command()
def validate(
    common: Common,
    force: Annotated[bool, Option("--force", help="send uncommitted code to Kaggle")] = False,
) -> None:
    """Predict the held-out images of every trained fold and evaluate them."""
    if common.on == "kaggle":
        threshold = [["threshold"]] if common.settings.task.kind == "binary" else []
        run_on_kaggle(common, [["validate"], *threshold], force)
        return
    from pipeline import validate as stage
    stage.main(common.named_run(), common.trained_folds(), common.overrides)


@command()
def threshold(common: Common) -> None:
    """Find the threshold with the best out-of-fold Dice."""
    if common.on == "kaggle":
        print("The session on Kaggle that validates finds the threshold, too.")
        return
    from pipeline import threshold as stage
    stage.main(common.named_run())


@command()
def blend(
    common: Common,
    runs: Annotated[list[str], Option(parser=run_name, metavar="NAME", help="runs to average, with the same folds")],
) -> None:
    """Find the best weights for an average of several runs, and what it gains."""
    from pipeline import blend as stage
    stage.main(common.named_run(runs), runs_of(runs), list(common.fold or []), common.overrides)


@command()
def predict(
    common: Common,
    context: Context,
    runs: Annotated[list[str], Option(parser=run_name, metavar="NAME", help="average these runs")] = [],
    gpus: Annotated[int | None, Option(parser=positive_number, metavar="N", help="split images among these")] = None,
    on_bad_image: Annotated[Literal["error", "empty"], Option(help="stop, or write an empty mask and warn")] = "error",
    force: Annotated[bool, Option("--force", help="send uncommitted code to Kaggle")] = False,
) -> None:
    """Write submissions/RUN.csv.gz, or continue where it was stopped."""
    if common.on == "kaggle":
        if runs:
            raise Problem("RUNS= averages runs of several sessions, which Kaggle's cannot; predict them here.")
        split = ["--gpus", str(gpus)] if gpus else []
        # Of its own masks a known mistake is a warning, not the end of hours: `submit`, here, looks again.
        run_on_kaggle(common, [["predict", "--on-bad-image", on_bad_image, *split], ["check", "--force"]], force)
        return
    from pipeline import predict as stage
    from pipeline.runtime import distributed, launch
    if gpus and gpus > 1 and not distributed.launched_by_torchrun():
        launch.launch_processes(context.obj, gpus)
    else:
        run, numbers = common.named_run(runs), list(common.fold or [])
        stage.main(run, numbers, common.overrides, runs_of(runs), on_bad_image)


@command()
def check(
    common: Common,
    runs: Annotated[list[str], Option(parser=run_name, metavar="NAME", help="the submission of their average")] = [],
    file: Annotated[str | None, Option(metavar="CSV", help="default: the run's")] = None,
    force: Annotated[bool, Option("--force", help="accept what looks like a known mistake")] = False,
) -> None:
    """Check a submission for errors."""
    if common.on == "kaggle" and not (file or runs):  # which no session has made
        print("The session on Kaggle that predicts checks the submission, too; `make submit` checks it again.")
        return
    from pipeline import check as stage
    stage.main(path_or_none(file) or common.named_run(runs).submission, *common.folder_and_kind(runs), force)


@command()
def submit(
    common: Common,
    runs: Annotated[list[str], Option(parser=run_name, metavar="NAME", help="the submission of their average")] = [],
    file: Annotated[str | None, Option(metavar="CSV", help="default: the run's, predicted if missing")] = None,
    message: Annotated[str | None, Option(metavar="TEXT", help="default: how the submission was made")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="do not upload, but print the command that would")] = False,
    force: Annotated[bool, Option("--force", help="submit what was submitted before, or looks wrong")] = False,
    ledger: Annotated[str, Option(metavar="CSV", help="table of submissions")] = str(LEDGER),
) -> None:
    """Predict if missing, check, upload to Kaggle and wait for the score."""
    from pipeline.kaggle import submit as stage
    folder, kind = common.folder_and_kind(runs)
    stage.main(
        common.named_run(runs), path_or_none(file), common.trained_folds(runs), folder,
        pathlib.Path(ledger), message, dry_run, force, common.set, common.arguments(runs), kind,
    )  # fmt: skip


@command(fold="all")
def compete(
    common: Common,
    runs: Annotated[list[str], Option(parser=run_name, metavar="NAME", help="runs to blend; name this one, too")] = [],
    pseudo: Annotated[str | None, Option(metavar="FILE", help="submission, or folder, whose masks to learn")] = None,
    gpus: Annotated[int, Option(parser=positive_number, metavar="N", help="a fold on each; share the test images")] = 1,
    deterministic: Annotated[bool, Option("--deterministic", help="same bits each time on a GPU too; slower")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="do not upload, but print the command that would")] = False,
    ledger: Annotated[str, Option(metavar="CSV", help="table of submissions")] = str(LEDGER),
) -> None:
    """Do all of it, from folds to the submission; continue where it was stopped."""
    from pipeline import compete as stage
    stage.main(common.with_pseudo(pseudo), runs, gpus, deterministic, dry_run, pathlib.Path(ledger))


# --- a closer look ---------------------------------------------------------------------------------------------------


@command()
def report(
    common: Common,
    runs: Annotated[list[str], Option(parser=run_name, metavar="NAME", help="of the first; others must agree")] = [],
) -> None:
    """Write runs/RUN/report/index.html, which shows where a run is wrong."""
    from pipeline.report import report as stage
    stage.main(common.named_run(runs[:1]), common.overrides, runs_of(runs))


@command()
def compare(
    common: Common,
    runs: Annotated[list[str], Option(parser=run_name, metavar="NAME", help="two runs")],
) -> None:
    """Write a page that shows where one of two runs is better."""
    from pipeline.report import compare as stage
    stage.main(common.named_run(runs), runs_of(runs), common.overrides)


@command()
def cutout(
    common: Common,
    image: Annotated[list[str], Option(metavar="PATH", help="images, folders of them, wildcards")],
    out: Annotated[str, Option(metavar="DIR", help="folder to write to")],
    mask: Annotated[bool, Option("--mask", help="masks alone: grey PNGs of 0 and 255, or of class indices")] = False,
    max_megapixels: Annotated[int, Option(parser=positive_number, metavar="N", help="refuse larger images")] = 250,
) -> None:
    """Cut the object out of images: PNGs with a transparent background, or classes."""
    from pipeline import cutout as stage
    folds = common.trained_folds()
    stage.main(common.named_run(), folds, common.overrides, image, pathlib.Path(out), mask, max_megapixels)


@command()
def score(
    common: Common,
    runs: Annotated[list[str], Option(parser=run_name, metavar="NAME", help="the submission of their average")] = [],
    file: Annotated[str | None, Option(metavar="CSV", help="default: the run's")] = None,
    solution: Annotated[str | None, Option(metavar="CSV", help="default: solution.csv in the data folder")] = None,
    against: Annotated[str | None, Option(metavar="CSV", help="another submission: how much worse is it?")] = None,
) -> None:
    """Score a submission against a solution.csv."""
    from pipeline import score as stage
    folder, kind = common.folder_and_kind(runs)
    truth = path_or_none(solution) or folder / "solution.csv"
    stage.main(path_or_none(file) or common.named_run(runs).submission, truth, kind, path_or_none(against))


@command()
def leaderboard(
    common: Common,
    ledger: Annotated[str, Option(metavar="CSV", help="table of submissions")] = str(LEDGER),
) -> None:
    """Show the ledger of submissions, and where their scores would rank."""
    from pipeline.kaggle import leaderboard as stage
    stage.main(pathlib.Path(ledger), common.kind)


@command()
def remote_status(common: Common) -> None:
    """Show a run's last session on Kaggle, and how many GPU hours are left."""
    from pipeline.kaggle import remote
    remote.show_status(common.named_run(), common.settings)


@command()
def remote_cancel(
    common: Common,
    force: Annotated[bool, Option("--force", help="delete all that Kaggle keeps of the run")] = False,
) -> None:
    """Cancel a run's session on Kaggle; what is here stays."""
    from pipeline.kaggle import remote
    remote.cancel(common.named_run(), common.settings, force)


@command()
def reproduce(
    common: Common,
    row: Annotated[int, Option(parser=whole_number, metavar="N", help="of the ledger, as leaderboard shows it")],
    go: Annotated[bool, Option("--go", help="predict it again and compare the bytes")] = False,
    ledger: Annotated[str, Option(metavar="CSV", help="table of submissions")] = str(LEDGER),
) -> None:
    """Print the commands that make a submission of the ledger again."""
    from pipeline.kaggle import reproduce as stage
    stage.main(pathlib.Path(ledger), row, common.data, go)


# --- exit codes and messages -----------------------------------------------------------------------------------------

root = typer.main.get_command(app)
COMMANDS: dict[str, Any] = root.commands  # type: ignore[attr-defined]
LISTS = {flag for one in COMMANDS.values() for option in one.params if option.multiple for flag in option.opts}


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 a problem that the message names, 2 a wrong command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with root.make_context(PROGRAM, repeat_list_flags(arguments, LISTS), obj=arguments) as context:
            root.invoke(context)
    except UsageError as error:
        program = f"{PROGRAM} {arguments[0]}" if arguments and arguments[0] in COMMANDS else PROGRAM
        print(usage_sentence(error, program), file=sys.stderr)
        return 2
    except typer.Exit as ended:
        return ended.exit_code
    except (Problem, OSError) as problem:
        if "--debug" in arguments:
            raise
        print(f"{arguments[0]}: {sentence_of(problem)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{arguments[0]}: interrupted; run the same command again to continue or restart.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # On a GPU: memory that torch has freed fits batches of other sizes, too. Read when torch is imported.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    sys.exit(main())
