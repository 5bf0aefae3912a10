"""Checkpoints to networks that are ready to predict."""
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.config import Refine, Settings
from pipeline.data.competition import Competition
from pipeline.data.dataset import COMPETITIONS, competition_of
from pipeline.data.images import grid_shape
from pipeline.inference.class_maps import ClassEnsemble
from pipeline.inference.edge import EdgeRefiner, RefinedMaps
from pipeline.inference.ensemble import ByScale, Ensemble, Member, networks_of
from pipeline.inference.tta import TTA_SETS
from pipeline.model import checkpoint
from pipeline.model.factory import Segmenter, build
from pipeline.model.fold_norms import fold_batch_norms
from pipeline.model.refiner import build_refiner
from pipeline.paths import Fold
from pipeline.runtime.device import check_compiler
from pipeline.runtime.files import sha256
from pipeline.runtime.memory import largest_that_fits, step_fits
from pipeline.runtime.problem import Problem

Network = TypeVar("Network", bound=nn.Module)


def load_network(path: pathlib.Path, device: torch.device) -> tuple[Segmenter, Settings]:
    """Load the network of a `best.pt` in evaluation mode, and the settings that trained it."""
    state = checkpoint.load(path, keys=("settings", "network"))
    settings = config.parse(state["settings"], where=str(path))
    # The checkpoint's weights replace the encoder weights that training started from.
    model = settings.model.model_copy(update={"encoder_weights": None}).model_dump()
    network = build(**model, channels=settings.data.channels, classes=settings.task.outputs)
    return ready_to_predict(network, state["network"], path, device), settings


def ready_to_predict(network: Network, weights: dict[str, Tensor], path: pathlib.Path, device: torch.device) -> Network:
    """Load the weights of the checkpoint `path` into a network, in evaluation mode, and fold its batch norms."""
    load_weights(network, weights, path)
    network.to(device).eval()
    fold_batch_norms(network)
    return network


def load_weights(network: nn.Module, weights: dict[str, Tensor], path: pathlib.Path) -> None:
    """Load a state_dict into a network; Problem, which names the checkpoint, if they do not go together."""
    try:
        network.load_state_dict(weights)
    except Exception as error:  # the values of a stranger's file may raise anything
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"The checkpoint {path} does not fit its own settings ({reason}); train it again.") from None


def load_refiner(
    best: pathlib.Path, settings: Settings, device: torch.device
) -> tuple[EdgeRefiner, Refine] | None:
    """Load the refiner beside a `best.pt` and the settings that trained it; None if `predict.refine` is false or if it
    has none.

    Raises Problem if the settings that trained `best.pt` ask for a refiner that is not there, or if it was trained for
    another `best.pt`.
    """
    path = refiner_path(best)
    if not settings.predict.refine or settings.refine is None and not path.exists():
        return None
    without = "leave it out with SET=predict.refine=false"
    if not path.exists():
        asked = f"There is no {path}, but the settings of {best} have a section refine"
        raise Problem(f"{asked}; run `make refine`, or {without}.")
    state = checkpoint.load(path, keys=("settings", "network", "coarse_sha256"))
    if state["coarse_sha256"] != sha256(best):
        again = f"delete {Fold(best.parent).refiner.all} and run `make refine`"
        raise Problem(f"{path} was trained for another {best}; {again}, or {without}.")
    hyper = read_refine(path, state)
    network = ready_to_predict(build_refiner(hyper.width, hyper.depth, hyper.patch), state["network"], path, device)
    if settings.data.scale % hyper.scale or settings.data.scale == hyper.scale:
        coarse = f"data.scale {settings.data.scale}"
        raise Problem(f"{path} refines at 1/{hyper.scale}, which is not finer than {coarse}; {without}.")
    transforms = TTA_SETS[settings.predict.tile_tta]
    return EdgeRefiner(network, hyper.scale, hyper.tile_px, hyper.margin_px, transforms), hyper


def read_refine(path: pathlib.Path, state: dict[str, Any]) -> Refine:
    """Return the section `refine` of the settings that trained a `refiner.pt`. state: its contents."""
    hyper = config.parse(state["settings"], where=str(path)).refine
    if hyper is None:
        raise Problem(f"The settings in {path} have no section refine, so it is no refiner; train it again.")
    return hyper


def refiner_path(best: pathlib.Path) -> pathlib.Path:
    """Return where the refiner of a `best.pt` is, if it has one."""
    return Fold(best.parent).refiner.best


