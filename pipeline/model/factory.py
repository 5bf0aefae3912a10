"""Build a network that takes images as they were decoded from a config's `model` section.

`ARCHITECTURES` is the table: a new architecture is one function and its line there. A `Segmenter` wraps the U-Net of
this project or a network of segmentation-models-pytorch: it normalises bytes on the device (a byte crosses the bus four
times as fast as a float), pads any size to what the network can halve, and crops the padding off again.
"""
import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.pretrained import load_encoder
from pipeline.model.unet import UNet
from pipeline.runtime.files import sha256
from pipeline.runtime.problem import Problem

# Mean and standard deviation of ImageNet's images, 0 to 255, which pretrained encoders expect; a network
# from scratch works with any. https://docs.pytorch.org/vision/stable/models.html
MEAN_RGB = (123.675, 116.28, 103.53)
STD_RGB = (58.395, 57.12, 57.375)
MEAN_DEPTH, STD_DEPTH = 200.0, 30.0  # of a fourth channel: about those of rooms, as `data.nyuv2.depth_to_u8` has them
SMP_MULTIPLE = 32  # encoders of segmentation-models-pytorch halve five times
# What torch and timm say of an image whose size a network cannot take.
SIZE_MESSAGES = (
    "size is too small", "match model", "divisible by window", "Sizes of tensors must match", "must match the size"
)  # fmt: skip


class Segmenter(nn.Module):
    """Map images to logits, one map per class at the size of the images."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, multiple: int, channels: int = 3):
        super().__init__()
        self.network = network
        self.multiple = multiple
        mean, std = (*MEAN_RGB, MEAN_DEPTH)[:channels], (*STD_RGB, STD_DEPTH)[:channels]
        self.register_buffer("mean", torch.tensor(mean).view(1, channels, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, channels, 1, 1), persistent=False)

    def forward(self, image_NHWC: Tensor) -> Tensor:
        """uint8 (N, H, W, channels) -> logits (N, classes, H, W).

        Permuted to NCHW, the bytes of an NHWC tensor are in channels-last order, in which convolutions are
        fastest; nothing is copied for it.
        """
        image_NCHW = (image_NHWC.permute(0, 3, 1, 2) - self.mean) / self.std
        padded, margins = pad_to_multiple(image_NCHW, self.multiple)
        return unpad(self.network(padded), margins)


def build(
    *, arch: str, channels: int = 3, classes: int = 1, checkpoint_activations: bool = False, **options: Any
) -> Segmenter:
    """Build the network of a config's `model` section; see `config.Model`. Weights are drawn from torch's generator.

    arch: a key of `ARCHITECTURES`, or a name behind a key that ends in a dot.
    channels: of the images, 3, or 4 with depth; classes: maps of logits, 1 for a binary task.
    options: the other keys of the section; each architecture takes those that it knows.
    """
    key = arch if arch in ARCHITECTURES else arch.partition(".")[0] + "."
    network, multiple = ARCHITECTURES[key](arch, channels, classes, checkpoint_activations, **options)
    return Segmenter(network, multiple, channels).to(memory_format=torch.channels_last)


def build_unet(
    arch: str, channels: int, classes: int, checkpoint_activations: bool,
    *, width: int, depth: int, patch: int, encoder_weights: str | None = None, **_: Any,
) -> tuple[nn.Module, int]:
    """Build this project's own U-Net."""
    if encoder_weights is not None:
        advice = "set it to null, or start from a best.pt with train.init_from"
        raise Problem(f"model.encoder_weights is for networks of smp, but model.arch is {arch}; {advice}.")
    unet = UNet(channels, classes, width, depth, patch, checkpoint_activations)
    return unet, unet.multiple


