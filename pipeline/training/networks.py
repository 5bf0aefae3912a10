"""The networks that a run trains, with their losses, as its settings describe them."""
import torch
from torch import nn

from pipeline.config import Refine, Settings
from pipeline.model import factory, losses, refiner
from pipeline.model.losses import LossOf


def build_network(settings: Settings, pretrained: bool) -> nn.Module:
    """Build the network of `best.pt`. pretrained: load model.encoder_weights; a resume needs none."""
    model = settings.model if pretrained else settings.model.model_copy(update={"encoder_weights": None})
    options = model.model_dump() | {"checkpoint_activations": settings.train.checkpoint_activations}
    return factory.build(**options, channels=settings.data.channels, classes=settings.task.outputs)


def build_loss(settings: Settings, device: torch.device) -> LossOf:
    """Return the loss of that network."""
    task = settings.task
    return losses.build(task.kind == "binary", task.class_weights, settings.loss.model_dump(), device)


def build_refiner(hyper: Refine) -> nn.Module:
    """Build the network of `refiner.pt`."""
    return refiner.build_refiner(hyper.width, hyper.depth, hyper.patch, hyper.checkpoint_activations)


def build_refiner_loss(hyper: Refine, device: torch.device) -> LossOf:
    """Return the loss of that network: the cross-entropy of each tile, but for the outer half of its margin."""
    binary_loss = losses.build(True, [], {"bce": 1.0}, device)
    margin = hyper.margin_px // 2  # the other half is trained, too, but not used
    inner = slice(margin, hyper.tile_px - margin)
    return lambda logits_NCHW, target_NHW: binary_loss(logits_NCHW[:, :, inner, inner], target_NHW[:, inner, inner])
