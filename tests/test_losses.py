"""What training makes small: known values, where the minimum lies, and that a batch is a mean over its pictures."""
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from pipeline.model.losses import edge_weights, focal_loss, lovasz_loss, mask_loss, soft_dice_loss, soft_jaccard_loss

NOTHING: dict[str, Any] = dict(bce=0, dice=0, jaccard=0, focal=0, lovasz=0, edge_weight=0, edge_px=1)
SMOOTH_TERMS = [{"bce": 1}, {"bce": 1, "edge_weight": 3}, {"dice": 1}, {"jaccard": 1}, {"focal": 1}]
TERMS = [*SMOOTH_TERMS, {"lovasz": 1}]

shares = hnp.arrays("float32", (2, 4), elements=st.floats(0, 1, width=32)).map(torch.from_numpy)


def names(terms: dict[str, float]) -> str:
    return "+".join(terms)


def loss_of(logits_NHW: Tensor, prob_NHW: Tensor, **terms: float) -> Tensor:
    return mask_loss(logits_NHW, prob_NHW, **(NOTHING | terms))


def random_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.manual_seed(seed)
    return 2 * torch.randn(3, 6, 7, generator=generator), torch.rand(3, 6, 7, generator=generator)


# --- the sum --------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    logits, share = random_batch()
    weights = {"bce": 0.3, "dice": 2.0, "jaccard": 0.7, "focal": 5.0, "lovasz": 0.1}
    parts = sum(weight * loss_of(logits, share, **{name: 1}).item() for name, weight in weights.items())
    assert loss_of(logits, share, **weights).item() == pytest.approx(parts, rel=1e-5)


def test_cross_entropy_has_a_known_value() -> None:
    logits, share = torch.tensor([[[0.0, math.log(3)]]]), torch.tensor([[[1.0, 0.25]]])  # p = 1/2 and 3/4
    expected = (math.log(2) - 0.25 * math.log(3 / 4) - 0.75 * math.log(1 / 4)) / 2
    assert loss_of(logits, share, bce=1).item() == pytest.approx(expected)


def test_a_term_of_weight_0_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, share = random_batch()
    for name in ("edge_weights", "soft_jaccard_loss", "focal_loss", "lovasz_loss"):
        monkeypatch.delattr(f"pipeline.model.losses.{name}")
    loss_of(logits, share, bce=1, dice=1)
    with pytest.raises(NameError):
        loss_of(logits, share, bce=1, edge_weight=1)


@pytest.mark.parametrize("terms", TERMS, ids=names)
def test_the_loss_of_a_batch_is_the_mean_over_its_pictures(terms: dict[str, float]) -> None:
    """So that a batch may be cut into parts, for several GPUs or a small memory."""
    logits, share = random_batch()
    parts = [loss_of(logits[i : i + 1], share[i : i + 1], **terms).item() for i in range(len(logits))]
    assert loss_of(logits, share, **terms).item() == pytest.approx(sum(parts) / len(parts), rel=1e-5)
    assert max(parts) - min(parts) > 1e-3


