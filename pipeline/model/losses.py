"""What training makes small: a weighted sum of terms, each of them a mean over pictures.

All terms take coverage, a share, where others take a bit, and all but Lovász's are smallest where the
probability is that share. A mean over pictures, never over one pool of their pixels, has two uses: the
competition's Dice is one, and a batch may be cut into parts, for several GPUs or a small memory, without
a change of the loss.
"""
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LossOf = Callable[[Tensor, Tensor], Tensor]


def build(binary: bool, class_weights: list[float], loss_weights: dict[str, Any], device: torch.device) -> LossOf:
    """A function `(logits_NCHW, target_NHW) -> loss`, a scalar, of any float dtype and the bytes of a dataset.

    binary: there is one map of logits, and the target is coverage, 0 to 255; else it is as `class_loss` says.
    class_weights: of the cross-entropy; they are divided by their mean, so that they say how classes compare with one
    another and not how the cross-entropy compares with Dice. loss_weights: those of `mask_loss`, of which classes have
    the first two.
    """
    if binary:
        return lambda logits_NCHW, coverage_NHW: mask_loss(
            logits_NCHW[:, 0].float(), coverage_NHW.float() / 255, **loss_weights
        )
    bce, dice = loss_weights["bce"], loss_weights["dice"]
    weights_C = torch.tensor(class_weights, device=device) if class_weights else None
    if weights_C is not None:
        weights_C = weights_C / weights_C.mean()
    return lambda logits_NCHW, index_NHW: class_loss(logits_NCHW.float(), index_NHW, bce, dice, weights_C)


def mask_loss(
    logits_NHW: Tensor,
    prob_NHW: Tensor,
    *,
    bce: float,
    dice: float,
    jaccard: float,
    focal: float,
    lovasz: float,
    edge_weight: float,
    edge_px: int,
) -> Tensor:
    """The weighted sum of the terms, a scalar; a term of weight 0 is not computed.

    logits_NHW: float32; share_NHW: float32, 0 to 1, the share of each cell that the object covers.
    bce, dice, jaccard, focal, lovasz: weights of the terms, 0 or more.
    edge_weight, edge_px: of the cross-entropy `bce`; see `edge_weights`.
    """
    loss = logits_NHW.new_zeros(())
    if bce:
        weights = edge_weights(prob_NHW, edge_weight, edge_px) if edge_weight else None
        loss = loss + bce * F.binary_cross_entropy_with_logits(logits_NHW, prob_NHW, weights)
    if dice:
        loss = loss + dice * soft_dice_loss(logits_NHW.sigmoid(), prob_NHW)
    if jaccard:
        loss = loss + jaccard * soft_jaccard_loss(logits_NHW.sigmoid(), prob_NHW)
    if focal:
        loss = loss + focal * focal_loss(logits_NHW, prob_NHW)
    if lovasz:
        loss = loss + lovasz * lovasz_loss(logits_NHW, prob_NHW)
    return loss


def edge_weights(prob_NHW: Tensor, edge_weight: float, edge_px: int) -> Tensor:
    """Weights of cells, float32 (N, H, W): 1 + edge_weight near an edge, divided by their mean over the picture.

    Near an edge is a cell with values far apart among those at most `edge_px` rows and columns away; the
    difference of the largest and the smallest, 0 to 1, says how much of `edge_weight` it gets.

    U-Net weighted pixels by their distance from borders (https://arxiv.org/abs/1505.04597, section 3), and
    a network of the first place weighted those of a band of 25 pixels on both sides 3 to 1, mean 1 again
    (https://github.com/asanakoy/kaggle_carvana_segmentation, asanakoy/losses.py). With the mean 1 neither
    the balance with the other terms nor the best learning rate moves when edge_weight does. Theirs is
    the mean of a batch; one for each picture keeps the loss a mean over pictures.
    """
    side = 2 * edge_px + 1
    # Pooling would say the same, eight times as slowly on a CPU. A repeated border brings no new value into a window.
    padded_N1HW = F.pad(prob_NHW[:, None], (edge_px, edge_px, edge_px, edge_px), mode="replicate")
    largest = padded_N1HW.unfold(2, side, 1).amax(-1).unfold(3, side, 1).amax(-1)[:, 0]
    smallest = padded_N1HW.unfold(2, side, 1).amin(-1).unfold(3, side, 1).amin(-1)[:, 0]
    weights = 1 + edge_weight * (largest - smallest)
    return weights / weights.mean((1, 2), keepdim=True)


def soft_dice_loss(probability_NHW: Tensor, prob_NHW: Tensor) -> Tensor:
    """1 - 2 Σpt / (Σp² + Σt²), summed over each image and averaged over images; from 0 to 1.

    Milletari et al. 2016, https://arxiv.org/abs/1606.04797, equation for D. With plain sums below the
    line, p = t would not be the minimum where the target t is a fraction; with squares it is.
    """
    p, t = probability_NHW.flatten(1), prob_NHW.flatten(1)
    overlap = (p * t).sum(1)
    return (1 - (2 * overlap + 1) / (p.square().sum(1) + t.square().sum(1) + 1)).mean()


