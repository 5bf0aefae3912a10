"""What training makes small. All losses take coverage, a share, where others take a bit."""
import torch.nn.functional as F
from torch import Tensor


def segmentation_loss(logits_NHW: Tensor, share_NHW: Tensor, bce_weight: float, dice_weight: float) -> Tensor:
    """Weighted sum of binary cross-entropy and soft Dice loss, a scalar.

    logits_NHW: float32; share_NHW: float32, 0 to 1, the share of each cell that the object covers.
    """
    bce = F.binary_cross_entropy_with_logits(logits_NHW, share_NHW)
    return bce_weight * bce + dice_weight * soft_dice_loss(logits_NHW.sigmoid(), share_NHW)


def soft_dice_loss(probability_NHW: Tensor, share_NHW: Tensor) -> Tensor:
    """1 - 2 Σpt / (Σp² + Σt²), summed over each image and averaged over images; from 0 to 1.

    Milletari et al. 2016, https://arxiv.org/abs/1606.04797, equation for D. With plain sums below the
    line, p = t would not be the minimum where the target t is a fraction; with squares it is.
    """
    p, t = probability_NHW.flatten(1), share_NHW.flatten(1)
    overlap = (p * t).sum(1)
    return (1 - (2 * overlap + 1) / (p.square().sum(1) + t.square().sum(1) + 1)).mean()