@pytest.mark.parametrize("terms", TERMS, ids=names)
@pytest.mark.parametrize("logit", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_extreme_logits_and_empty_or_full_masks_give_numbers(terms: dict[str, float], logit: float, share: float):
    logits = torch.full((2, 3, 5), logit, requires_grad=True)
    loss = loss_of(logits, torch.full((2, 3, 5), share), **terms)
    loss.backward()
    assert loss.isfinite() and loss >= 0
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("terms", TERMS, ids=names)
def test_no_term_waits_for_the_gpu(terms: dict[str, float]) -> None:
    logits, share = (tensor.cuda() for tensor in random_batch())
    loss_of(logits, share, **terms)  # what is done but once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_of(logits.requires_grad_(), share, **terms).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- where the minimum lies -----------------------------------------------------------------------


@pytest.mark.parametrize("terms", SMOOTH_TERMS, ids=names)
def test_the_gradient_vanishes_where_the_probability_is_the_share(terms: dict[str, float]) -> None:
    share = torch.tensor([[[0.1, 0.5, 0.9], [0.3, 0.001, 0.999]]])
    exact = share.logit().requires_grad_()
    loss_of(exact, share, **terms).backward()
    assert exact.grad is not None and exact.grad.abs().max() < 1e-6
    near = (share.logit() + 0.1).requires_grad_()
    loss_of(near, share, **terms).backward()
    assert near.grad is not None and near.grad.max() > 1e-5


@pytest.mark.parametrize("terms", SMOOTH_TERMS, ids=names)
@given(share=shares, probability=shares)
def test_no_other_probability_has_a_smaller_loss_than_the_share(
    terms: dict[str, float], share: Tensor, probability: Tensor
) -> None:
    best, other = (p.clamp(1e-6, 1 - 1e-6).logit()[None] for p in (share, probability))
    assert loss_of(other, share[None], **terms) >= loss_of(best, share[None], **terms) - 1e-5


def test_the_gradient_of_jaccard_fades_toward_the_minimum_where_smps_does_not() -> None:
    """The reason for a Jaccard of our own."""
    from segmentation_models_pytorch.losses import JaccardLoss

    share = torch.full((1, 4, 4), 0.5)
    for loss, fades in ((soft_jaccard_loss, True), (JaccardLoss("binary", from_logits=False), False)):
        slopes = []
        for error in (0.1, 0.001):
            probability = (share + error).requires_grad_()
            loss(probability, share).backward()
            assert probability.grad is not None
            slopes.append(probability.grad.sum().item())
        assert (slopes[1] < 0.02 * slopes[0]) == fades and min(slopes) > 0


# --- term by term ---------------------------------------------------------------------------------


def test_soft_jaccard_loss_has_known_values() -> None:
    share = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    assert soft_jaccard_loss(share, share).item() == 0
    assert soft_jaccard_loss(1 - share, share).item() == pytest.approx(1 - 1 / 5)  # (0 + 1) / (2 + 2 - 0 + 1)
    assert soft_jaccard_loss(share / 2, share).item() == pytest.approx(1 - 2 / 2.5)  # (1 + 1) / (0.5 + 2 - 1 + 1)
    empty = torch.zeros(1, 1, 4)
    assert soft_jaccard_loss(empty, empty).item() == 0


@given(share=shares, probability=shares)
def test_soft_jaccard_is_never_a_smaller_loss_than_soft_dice(share: Tensor, probability: Tensor) -> None:
    dice, jaccard = soft_dice_loss(probability[None], share[None]), soft_jaccard_loss(probability[None], share[None])
    assert -1e-6 <= dice.item() <= jaccard.item() + 1e-6 <= 1 + 1e-6


def test_focal_loss_has_a_known_value() -> None:
    logits, share = torch.tensor([[[0.0, math.log(3)]]]), torch.tensor([[[1.0, 0.0]]])  # p = 1/2 and 3/4
    expected = ((1 - 1 / 2) ** 2 * math.log(2) + (1 - 1 / 4) ** 2 * math.log(4)) / 2
    assert focal_loss(logits, share).item() == pytest.approx(expected)


def test_lovasz_loss_has_known_values() -> None:
    share = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    right = torch.where(share > 0.5, 5.0, -5.0)
    assert lovasz_loss(right, share).item() == 0
    wrong_once = right.clone()
    wrong_once[0, 0, 1] = 1.0  # an error of 1 + 1, and Jaccard falls from 1 to 1/2
    assert lovasz_loss(wrong_once, share).item() == pytest.approx(2 * 0.5)


def test_lovasz_cuts_the_target_at_one_half() -> None:
    logits = random_batch()[0]
    share = torch.tensor([127, 128]).div(255).repeat(3, 6, 4)[:, :, :7]
    assert lovasz_loss(logits, share) == lovasz_loss(logits, (share * 255 >= 128).float())


# --- the weight of the edge -----------------------------------------------------------------------


def test_the_band_reaches_edge_px_cells_to_both_sides_of_an_edge() -> None:
    share = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1]).expand(1, 5, 8)
    near = torch.tensor([1.0, 1, 4, 4, 4, 4, 1, 1])
    assert torch.allclose(edge_weights(share, 3.0, edge_px=2), (near / near.mean()).expand(1, 5, 8))
    assert torch.allclose(edge_weights(share.mT, 3.0, edge_px=2), (near / near.mean()).expand(1, 5, 8).mT)


def test_an_edge_that_covers_half_a_cell_gets_half_the_weight() -> None:
    share = torch.tensor([0.0, 0, 0, 0.5, 0, 0, 0]).expand(1, 5, 7)
    near = torch.tensor([1.0, 1, 2, 2, 2, 1, 1])
    assert torch.allclose(edge_weights(share, 2.0, edge_px=1), (near / near.mean()).expand(1, 5, 7))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_the_pictures_border_is_no_edge(value: float) -> None:
    share = torch.full((2, 4, 6), value)
    assert torch.equal(edge_weights(share, 5.0, edge_px=3), torch.ones(2, 4, 6))


def test_a_window_may_be_larger_than_the_picture() -> None:
    share = torch.zeros(1, 3, 4)
    share[0, 1, 1] = 1
    assert torch.allclose(edge_weights(share, 5.0, edge_px=9), torch.ones(1, 3, 4))


@given(share=shares, edge_weight=st.floats(0, 100), edge_px=st.integers(1, 5))
def test_the_band_is_dilation_less_erosion_and_the_mean_weight_is_1(share: Tensor, edge_weight: float, edge_px: int):
    side = 2 * edge_px + 1
    dilated = F.max_pool2d(share[None], side, stride=1, padding=edge_px)
    eroded = -F.max_pool2d(-share[None], side, stride=1, padding=edge_px)
    plain = 1 + edge_weight * (dilated - eroded)
    weights = edge_weights(share[None], edge_weight, edge_px)
    assert torch.allclose(weights, plain / plain.mean())
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)


def test_errors_near_the_edge_count_more_and_those_far_from_it_less() -> None:
    share = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1]).expand(1, 8, 8)
    right = torch.where(share > 0.5, 3.0, -3.0)
    near, far = right.clone(), right.clone()
    near[0, 0, 3] = far[0, 0, 0] = 3.0
    plain, weighted = ([loss_of(x, share, bce=1, edge_weight=w).item() for x in (near, far)] for w in (0, 4))
    assert plain[0] == pytest.approx(plain[1])
    assert weighted[0] > plain[0] and weighted[1] < plain[1]
