"""The networks that a run trains, with their losses, as its settings describe them."""
import pathlib
from collections.abc import Callable

import torch
from torch import nn

from pipeline.config import Refine, Settings, Train
from pipeline.data.loader import TrainingDataset
from pipeline.data.tiles import TileDataset
from pipeline.model import factory, losses, refiner
from pipeline.model.losses import LossOf
from pipeline.runtime.memory import is_out_of_memory
from pipeline.runtime.problem import Problem
from pipeline.training.init_from import load_initial_weights


def build_network(settings: Settings, pretrained: bool) -> nn.Module:
    """Build the network of `best.pt`. pretrained: load the weights that it starts from; a resume needs none."""
    init_from = settings.train.init_from if pretrained else None
    with_encoder = pretrained and init_from is None
    model = settings.model if with_encoder else settings.model.model_copy(update={"encoder_weights": None})
    options = model.model_dump() | {"checkpoint_activations": settings.train.checkpoint_activations}
    network = factory.build(**options, channels=settings.data.channels, classes=settings.task.outputs)
    if init_from is not None:
        load_initial_weights(network, pathlib.Path(init_from), settings.train.init_sha256, "train.init_from")
    return network


def build_loss(settings: Settings, device: torch.device) -> LossOf:
    """Return the loss of that network."""
    task = settings.task
    return losses.build(task.kind == "binary", task.class_weights, settings.loss.model_dump(), device)


def build_refiner(hyper: Refine, pretrained: bool = False) -> nn.Module:
    """Build the network of `refiner.pt`. pretrained: load refine.init_from."""
    network = refiner.build_refiner(hyper.width, hyper.depth, hyper.patch, hyper.checkpoint_activations)
    if pretrained and hyper.init_from is not None:
        load_initial_weights(network, pathlib.Path(hyper.init_from), hyper.init_sha256, "refine.init_from")
    return network


def build_refiner_loss(hyper: Refine, device: torch.device) -> LossOf:
    """Return the loss of that network: the cross-entropy of each tile, but for the outer half of its margin."""
    binary_loss = losses.build(True, [], {"bce": 1.0}, device)
    margin = hyper.margin_px // 2  # the other half is trained, too, but not used
    inner = slice(margin, hyper.tile_px - margin)
    return lambda logits_NCHW, target_NHW: binary_loss(logits_NCHW[:, :, inner, inner], target_NHW[:, inner, inner])


# --- what a training step needs ---------------------------------------------------------------------------------------


def check_step(build: Callable[[], nn.Module], images: TrainingDataset | TileDataset, hyper: Train) -> int:
    """Return `least_batch`; Problem if a step of these settings has fewer images at once, or cannot be taken at all."""
    least, kind = least_batch(build, images), images.kind
    at_once = hyper.batch_size // hyper.accumulate  # of all processes, whose batch norms are synchronised
    if at_once < least:
        name = f"{kind.section}.batch_size {hyper.batch_size}"
        gives = f"{name} in {hyper.accumulate} micro-batches has 1" if hyper.accumulate > 1 else f"{name} is less"
        what = f"The batch norm of this network needs {least} {kind.noun} at once at {kind.size}, but {gives}"
        raise Problem(f"{what}; set {kind.section}.batch_size={least * hyper.accumulate} or more.")
    return least


def least_batch(build: Callable[[], nn.Module], images: TrainingDataset | TileDataset) -> int:
    """Return how many images a training step needs at once: 1, or 2 where batch norm would see one value a channel.

    build: the network, its weights random. It is tried without weights, by shapes alone, which takes less than a
    second. Raise Problem if it takes no images of this size.
    """
    if not why_no_step(build, 1, images.shape):
        return 1
    if reason := why_no_step(build, 2, images.shape):
        rows, columns, _ = images.shape
        what = f"The network cannot be trained on {images.kind.noun} of {columns}x{rows} pixels, {images.kind.size}"
        raise Problem(f"{what} ({reason}); choose another size, or another network in the section model.")
    return 2


def why_no_step(build: Callable[[], nn.Module], images: int, shape_HWC: tuple[int, int, int]) -> str:
    """Return what a forward pass in training mode raises for so many images, in short; "" if it succeeds."""
    reason = ""
    for device in ("meta", "cpu"):  # on "meta" tensors are shapes without numbers; some networks need the numbers
        try:
            with torch.device(device), torch.no_grad():
                logits_NCHW = build().train()(torch.zeros(images, *shape_HWC, dtype=torch.uint8))
            if logits_NCHW.shape[2:] == shape_HWC[:2]:
                return ""
            reason = f"its output has {logits_NCHW.shape[3]}x{logits_NCHW.shape[2]}"
        except Exception as error:  # those of strangers' networks have no common one
            if isinstance(error, Problem) and device == "cpu":
                raise
            if is_out_of_memory(error):
                return ""  # a step will say so
            reason = " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
    return reason
