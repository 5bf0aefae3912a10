"""The training loss: a weighted sum of terms, each of them a mean over images.

`MASK_LOSSES` and `CLASS_LOSSES` are the tables: a new loss is one function and its line there, and the config's `loss`
section then takes a weight by that name.

All mask losses take coverage, a fraction, where others take a bit, and all but Lovász's are smallest where the
probability equals the coverage. A mean over images, never over one pool of their pixels, has two uses: the
competition's Dice is one, and a batch may be split into micro-batches, for several GPUs or a small memory, without
a change of the loss.
"""
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.runtime.problem import Problem

LossOf = Callable[[Tensor, Tensor], Tensor]


def build(binary: bool, class_weights: list[float], loss_weights: dict[str, Any], device: torch.device) -> LossOf:
    """Return a function `(logits_NCHW, target_NHW) -> loss`, a scalar; logits of any float dtype, bytes of a dataset.

    binary: the network has one map of logits, and the target is coverage, 0 to 255; else as `class_loss` takes it.
    class_weights: of the cross-entropy; they are divided by their mean, so that they set how classes compare with one
    another and not how the cross-entropy compares with Dice. loss_weights: the config's `loss` section: weights by the
    names of the table, and the arguments `edge_weight` and `edge_px` of `mask_loss`. Raises Problem for other names.
    """
    table = MASK_LOSSES if binary else CLASS_LOSSES
    for name, weight in loss_weights.items():
        if weight and name not in table and not name.startswith("edge_"):
            raise Problem(f"loss.{name} is {weight}, but the losses of this task are {', '.join(table)}.")
    if binary:
        return lambda logits_NCHW, coverage_NHW: mask_loss(
            logits_NCHW[:, 0].float(), coverage_NHW.float() / 255, **loss_weights
        )
    weights_C = torch.tensor(class_weights, device=device) if class_weights else None
    if weights_C is not None:
        weights_C = weights_C / weights_C.mean()
    terms = {name: weight for name, weight in loss_weights.items() if name in CLASS_LOSSES}
    return lambda logits_NCHW, index_NHW: class_loss(logits_NCHW.float(), index_NHW, weights_C, **terms)


def mask_loss(
    logits_NHW: Tensor, target_NHW: Tensor, *, edge_weight: float = 0.0, edge_px: int = 2, **weights: float
) -> Tensor:
    """Return the weighted sum of the terms, a scalar; a term of weight 0 is not computed.

    logits_NHW: float32; target_NHW: float32, 0 to 1, the fraction of each cell that the object covers.
    weights: of the terms, by their names in `MASK_LOSSES`, 0 or more.
    edge_weight, edge_px: of the cross-entropy `bce`; see `edge_weights`.
    """
    table = MASK_LOSSES
    if edge_weight:
        table = MASK_LOSSES | {"bce": partial(cross_entropy, edge_weight=edge_weight, edge_px=edge_px)}
    return weighted_sum(table, weights, logits_NHW, target_NHW)


def weighted_sum(table: Mapping[str, Callable[..., Tensor]], weights: dict[str, float], *inputs: Any) -> Tensor:
    """Add up weight * loss in the order of the table, which fixes the rounding."""
    loss = inputs[0].new_zeros(())
    for name, term in table.items():
        if weight := weights.get(name):
            loss = loss + weight * term(*inputs)
    return loss


# --- masks ----------------------------------------------------------------------------------------


def cross_entropy(logits_NHW: Tensor, target_NHW: Tensor, edge_weight: float = 0.0, edge_px: int = 2) -> Tensor:
    """Binary cross-entropy, averaged over all cells; with `edge_weight`, those near an edge count more."""
    weights = edge_weights(target_NHW, edge_weight, edge_px) if edge_weight else None
    return F.binary_cross_entropy_with_logits(logits_NHW, target_NHW, weights)


