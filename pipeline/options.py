"""The options that every command takes, and what they mean to a stage: its settings, its run, its folds.

Like those of the commands in `__main__`, each stands on a line of its own, for .ci/commands.awk.
"""
import functools
import inspect
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from typer import Option, Typer

from pipeline.config import Settings, load
from pipeline.paths import Run
from pipeline.runtime.arguments import fold_numbers, run_name
from pipeline.runtime.problem import Problem

DEFAULT_CONFIG = "configs/unet_640.yaml"
DEFAULT_GPU = "NvidiaTeslaT4"
AT_KAGGLE = ("demo", "train", "refine", "validate", "predict")  # what ON=kaggle moves there
# What may follow one of these in the same `make … ON=kaggle`; it runs here, or a session has done it.
BESIDE_KAGGLE = (
    "download", "folds", "threshold", "check", "submit", "report", "score", "leaderboard", "remote-status",
    "remote-cancel",
)  # fmt: skip


class Common(NamedTuple):
    """The options that every command takes."""

    config: Annotated[str, Option(metavar="YAML", help="settings of a run; default: unet_640, a GPU")] = DEFAULT_CONFIG
    fold: Annotated[Sequence[int] | None, Option(parser=fold_numbers, metavar="K", help="0, or 0,1, or all")] = None
    data: Annotated[str | None, Option(metavar="DIR", help="folder of images, only read; default: config's")] = None
    run: Annotated[str | None, Option(parser=run_name, metavar="NAME", help="default: config's file name")] = None
    set: Annotated[list[str], Option(metavar="a.b=1", help="override settings of the config")] = []
    debug: Annotated[bool, Option("--debug", help="show the traceback of a problem")] = False
    on: Annotated[Literal["here", "kaggle"], Option(help="where to train, validate and predict")] = "here"
    gpu: Annotated[str | None, Option(metavar="SHAPE", help="Kaggle's, as NvidiaTeslaT4; none: a CPU")] = None

    @property
    def settings(self) -> Settings:
        return load(pathlib.Path(self.config), self.overrides)

    @property
    def overrides(self) -> list[str]:
        """Return the overrides of --set, with --data as one more; JSON's quotes are YAML's too."""
        return [*self.set, *([f"data.folder={json.dumps(self.data)}"] if self.data else [])]

    def check_place(self, command: str) -> None:
        """Raise Problem if ON= or GPU= does not fit a command: nothing that was asked for is left out silently."""
        if self.on == "kaggle" and command not in (*AT_KAGGLE, *BESIDE_KAGGLE):
            raise Problem(f"ON=kaggle is for {', '.join(AT_KAGGLE)}; leave it out of {command}, which runs only here.")
        if self.on == "here" and self.gpu:
            raise Problem(f"GPU={self.gpu} is one of Kaggle's; add ON=kaggle, or set GPUS=, the number to use here.")

    def with_pseudo(self, pseudo: str | None) -> "Common":
        """Return these options with --pseudo, a submission, as one more override."""
        return self._replace(set=[*self.set, f"data.pseudo={json.dumps(pseudo)}"]) if pseudo else self

    def named_run(self, runs: Sequence[str] = ()) -> Run:
        """Return --run, else all of --runs as `a+b`, else the config's file name."""
        return Run(self.run or "+".join(dict.fromkeys(runs)) or pathlib.Path(self.config).stem)

    @property
    def kind(self) -> str:
        """Return data.kind of the config; its default if there is no config and none was named."""
        path = pathlib.Path(self.config)
        if self.config == DEFAULT_CONFIG and not path.is_file():
            return Settings().data.kind
        return load(path, self.overrides, check_choices=False).data.kind

    def folder_and_kind(self, runs: Sequence[str] = ()) -> tuple[pathlib.Path, str]:
        """Return the competition of the (first) run's training, else of the config, in --data if that is given."""
        candidates = [self.named_run(runs), *(Run(name) for name in runs)]
        configs = (run.fold(run.trained_folds()[0]).config for run in candidates if run.trained_folds())
        data = load(next(configs, pathlib.Path(self.config)), self.overrides, check_choices=False).data
        return pathlib.Path(data.folder), data.kind

    def trained_folds(self, runs: Sequence[str] = ()) -> list[int]:
        return list(self.fold or self.named_run(runs).trained_folds())

    def folds_to_train(self) -> list[int]:
        from pipeline.data import grouping
        if self.fold is None:
            return [0]
        return list(self.fold) or grouping.fold_numbers(grouping.read_folds(self.named_run().folds))

    def arguments(self, runs: Sequence[str] = ()) -> list[str]:
        """Return these options as the command line of another stage."""
        folds = [] if self.fold is None else ["--fold", ",".join(map(str, self.fold)) or "all"]
        data = ["--data", self.data] if self.data and self.on == "here" else []  # Kaggle's sessions have their own
        there = ["--on", self.on, *(["--gpu", self.gpu] if self.gpu else [])] if self.on != "here" else []
        lists = [*(["--runs", *runs] if runs else []), *(["--set", *self.set] if self.set else [])]
        debug = ["--debug"] if self.debug else []
        return ["--config", self.config, "--run", self.named_run(runs).name, *folds, *data, *there, *lists, *debug]


def declare(app: Typer, **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function to the command line, with the options of `Common` (and these defaults) before its own."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        common = inspect.signature(Common).parameters
        own = list(inspect.signature(function).parameters.values())[1:]

        @functools.wraps(function)
        def call(**values: Any) -> None:
            options = Common(**{name: values.pop(name) for name in common})
            options.check_place(function.__name__.replace("_", "-"))
            function(options, **values)

        options = [option.replace(default=defaults.get(option.name, option.default)) for option in common.values()]
        keyword_only = [option.replace(kind=option.KEYWORD_ONLY) for option in (*options, *own)]
        call.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        app.command()(call)
        return function

    return add


def runs_of(names: Sequence[str]) -> list[Run]:
    return [Run(name) for name in dict.fromkeys(names)]


def path_or_none(path: str | None) -> pathlib.Path | None:
    return pathlib.Path(path) if path else None
