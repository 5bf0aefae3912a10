"""Checkpoints to networks that are ready to predict."""
import pathlib
from collections.abc import Iterable

import torch

from pipeline import config
from pipeline.config import Settings
from pipeline.data.images import grid_shape
from pipeline.inference.class_maps import ClassEnsemble
from pipeline.inference.ensemble import Ensemble, Member
from pipeline.inference.tta import TTA_SETS
from pipeline.model import checkpoint
from pipeline.model.factory import Segmenter, build
from pipeline.runtime.memory import largest_that_fits, step_fits
from pipeline.runtime.problem import Problem


def load_network(path: pathlib.Path, device: torch.device) -> tuple[Segmenter, Settings]:
    """The network of a `best.pt`, and the settings that trained it."""
    state = checkpoint.load(path, keys=("settings", "network"))
    settings = config.parse(state["settings"], where=str(path))
    # Encoder weights were where training began; the checkpoint has what became of them.
    model = settings.model.model_copy(update={"encoder_weights": None}).model_dump()
    network = build(**model, channels=settings.data.channels, classes=settings.task.outputs)
    try:
        network.load_state_dict(state["network"])
    except Exception as error:  # the values of a strange file may raise anything
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"The checkpoint {path} does not fit its own settings ({reason}); train it again.") from None
    return network.to(device).eval(), settings


def load_members(
    weight_of_path: dict[pathlib.Path, float], overrides: list[str], device: torch.device
) -> tuple[list[Member], list[Settings]]:
    """The networks of these checkpoints for an `Ensemble`, and the settings that trained each.

    Each sees its pictures as it was trained to, in the views that its settings and the words over them ask for.
    """
    members: list[Member] = []
    trained: list[Settings] = []
    for path, weight in weight_of_path.items():
        network, settings = load_network(path, device)
        if trained and settings.data.hq != trained[0].data.hq:
            raise Problem(
                f"{next(iter(weight_of_path))} and {path} were trained with another data.hq; predict them one by one."
            )
        members.append(member_of(network, config.for_later_stage(settings, overrides), weight))
        trained.append(settings)
    return members, trained


def check_cars(paths: Iterable[pathlib.Path], trained: list[Settings], what: str) -> None:
    """Problem when one of these checkpoints was trained on several classes or on other pictures than cars.

    By what the checkpoint says itself: the `config.yaml` beside it, which is looked at first, may be another's.
    """
    for path, settings in zip(paths, trained):
        if settings.task.kind != "binary":
            raise Problem(f"{what} is for one object and its background, but {path} was trained on several classes.")
        if settings.data.kind != "carvana":
            kind = settings.data.kind
            raise Problem(f"{what} is for the competition's cars, but {path} was trained on data.kind {kind}.")


def ensemble_of(members: list[Member], binary: bool, height: int, width: int) -> Ensemble:
    """What predicts probabilities of the object, or class maps."""
    return (Ensemble if binary else ClassEnsemble)(members, height, width)


def facts_of(path: pathlib.Path) -> tuple[tuple[int, int] | None, tuple[str, ...]]:
    """Full size (height, width) of the pictures that trained a `best.pt`, and the names of their classes.

    Checkpoints from before there were other pictures than cars say neither.
    """
    state = checkpoint.load(path, keys=("settings",))
    height, width = state.get("full_size", (None, None))
    return ((height, width) if height else None), tuple(state.get("classes", ()))


def folds_of(path: pathlib.Path) -> str | None:
    """The digest of the folds that a `best.pt` was trained on; None of checkpoints from before it was noted."""
    return checkpoint.load(path, keys=("settings",)).get("folds")


def member_of(network: Segmenter, settings: Settings, weight: float) -> Member:
    if settings.predict.compile:
        network.compile()
    return Member(network, settings.data.scale, TTA_SETS[settings.predict.tta], weight)


def batch_that_fits(ensemble: Ensemble, batch_size: int) -> int:
    """`batch_size`, or where the memory is too small for it the largest that is not, found by trying.

    Trying also compiles and tunes what is to be.
    """

    def predict(pictures: int) -> None:
        shapes = {scale: grid_shape(ensemble.height, ensemble.width, scale) for scale in ensemble.scales}
        cells = {scale: (pictures, *shape, ensemble.channels) for scale, shape in shapes.items()}
        black = {scale: torch.zeros(shape, dtype=torch.uint8) for scale, shape in cells.items()}
        ensemble(black).cpu()

    if step_fits(predict, batch_size):
        return batch_size
    found = largest_that_fits(predict, batch_size - 1)
    if found == 0:
        raise Problem("The memory is too small to predict a single picture with these networks; free some of it.")
    return found