def edge_weights(target_NHW: Tensor, edge_weight: float, edge_px: int) -> Tensor:
    """Return weights of cells, float32 (N, H, W): 1 + edge_weight near an edge, divided by their mean over the image.

    A cell is near an edge if values far apart lie among the cells at most `edge_px` rows and columns away; the
    difference of the largest and the smallest, 0 to 1, is the fraction of `edge_weight` that it gets.

    U-Net weighted pixels by their distance from borders (https://arxiv.org/abs/1505.04597, section 3), and
    a network of the first place weighted those of a band of 25 pixels on both sides 3 to 1, mean 1 again
    (https://github.com/asanakoy/kaggle_carvana_segmentation, asanakoy/losses.py). With the mean 1 neither
    the balance with the other terms nor the best learning rate moves when edge_weight does. Theirs is
    the mean of a batch; one for each image keeps the loss a mean over images.
    """
    side = 2 * edge_px + 1
    # A repeated border brings no new value into a window.
    padded_N1HW = F.pad(target_NHW[:, None], (edge_px, edge_px, edge_px, edge_px), mode="replicate")
    weights = 1 + edge_weight * (window_maximum(padded_N1HW, side) + window_maximum(-padded_N1HW, side))[:, 0]
    return weights / weights.mean((1, 2), keepdim=True)


def window_maximum(values_N1HW: Tensor, side: int) -> Tensor:
    """Return the largest value of each window of side x side cells, (N, 1, H - side + 1, W - side + 1).

    Rows, then columns: 2 side values are read for each, not side². On a CPU pooling takes eight times as long as this.
    """
    if values_N1HW.device.type == "cuda":
        return pooled_maximum(values_N1HW, side)
    return values_N1HW.unfold(2, side, 1).amax(-1).unfold(3, side, 1).amax(-1)


def pooled_maximum(values_N1HW: Tensor, side: int) -> Tensor:
    """`window_maximum` by pooling, on any device."""
    return F.max_pool2d(F.max_pool2d(values_N1HW, (side, 1), stride=1), (1, side), stride=1)


def soft_dice_loss(prob_NHW: Tensor, target_NHW: Tensor) -> Tensor:
    """1 - 2 Σpt / (Σp² + Σt²), summed over each image and averaged over images; from 0 to 1.

    Milletari et al. 2016, https://arxiv.org/abs/1606.04797, equation for D. With plain sums in the
    denominator, p = t would not be the minimum where the target t is a fraction; with squares it is.
    """
    p, t = prob_NHW.flatten(1), target_NHW.flatten(1)
    overlap = (p * t).sum(1)
    return (1 - (2 * overlap + 1) / (p.square().sum(1) + t.square().sum(1) + 1)).mean()


def soft_jaccard_loss(prob_NHW: Tensor, target_NHW: Tensor) -> Tensor:
    """1 - Σpt / (Σp² + Σt² - Σpt), summed over each image and averaged over images; from 0 to 1.

    The Tanimoto coefficient, as in ResUNet-a (Diakogiannis et al. 2020), https://arxiv.org/abs/1904.00592, section 3.
    The union exceeds the overlap by Σ(p - t)², so that p = t is the minimum for fractions too, and the gradient fades
    toward it. In smp's JaccardLoss, which has Σ|p - t| there (Wang et al. 2023, https://arxiv.org/abs/2302.05666), the
    minimum is the same but a kink, where the gradient flips at full strength; and smp pools the images of a batch.
    """
    p, t = prob_NHW.flatten(1), target_NHW.flatten(1)
    overlap = (p * t).sum(1)
    union = p.square().sum(1) + t.square().sum(1) - overlap
    return (1 - (overlap + 1) / (union + 1)).mean()


def focal_loss(logits_NHW: Tensor, target_NHW: Tensor) -> Tensor:
    """Cross-entropy H of each cell times (1 - exp(-H))², averaged over all cells; 0 or more.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002, with gamma 2 and no alpha: cells that are right
    already hardly count. It rises with H, which is smallest at p = t for fractions too; so smp's can be used.
    """
    from segmentation_models_pytorch.losses import FocalLoss  # takes seconds, and only this term needs it

    return FocalLoss("binary", gamma=2.0)(logits_NHW, target_NHW)


