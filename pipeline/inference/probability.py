"""Logits to probabilities, and probabilities to full size: on a CPU by OpenCV, in 1 ms where torch takes 31."""
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.images import upsample
from pipeline.data.tiles import SURE_U8
from pipeline.model.factory import explain_size
from pipeline.runtime.device import autocast
from pipeline.runtime.progress import in_order


def predict_probability(network: nn.Module, image_NHWC: Tensor) -> Tensor:
    """Return the probability of each class, or only of the object, float32 (N, classes, H, W), on the images' grid."""
    with autocast(image_NHWC.device), explain_size(image_NHWC):
        logits_NCHW = network(image_NHWC)
    return logits_NCHW.float().sigmoid() if logits_NCHW.shape[1] == 1 else logits_NCHW.float().softmax(1)


def upsample_on_device(prob_NHW: Tensor, scale: int, height: int, width: int) -> Tensor:
    """`data.images.upsample` for a batch on a GPU; the two agree up to the rounding of float32."""
    if scale == 1:
        return prob_NHW[:, :height, :width]
    return F.interpolate(prob_NHW[:, None], scale_factor=scale, mode="bicubic")[:, 0, :height, :width]


def to_u8_on_device(prob_NHW: Tensor) -> Tensor:
    """`data.images.to_u8` for a batch on any device."""
    return (prob_NHW.clamp(0, 1) * 255).round().to(torch.uint8)


def upsample_batch(prob_NHW: Tensor, scale: int, height: int, width: int) -> Tensor:
    """`data.images.upsample` for a batch on any device."""
    if prob_NHW.device.type == "cuda":
        return upsample_on_device(prob_NHW, scale, height, width)
    maps = in_order(lambda prob: upsample(prob, scale, height, width), prob_NHW.numpy())
    return torch.from_numpy(np.stack(list(maps)))


def unsure_fractions(prob_u8_NHW: Tensor) -> list[float]:
    """Return the fraction of each image's pixels that are unsure, as `data.tiles` defines it; 0 to 1."""
    if prob_u8_NHW.device.type == "cpu":
        counts = [cv2.countNonZero(cv2.inRange(each, SURE_U8 + 1, 254 - SURE_U8)) for each in prob_u8_NHW.numpy()]
    else:
        counts = ((prob_u8_NHW > SURE_U8) & (prob_u8_NHW < 255 - SURE_U8)).sum((1, 2)).tolist()
    return [count / prob_u8_NHW[0].numel() for count in counts]