def with_refiners(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Return these checkpoints, and after each its refiner, which may be missing."""
    return [path for best in paths for path in (best, refiner_path(best))]


def checkpoints_of(best: pathlib.Path, member: Member) -> list[pathlib.Path]:
    """Return the checkpoints that a member of an ensemble was loaded from."""
    return [best, refiner_path(best)] if member.refiner else [best]


def load_members(
    weight_of_path: dict[pathlib.Path, float], overrides: list[str], device: torch.device
) -> tuple[list[Member], list[Settings]]:
    """Load the members of an `Ensemble` from these checkpoints, and the settings that trained each.

    Each sees images at the scale it was trained on, with the TTA set of its settings and the overrides, and has the
    refiner beside its checkpoint.
    """
    members: list[Member] = []
    trained: list[Settings] = []
    for path, weight in weight_of_path.items():
        network, settings = load_network(path, device)
        if trained and settings.data.hq != trained[0].data.hq:
            first = next(iter(weight_of_path))
            raise Problem(f"{first} and {path} were trained with different data.hq; predict them one by one.")
        member, hyper = build_member(network, path, config.for_later_stage(settings, overrides), weight)
        members.append(member)
        # A refiner may have been trained after the network, by another config.
        trained.append(settings.model_copy(update={"refine": hyper}) if hyper else settings)
    return members, trained


def common_competition(paths: Iterable[pathlib.Path], trained: list[Settings], what: str) -> Competition:
    """Return the competition that all checkpoints were trained on; Problem if one has several classes or other images.

    The checkpoint itself decides: the `config.yaml` beside it, which is checked first, may belong to another one.
    """
    for path, settings in zip(paths, trained):
        if settings.task.kind != "binary":
            raise Problem(f"{what} is for one object and its background, but {path} was trained on several classes.")
        if (kind := settings.data.kind) not in COMPETITIONS or kind != trained[0].data.kind:
            raise Problem(f"{what} is for one competition's images, but {path} was trained on data.kind {kind}.")
    return competition_of(trained[0].data.kind)


def build_member(
    network: Segmenter, path: pathlib.Path, settings: Settings, weight: float
) -> tuple[Member, Refine | None]:
    """Build a member of an ensemble from the network of `path` and its refiner, compiled if the settings say so.

    Return it with the settings that trained its refiner, None if it has none.
    """
    refiner, hyper = load_refiner(path, settings, next(network.parameters()).device) or (None, None)
    member = Member(network, settings.data.scale, TTA_SETS[settings.predict.tta], weight, refiner)
    if settings.predict.compile and member.device.type == "cuda":
        check_compiler(member.device, "predict.compile")
        for each in networks_of(member):
            each.compile()
    return member, hyper


def build_ensemble(members: list[Member], binary: bool, height: int, width: int) -> Ensemble:
    """Build what predicts probabilities of the object, or class maps if not `binary`."""
    return (Ensemble if binary else ClassEnsemble)(members, height, width)


def read_size_and_classes(path: pathlib.Path) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Return full size (height, width) of the images that trained a `best.pt`, and its class names, () if binary."""
    state = checkpoint.load(path, keys=("full_size", "classes"))
    height, width = state["full_size"]
    return (height, width), tuple(state["classes"])


def read_folds_digest(path: pathlib.Path) -> str:
    """Return the `grouping.digest` of the folds that a `best.pt` was trained on."""
    return checkpoint.load(path, keys=("folds",))["folds"]


def read_pseudo_labels(trained: dict[pathlib.Path, Settings]) -> dict[str, str]:
    """Return the pseudo-labels that some of these `best.pt` were trained on: their sha256 -> data.pseudo.

    trained: best.pt -> the settings that trained it.
    """
    return {
        str(checkpoint.load(best, keys=("pseudo_sha256",))["pseudo_sha256"]): settings.data.pseudo
        for best, settings in trained.items() if settings.data.pseudo is not None
    }  # fmt: skip


@dataclass(frozen=True)
class TriedMember(Member):
    """A member whose refiner sees one batch of tiles: of a black image it might see hundreds, or none."""

    def refine(self, coarse_NHW: Tensor, image_of_scale: ByScale) -> RefinedMaps:
        assert self.refiner is not None
        maps = super().refine(torch.zeros_like(coarse_NHW), image_of_scale)  # where nothing is unsure
        shape = (self.refiner.tiles_at_once(self.device), self.refiner.tile_px, self.refiner.tile_px, 4)
        self.refiner.predict_cores(torch.zeros(shape, dtype=torch.uint8, device=self.device)).cpu()
        return maps  # which took their memory while the tiles were predicted, as they do in earnest


def batch_that_fits(ensemble: Ensemble, batch_size: int) -> int:
    """Return `batch_size`, or the largest smaller one that fits into the memory, found by trying.

    Trying also compiles and tunes what will run.
    """
    members = [TriedMember(**vars(member)) for member in ensemble.members]
    tried = type(ensemble)(members, ensemble.height, ensemble.width)

    def predict(images: int) -> None:
        shapes = {scale: grid_shape(ensemble.height, ensemble.width, scale) for scale in ensemble.scales}
        black = {s: torch.zeros(images, *shapes[s], ensemble.channels, dtype=torch.uint8) for s in ensemble.scales}
        tried(black).cpu()

    if step_fits(predict, batch_size):
        return batch_size
    fitting = largest_that_fits(predict, batch_size - 1)
    if fitting == 0:
        raise Problem("The memory is too small to predict a single image with these networks; free some of it.")
    return fitting
