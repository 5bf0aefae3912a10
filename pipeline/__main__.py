"""The command line: one sub-command a stage, no logic.

A stage is imported when it is called, so that none waits for what only another one needs.
"""
import argparse
import json
import pathlib
import re
import reprlib
import sys
from typing import NoReturn

from pipeline import config
from pipeline.paths import LEDGER, Run
from pipeline.runtime.problem import Problem, sentence_of

DEFAULT_CONFIG = "configs/unet_640.yaml"
DEFAULT_DATA = "data/carvana"
DIGITS = 18  # of a number; Python reads none of thousands


def main(words: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 a problem that the message names; argparse leaves with 2 on a wrong command line."""
    args = build_parser().parse_args(words)
    args.words = sys.argv[1:] if words is None else words
    try:
        args.command(args)
    except (Problem, OSError) as problem:
        if args.debug:
            raise
        print(f"{args.stage}: {sentence_of(problem)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{args.stage}: interrupted; the same command goes on or begins again.", file=sys.stderr)
        return 1
    return 0


def download(args: argparse.Namespace) -> None:
    from pipeline.kaggle import download as stage

    settings = settings_of(args)
    stage.main(pathlib.Path(settings.data.folder), args.hq or settings.data.hq, args.only, settings.data.kind)


def demo_data(args: argparse.Namespace) -> None:
    from pipeline.synthetic import write_competition as stage

    stage.main(pathlib.Path(args.data or "data/demo"), args.cars, args.test_cars, args.seed)


def demo_rooms(args: argparse.Namespace) -> None:
    from pipeline.synthetic import write_rooms as stage

    stage.main(pathlib.Path(args.data or "data/rooms"), args.scenes, args.height, args.width, args.seed, args.splits)


def shrink(args: argparse.Namespace) -> None:
    from pipeline.data import shrink as stage

    folder, kind = pathlib.Path(args.data or DEFAULT_DATA), settings_of(args).data.kind
    stage.main(folder, pathlib.Path(args.out), args.scale, args.quality, kind)


def folds(args: argparse.Namespace) -> None:
    from pipeline import folds as stage

    settings = settings_of(args)
    stage.main(settings, run_of(args), pathlib.Path(settings.data.folder))


def train(args: argparse.Namespace) -> None:
    from pipeline.runtime import launch, distributed
    from pipeline.data import grouping
    from pipeline import train as stage

    settings = settings_of(args)
    numbers = [0] if args.fold is None else args.fold or grouping.fold_numbers(grouping.read_folds(run_of(args).folds))
    if args.gpus > 1 and not distributed.launched_by_torchrun():
        launch.train(args.words, numbers, args.gpus)
    else:
        folder = pathlib.Path(settings.data.folder)
        stage.main(settings, run_of(args), numbers, folder, args.deterministic)


def find_batch(args: argparse.Namespace) -> None:
    from pipeline.training import find_batch as stage

    settings = settings_of(args)
    stage.main(settings, run_of(args), args.fold or [0], pathlib.Path(settings.data.folder))


def validate(args: argparse.Namespace) -> None:
    from pipeline import validate as stage

    stage.main(run_of(args), trained_folds(args), overrides_of(args))


def threshold(args: argparse.Namespace) -> None:
    from pipeline import threshold as stage

    stage.main(run_of(args))


def blend(args: argparse.Namespace) -> None:
    from pipeline import blend as stage

    stage.main(run_of(args), runs_of(args), args.fold or [], overrides_of(args))


def cutout(args: argparse.Namespace) -> None:
    from pipeline import cutout as stage

    stage.main(run_of(args), trained_folds(args), overrides_of(args), args.photo, pathlib.Path(args.out))


def predict(args: argparse.Namespace) -> None:
    from pipeline.runtime import launch, distributed
    from pipeline import predict as stage

    if args.gpus > 1 and not distributed.launched_by_torchrun():
        launch.launch_processes(args.words, args.gpus)
    else:
        stage.main(run_of(args), args.fold or [], overrides_of(args), runs_of(args), args.on_bad_image)


def check(args: argparse.Namespace) -> None:
    from pipeline import check as stage

    stage.main(submission_of(args), folder_of(args), data_of(args).kind)


def score(args: argparse.Namespace) -> None:
    from pipeline import score as stage

    solution = pathlib.Path(args.solution) if args.solution else folder_of(args) / "solution.csv"
    stage.main(submission_of(args), solution, data_of(args).kind)


def submit(args: argparse.Namespace) -> None:
    from pipeline.kaggle import submit as stage

    file = pathlib.Path(args.file) if args.file else None
    stage.main(
        run_of(args), file, trained_folds(args), folder_of(args), pathlib.Path(args.ledger),
        args.message, args.dry_run, args.force, args.set, shared_words(args), data_of(args).kind,
    )  # fmt: skip


def leaderboard(args: argparse.Namespace) -> None:
    from pipeline.kaggle import leaderboard as stage

    stage.main(pathlib.Path(args.ledger), settings_of(args).data.kind)


def reproduce(args: argparse.Namespace) -> None:
    from pipeline.kaggle import reproduce as stage

    stage.main(pathlib.Path(args.ledger), args.row, args.data, args.go)


def report(args: argparse.Namespace) -> None:
    from pipeline.report import report as stage

    run = Run(args.run or next(iter(args.runs), pathlib.Path(args.config).stem))
    stage.main(run, overrides_of(args), runs_of(args))


def compare(args: argparse.Namespace) -> None:
    from pipeline.report import compare as stage

    stage.main(run_of(args), runs_of(args), overrides_of(args))


def demo(args: argparse.Namespace) -> None:
    from pipeline.synthetic import demo as stage

    drawing = ["--cars", str(args.cars), "--test-cars", str(args.test_cars), "--seed", str(args.seed)]
    drawn, args.data = pathlib.Path(args.data), None
    stage.main(run_of(args), drawn, drawing, shared_words(args), args.offline)


def settings_of(args: argparse.Namespace) -> config.Settings:
    return config.load(pathlib.Path(args.config), overrides_of(args))


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The words of --set, with --data as one more; JSON's quotes are YAML's too."""
    return args.set + ([f"data.folder={json.dumps(args.data)}"] if args.data else [])


def folder_of(args: argparse.Namespace) -> pathlib.Path:
    return pathlib.Path(data_of(args).folder)


def data_of(args: argparse.Namespace) -> config.Data:
    """The competition: what the run, or the first of several, was trained on, else the config's; in --data if given."""
    runs = [run_of(args), *(Run(name) for name in getattr(args, "runs", []))]
    of_runs = (run.fold(run.trained_folds()[0]).config for run in runs if run.trained_folds())
    path = next(of_runs, pathlib.Path(args.config))
    return config.load(path, overrides_of(args)).data


def run_of(args: argparse.Namespace) -> Run:
    """--run, else all of --runs as `a+b`, else the config's file name."""
    return Run(args.run or "+".join(dict.fromkeys(getattr(args, "runs", []))) or pathlib.Path(args.config).stem)


def runs_of(args: argparse.Namespace) -> list[Run]:
    """Those of --runs; one alone is a run like any other."""
    return [Run(name) for name in dict.fromkeys(args.runs)]


def shared_words(args: argparse.Namespace) -> list[str]:
    """The flags that all stages take, for another stage."""
    words = ["--config", args.config, "--run", run_of(args).name]
    if args.fold is not None:
        words += ["--fold", ",".join(map(str, args.fold)) or "all"]
    if args.data:
        words += ["--data", args.data]
    if getattr(args, "runs", []):
        words += ["--runs", *args.runs]
    return words + (["--set", *args.set] if args.set else [])


def trained_folds(args: argparse.Namespace) -> list[int]:
    return args.fold or run_of(args).trained_folds()


def submission_of(args: argparse.Namespace) -> pathlib.Path:
    return pathlib.Path(args.file) if args.file else run_of(args).submission


def fold_numbers(word: str) -> list[int]:
    """"0" -> [0], "0,1" -> [0, 1], "all" -> []."""
    if word == "all":
        return []
    if not all(number.isdecimal() for number in word.split(",")):
        raise argparse.ArgumentTypeError(f"{word!r} is neither a number, nor several such as 0,1, nor all")
    return [int(number) for number in word.split(",")]


def count(word: str) -> int:
    return whole_number(word, least=1)


def whole_number(word: str, least: int = 0) -> int:
    if not word.isdecimal() or len(word) > DIGITS or int(word) < least:
        raise argparse.ArgumentTypeError(f"{reprlib.repr(word)} must be a whole number from {least} up")
    return int(word)


def run_name(word: str) -> str:
    if word != pathlib.Path(word).name or word == "..":
        raise argparse.ArgumentTypeError(f"{word!r} must be the plain name of a folder")
    return word


def shared_flags(config: str = DEFAULT_CONFIG, data: str | None = None, fold: list[int] | None = None):
    """The flags that every stage takes, with these defaults."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", default=config, metavar="YAML", help=f"default {config}")
    shared.add_argument("--fold", type=fold_numbers, default=fold, metavar="K", help="a number, several as 0,1, or all")
    shared.add_argument("--data", default=data, metavar="DIR", help="the competition folder; it is only read")
    shared.add_argument("--run", type=run_name, metavar="NAME", help="default: the config's file name")
    shared.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="a.b=1", help="settings laid over the config's"
    )
    shared.add_argument("--debug", action="store_true", help="show the traceback of a problem")
    return shared


class Parser(argparse.ArgumentParser):
    """One sentence for a wrong word, by its name in the Makefile and here, instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        named = re.sub(r"(^argument |(?<=required: ))--([a-z-]+)", lambda found: shown_flag(found[2]), message)
        self.exit(2, f"{self.prog.split()[-1]}: {named}; `{self.prog} --help` shows what it takes.\n")


def shown_flag(name: str) -> str:
    """"test-cars" -> "TEST_CARS (--test-cars)"."""
    return f"{name.upper().replace('-', '_')} (--{name})"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m pipeline", description="From Kaggle's archives to a submission.")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")

    def add(name: str, command, help: str, **defaults) -> argparse.ArgumentParser:
        stage = stages.add_parser(name, parents=[shared_flags(**defaults)], help=help, description=help)
        stage.set_defaults(command=command)
        return stage

    def add_drawing(stage: argparse.ArgumentParser) -> None:
        stage.add_argument("--cars", type=whole_number, default=32, help="training cars")
        stage.add_argument("--test-cars", type=whole_number, default=8)
        stage.add_argument("--seed", type=whole_number, default=0)

    def add_runs(stage: argparse.ArgumentParser) -> None:
        stage.add_argument("--runs", type=run_name, nargs="+", default=[], metavar="NAME", help="that of their mean")

    def add_ledger(stage: argparse.ArgumentParser) -> None:
        stage.add_argument("--ledger", default=str(LEDGER), metavar="CSV", help=f"default {LEDGER}")

    its_own = {"config": "configs/demo.yaml", "data": "data/demo", "fold": [0, 1]}
    stage = add("demo", demo, "the whole way on drawn cars, from no data to a score that came back", **its_own)
    stage.add_argument("--offline", action="store_true", help="without the server that stands in for Kaggle")
    add_drawing(stage)
    stage = add("download", download, "bring the competition's files from Kaggle, whole or not at all")
    stage.add_argument("--hq", action="store_true", help="the pictures with less JPEG compression")
    stage.add_argument("--only", nargs="+", action="extend", default=[], metavar="NAME", help="these files alone")
    add_drawing(add("demo-data", demo_data, "draw a synthetic competition folder"))
    stage = add("demo-rooms", demo_rooms, "draw rooms in a file of the structure of NYU Depth v2")
    stage.add_argument("--scenes", type=whole_number, default=48, help="rooms, of four pictures each")
    stage.add_argument("--height", type=whole_number, default=240, help="of a picture, in pixels")
    stage.add_argument("--width", type=whole_number, default=320)
    stage.add_argument("--seed", type=whole_number, default=0)
    stage.add_argument("--splits", action="store_true", help="a splits.mat, too: the first half is to train on")
    stage = add("shrink", shrink, "make a light copy of a competition folder")
    stage.add_argument("--out", required=True, metavar="DIR")
    stage.add_argument("--scale", type=int, choices=(2, 4, 8), default=2)
    stage.add_argument("--quality", type=int, default=90, help="of the JPEGs, 1 to 100")
    add("folds", folds, "split the pictures into folds that no make, or other group, crosses")
    stage = add("train", train, "train a fold, or go on where it was stopped")
    stage.add_argument("--gpus", type=count, default=1, metavar="N", help="on one fold together, or each on a fold")
    stage.add_argument("--deterministic", action="store_true", help="the same bits each time, on a GPU too, if slower")
    add("find-batch", find_batch, "measure the largest batch that fits; train nothing")
    add("validate", validate, "judge each trained fold on the pictures that it never saw")
    add("threshold", threshold, "find the cut with the best out-of-fold Dice")
    stage = add("blend", blend, "find what each of several runs should weigh, and what that gains")
    stage.add_argument("--runs", type=run_name, nargs="+", required=True, metavar="NAME", help="with the same folds")
    stage = add("predict", predict, "write the submission, or go on where that was stopped")
    stage.add_argument("--runs", type=run_name, nargs="+", default=[], metavar="NAME", help="average several runs")
    stage.add_argument("--gpus", type=count, default=1, metavar="N", help="share the pictures out")
    stage.add_argument(
        "--on-bad-image", choices=("error", "empty"), default="error", help="stop, or write an empty row and tell"
    )
    stage = add("cutout", cutout, "cut the object out of any photos, as PNGs with a transparent background, or classes")
    stage.add_argument("photo", nargs="+", type=pathlib.Path, metavar="PHOTO")
    stage.add_argument("--out", required=True, metavar="DIR")
    stage = add("check", check, "say what is wrong with a submission")
    add_runs(stage)
    stage.add_argument("file", nargs="?", metavar="FILE", help="default: the run's own")
    stage = add("score", score, "grade a submission against a solution.csv")
    add_runs(stage)
    stage.add_argument("file", nargs="?", metavar="FILE", help="default: the run's own")
    stage.add_argument("--solution", metavar="CSV", help="default: solution.csv in the competition folder")
    stage = add("submit", submit, "hand a submission in at Kaggle, and wait for its score")
    add_runs(stage)
    stage.add_argument("file", nargs="?", metavar="FILE", help="default: the run's own, predicted if need be")
    stage.add_argument("--message", metavar="TEXT", help="default: what made the submission")
    stage.add_argument("--dry-run", action="store_true", help="do all but upload, and print the command that would")
    stage.add_argument("--force", action="store_true", help="also what was submitted already")
    add_ledger(stage)
    add_ledger(add("leaderboard", leaderboard, "show the ledger, and where its scores would have stood"))
    stage = add("reproduce", reproduce, "print the commands that make a submission of the ledger again")
    stage.add_argument("row", type=whole_number, metavar="ROW", help="its number, as leaderboard shows it")
    stage.add_argument("--go", action="store_true", help="predict it again, and compare the bytes")
    add_ledger(stage)
    stage = add("report", report, "a page that shows where a run is wrong")
    stage.add_argument(
        "--runs", type=run_name, nargs="+", default=[], metavar="NAME", help="of the first; the others must agree"
    )
    stage = add("compare", compare, "a page that shows where one of two runs is better")
    stage.add_argument("--runs", type=run_name, nargs="+", required=True, metavar="NAME", help="two of them")
    return parser


if __name__ == "__main__":
    sys.exit(main())