def lovasz_loss(logits_NHW: Tensor, target_NHW: Tensor) -> Tensor:
    """Lovász hinge, which bounds 1 - Jaccard of the mask from above, averaged over images; 0 or more.

    Berman et al. 2018, https://arxiv.org/abs/1705.08790. It is made for bits, so the target is thresholded at
    one half, and what a cell's coverage says of the edge within it is lost: best as a small part of the sum.
    """
    from segmentation_models_pytorch.losses import LovaszLoss  # takes seconds, and only this term needs it

    return LovaszLoss("binary", per_image=True)(logits_NHW, (target_NHW >= 0.5).to(logits_NHW.dtype))


# (logits_NHW, target_NHW) -> scalar, as `mask_loss` describes them; their sum is taken in this order.
MASK_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": cross_entropy,
    "dice": lambda logits_NHW, target_NHW: soft_dice_loss(logits_NHW.sigmoid(), target_NHW),
    "jaccard": lambda logits_NHW, target_NHW: soft_jaccard_loss(logits_NHW.sigmoid(), target_NHW),
    "focal": focal_loss,
    "lovasz": lovasz_loss,
}


# --- classes --------------------------------------------------------------------------------------


def class_loss(logits_NCHW: Tensor, index_NHW: Tensor, weights_C: Tensor | None = None, **weights: float) -> Tensor:
    """Return the weighted sum of the terms for several classes, a scalar; each is a mean over images.

    logits_NCHW: float32; index_NHW: class indices, uint8 or uint16, whose largest value marks ignored pixels.
    weights_C: what a pixel of each class counts in the cross-entropy, float32; without it 1.
    weights: of the terms, by their names in `CLASS_LOSSES`.
    """
    valid_NHW = index_NHW != torch.iinfo(index_NHW.dtype).max
    index_N1HW = index_NHW.long().where(valid_NHW, 0)[:, None]
    return weighted_sum(CLASS_LOSSES, weights, logits_NCHW.log_softmax(1), index_N1HW, valid_NHW, weights_C)


def class_cross_entropy(
    log_prob_NCHW: Tensor, index_N1HW: Tensor, valid_NHW: Tensor, weights_C: Tensor | None
) -> Tensor:
    """-w log p of the true class, averaged over the valid pixels of each image, then over images.

    Written out, since torch's own has no deterministic kernel for maps on a GPU, and averages over the whole batch.
    """
    loss_NHW = -log_prob_NCHW.gather(1, index_N1HW)[:, 0] * valid_NHW
    if weights_C is not None:
        loss_NHW = loss_NHW * weights_C[index_N1HW[:, 0]]
    return (loss_NHW.sum((1, 2)) / valid_NHW.sum((1, 2)).clamp(min=1)).mean()


def class_dice_loss(log_prob_NCHW: Tensor, index_N1HW: Tensor, valid_NHW: Tensor, weights_C: Tensor | None) -> Tensor:
    """`soft_dice_loss` of each class against the others, averaged over the classes in an image, then over images.

    A class that an image does not show does not count there, as in smp's DiceLoss: with hundreds of classes the few
    that an image shows would hardly count. What it wrongly takes is missing from those that are shown.
    `weights_C` are of the cross-entropy; Dice counts all classes alike.
    """
    prob_NCHW = log_prob_NCHW.exp()
    classes = prob_NCHW.shape[1]
    p_NCP = (prob_NCHW * valid_NHW[:, None]).flatten(2)
    index_NP, valid_NP = index_N1HW.flatten(1), valid_NHW.flatten(1).to(p_NCP.dtype)
    p_of_truth_NP = p_NCP.gather(1, index_NP[:, None])[:, 0]
    zeros_NC = p_NCP.new_zeros(len(p_NCP), classes)
    overlap_NC = zeros_NC.scatter_add(1, index_NP, p_of_truth_NP)
    pixels_NC = zeros_NC.scatter_add(1, index_NP, valid_NP)
    loss_NC = 1 - (2 * overlap_NC + 1) / (p_NCP.square().sum(2) + pixels_NC + 1)
    is_there_NC = pixels_NC > 0
    return ((loss_NC * is_there_NC).sum(1) / is_there_NC.sum(1).clamp(min=1)).mean()


# (log_prob_NCHW, index_N1HW, valid_NHW, weights_C) -> scalar. index_N1HW: int64, 0 where valid_NHW is False.
CLASS_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "bce": class_cross_entropy,
    "dice": class_dice_loss,
}