def build_smp(
    arch: str, channels: int, classes: int, checkpoint_activations: bool,
    *, encoder: str, encoder_weights: str | None, encoder_sha256: str | None = None, **_: Any,
) -> tuple[nn.Module, int]:
    """Build a network of segmentation-models-pytorch, its encoder fresh, pretrained, or loaded from a file."""
    if checkpoint_activations:
        raise Problem(f"train.checkpoint_activations works for model.arch unet, but it is {arch}; set it to false.")
    import segmentation_models_pytorch as smp  # takes seconds, and only these networks need it

    factory = getattr(smp, arch.removeprefix("smp."), None)
    if not (isinstance(factory, type) and issubclass(factory, nn.Module)):
        raise Problem(f"model.arch is {arch}, which segmentation-models-pytorch {smp.__version__} does not have.")
    file = file_of(encoder_weights)
    downloaded = None if file else encoder_weights
    try:
        network = create_smp(factory, encoder, encoder_weights=downloaded, in_channels=channels, classes=classes)
    except Exception as error:  # smp, timm and the hub's client have no common one
        if downloaded is None or isinstance(error, KeyError):
            reason = " ".join(str(error).split())[:200]
            chosen = f"model.encoder {encoder!r} and model.encoder_weights {encoder_weights!r}"
            raise Problem(f"model.arch {arch} does not work with {chosen} ({reason}).") from error
        failed = f"The {downloaded} weights of {encoder} could not be downloaded ({type(error).__name__})"
        advice = "download them on a machine with a network, save the encoder's state_dict with torch.save"
        setting = "give the file's path as model.encoder_weights, or set it to null to train from scratch"
        raise Problem(f"{failed}; {advice}, and {setting}.") from error
    if file:
        load_encoder(network.get_submodule("encoder"), file)
        if encoder_sha256 not in (None, sha256(file)):
            raise Problem(f"{file} was replaced while it was loaded, perhaps by its training; start this again.")
    return network, SMP_MULTIPLE


def create_smp(factory: Callable[..., nn.Module], encoder: str, **options: Any) -> nn.Module:
    """Create a network of segmentation-models-pytorch; a transformer of timm is asked to take images of any size."""
    if encoder.startswith("tu-"):
        with contextlib.suppress(TypeError):  # of an encoder that does not know the option; most take any size
            return factory(encoder_name=encoder, dynamic_img_size=True, **options)
    return factory(encoder_name=encoder, **options)


def file_of(encoder_weights: str | None) -> pathlib.Path | None:
    """Return the file that `model.encoder_weights` names; None if it is null or a name such as imagenet."""
    file = pathlib.Path(encoder_weights or "")
    return file if file.is_file() or file.suffix != "" or len(file.parts) > 1 else None


# (arch, channels, classes, checkpoint_activations, **options) -> network, and what both sides of its input must be a
# multiple of. A key that ends in a dot stands for a family: the rest of the name is looked up there.
ARCHITECTURES: dict[str, Callable[..., tuple[nn.Module, int]]] = {"unet": build_unet, "smp.": build_smp}


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@contextlib.contextmanager
def explain_size(image_NHWC: Tensor) -> Iterator[None]:
    """Turn the error of a network that cannot take images of this size into a Problem."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if not any(message in str(error) for message in SIZE_MESSAGES):
            raise
        reason = " ".join(str(error).split())[:120]
        rows, columns = image_NHWC.shape[1:3]
        what = f"The network cannot take an image of {columns}x{rows} pixels ({reason})"
        raise Problem(f"{what}; choose another network, or predict.tta without zoom, or other images.") from None


Margins = tuple[int, int, int, int]  # columns left and right, rows above and below


def pad_to_multiple(image_NCHW: Tensor, multiple: int) -> tuple[Tensor, Margins]:
    """Pad both sides to the next multiple, evenly on both ends, by repeating the edge."""
    height, width = image_NCHW.shape[-2:]
    rows, columns = -height % multiple, -width % multiple
    margins = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return (F.pad(image_NCHW, margins, mode="replicate") if rows or columns else image_NCHW), margins


def unpad(map_NCHW: Tensor, margins: Margins) -> Tensor:
    """Invert `pad_to_multiple` exactly."""
    left, right, above, below = margins
    height, width = map_NCHW.shape[-2:]
    return map_NCHW[..., above : height - below, left : width - right]