def soft_jaccard_loss(probability_NHW: Tensor, prob_NHW: Tensor) -> Tensor:
    """1 - Σpt / (Σp² + Σt² - Σpt), summed over each image and averaged over images; from 0 to 1.

    The Tanimoto coefficient, as in ResUNet-a (Diakogiannis et al. 2020), https://arxiv.org/abs/1904.00592,
    section 3. The union exceeds the overlap by Σ(p - t)², so that p = t is the minimum for fractions too,
    and the gradient fades toward it. In smp's JaccardLoss, which has Σ|p - t| there
    (Wang et al. 2023, https://arxiv.org/abs/2302.05666), the minimum is the same but a kink, where the gradient
    flips at full strength; and smp takes the pictures of a batch as one.
    """
    p, t = probability_NHW.flatten(1), prob_NHW.flatten(1)
    overlap = (p * t).sum(1)
    union = p.square().sum(1) + t.square().sum(1) - overlap
    return (1 - (overlap + 1) / (union + 1)).mean()


def focal_loss(logits_NHW: Tensor, prob_NHW: Tensor) -> Tensor:
    """Cross-entropy H of each cell times (1 - exp(-H))², averaged over all cells; 0 or more.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002, with gamma 2 and no alpha: cells that are right
    already hardly count. It rises with H, which is smallest at p = t for fractions too; so smp's serves.
    """
    from segmentation_models_pytorch.losses import FocalLoss  # takes seconds, and only this term needs it

    return FocalLoss("binary", gamma=2.0)(logits_NHW, prob_NHW)


def lovasz_loss(logits_NHW: Tensor, prob_NHW: Tensor) -> Tensor:
    """Lovász hinge, which bounds 1 - Jaccard of the mask from above, averaged over images; 0 or more.

    Berman et al. 2018, https://arxiv.org/abs/1705.08790. It is made for bits, so the target is cut at one
    half, and what a cell's share says of the edge within it is lost: best as a small part of the sum.
    """
    from segmentation_models_pytorch.losses import LovaszLoss  # takes seconds, and only this term needs it

    return LovaszLoss("binary", per_image=True)(logits_NHW, (prob_NHW >= 0.5).to(logits_NHW.dtype))


def class_loss(logits_NCHW: Tensor, index_NHW: Tensor, ce: float, dice: float, weights_C: Tensor | None) -> Tensor:
    """Cross-entropy and soft Dice of classes, weighted and added, a scalar; both are means over pictures.

    logits_NCHW: float32; index_NHW: class indices, uint8 or uint16, whose largest value is not judged.
    weights_C: what a pixel of each class counts in the cross-entropy, float32; without it 1.
    """
    valid_NHW = index_NHW != torch.iinfo(index_NHW.dtype).max
    index_N1HW = index_NHW.long().where(valid_NHW, 0)[:, None]
    log_probability_NCHW = logits_NCHW.log_softmax(1)
    loss = logits_NCHW.new_zeros(())
    if ce:
        loss = loss + ce * class_cross_entropy(log_probability_NCHW, index_N1HW, valid_NHW, weights_C)
    if dice:
        loss = loss + dice * class_dice_loss(log_probability_NCHW.exp(), index_N1HW, valid_NHW)
    return loss


def class_cross_entropy(
    log_probability_NCHW: Tensor, index_N1HW: Tensor, valid_NHW: Tensor, weights_C: Tensor | None
) -> Tensor:
    """-w log p of the true class, averaged over the judged pixels of each picture, then over pictures.

    Written out, since torch's own has no deterministic kernel for maps on a GPU, and averages over the whole batch.
    """
    loss_NHW = -log_probability_NCHW.gather(1, index_N1HW)[:, 0] * valid_NHW
    if weights_C is not None:
        loss_NHW = loss_NHW * weights_C[index_N1HW[:, 0]]
    return (loss_NHW.sum((1, 2)) / valid_NHW.sum((1, 2)).clamp(min=1)).mean()


def class_dice_loss(probability_NCHW: Tensor, index_N1HW: Tensor, valid_NHW: Tensor) -> Tensor:
    """`soft_dice_loss` of each class against the others, averaged over the classes in a picture, then over pictures.

    A class that a picture does not show has no say there, as in smp's DiceLoss: with hundreds of classes the few that
    a picture shows would hardly count. What it wrongly takes is missing from those that are shown.
    """
    classes = probability_NCHW.shape[1]
    p_NCP = (probability_NCHW * valid_NHW[:, None]).flatten(2)
    index_NP, valid_NP = index_N1HW.flatten(1), valid_NHW.flatten(1).to(p_NCP.dtype)
    p_of_truth_NP = p_NCP.gather(1, index_NP[:, None])[:, 0]
    nothing_NC = p_NCP.new_zeros(len(p_NCP), classes)
    overlap_NC = nothing_NC.scatter_add(1, index_NP, p_of_truth_NP)
    pixels_NC = nothing_NC.scatter_add(1, index_NP, valid_NP)
    loss_NC = 1 - (2 * overlap_NC + 1) / (p_NCP.square().sum(2) + pixels_NC + 1)
    is_there_NC = pixels_NC > 0
    return ((loss_NC * is_there_NC).sum(1) / is_there_NC.sum(1).clamp(min=1)).mean()
