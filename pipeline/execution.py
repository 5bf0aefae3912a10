"""Where the stages of a command run: in this process, on several GPUs, or in a session on Kaggle."""
import pathlib
from collections.abc import Callable

from pipeline.options import DEFAULT_GPU, Common
from pipeline.runtime.problem import Problem


def run_on_kaggle(common: Common, stages: list[list[str]], force: bool) -> None:
    """Run stages, each a name and its own options, in a session on Kaggle, and bring home what they make."""
    from pipeline.kaggle import remote
    if common.data or any(item.startswith("data.folder=") for item in common.set):
        what = "DATA is a folder of this machine, and a session reads the competition's files where Kaggle has them"
        raise Problem(f"{what}; leave DATA and data.folder out of a command with ON=kaggle.")
    arguments = common._replace(on="here").arguments()
    lines = [[stage, *own, *arguments] for stage, *own in stages]
    remote.main(common.named_run(), lines, common.settings, common.config, common.gpu or DEFAULT_GPU, force)


def trainer_options(gpus: int | None, deterministic: bool) -> list[str]:
    """Return the options of a stage that trains, as its command line has them."""
    return [*(["--gpus", str(gpus)] if gpus else []), *(["--deterministic"] if deterministic else [])]


def run_trainers(
    stages: list[Callable[..., None]], common: Common, arguments: list[str], gpus: int, deterministic: bool
) -> None:
    """Run stages that train, one after another; on several GPUs by starting the same command line on each."""
    from pipeline.runtime import distributed, launch
    settings, numbers = common.settings, common.folds_to_train()
    if gpus > 1 and not distributed.launched_by_torchrun():
        launch.train(arguments, numbers, gpus)
        return
    with distributed.trainers(deterministic) as dist:
        for main_of_stage in stages:
            main_of_stage(settings, common.named_run(), numbers, pathlib.Path(settings.data.folder), dist)
