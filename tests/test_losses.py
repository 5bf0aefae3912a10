"""Losses of masks: known values, the place of the minimum, and a batch as the mean over its images."""
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from pipeline.model import losses
from pipeline.model.losses import (
    edge_weights, focal_loss, lovasz_loss, mask_loss, pooled_maximum, soft_dice_loss, soft_jaccard_loss, window_maximum,
)  # fmt: skip
from pipeline.runtime.problem import Problem

NOTHING: dict[str, Any] = dict(bce=0, dice=0, jaccard=0, focal=0, lovasz=0, edge_weight=0, edge_px=1)
SMOOTH_TERMS = [{"bce": 1}, {"bce": 1, "edge_weight": 3}, {"dice": 1}, {"jaccard": 1}, {"focal": 1}]
TERMS = [*SMOOTH_TERMS, {"lovasz": 1}]

fractions = hnp.arrays("float32", (2, 4), elements=st.floats(0, 1, width=32)).map(torch.from_numpy)


def names(terms: dict[str, float]) -> str:
    return "+".join(terms)


def loss_of(logits_NHW: Tensor, target_NHW: Tensor, **terms: float) -> Tensor:
    return mask_loss(logits_NHW, target_NHW, **(NOTHING | terms))


def random_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.manual_seed(seed)
    return 2 * torch.randn(3, 6, 7, generator=generator), torch.rand(3, 6, 7, generator=generator)


# --- the sum --------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    logits, target = random_batch()
    weights = {"bce": 0.3, "dice": 2.0, "jaccard": 0.7, "focal": 5.0, "lovasz": 0.1}
    expected = sum(weight * loss_of(logits, target, **{name: 1}).item() for name, weight in weights.items())
    assert loss_of(logits, target, **weights).item() == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_has_a_known_value() -> None:
    logits, target = torch.tensor([[[0.0, math.log(3)]]]), torch.tensor([[[1.0, 0.25]]])  # p = 1/2 and 3/4
    expected = (math.log(2) - 0.25 * math.log(3 / 4) - 0.75 * math.log(1 / 4)) / 2
    assert loss_of(logits, target, bce=1).item() == pytest.approx(expected)


def test_a_term_of_weight_0_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = random_batch()
    for name in ("jaccard", "focal", "lovasz"):
        monkeypatch.setitem(losses.MASK_LOSSES, name, None)
    monkeypatch.delattr(losses, "edge_weights")
    loss_of(logits, target, bce=1, dice=1)
    with pytest.raises(NameError):
        loss_of(logits, target, bce=1, edge_weight=1)
    with pytest.raises(TypeError):
        loss_of(logits, target, jaccard=1)


def test_a_loss_that_is_added_to_the_table_counts_by_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = random_batch()
    monkeypatch.setitem(losses.MASK_LOSSES, "mine", lambda logits_NHW, target_NHW: logits_NHW.mean() + 5)
    loss = losses.build(True, [], {"bce": 1.0, "mine": 0.5}, torch.device("cpu"))
    expected = loss_of(logits, target, bce=1).item() + 0.5 * (logits.mean().item() + 5)
    assert loss(logits[:, None], target * 255).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("binary, name", [(True, "jacard"), (False, "jaccard")])
def test_an_unknown_loss_is_a_problem_that_names_it(binary: bool, name: str) -> None:
    with pytest.raises(Problem, match=f"loss.{name}"):
        losses.build(binary, [], {"bce": 1.0, name: 0.5, "edge_px": 2}, torch.device("cpu"))


@pytest.mark.parametrize("terms", TERMS, ids=names)
def test_the_loss_of_a_batch_is_the_mean_over_its_images(terms: dict[str, float]) -> None:
    """So that a batch may be split into micro-batches, for several GPUs or a small memory."""
    logits, target = random_batch()
    each = [loss_of(logits[i : i + 1], target[i : i + 1], **terms).item() for i in range(len(logits))]
    assert loss_of(logits, target, **terms).item() == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert max(each) - min(each) > 1e-3


@pytest.mark.parametrize("terms", TERMS, ids=names)
@pytest.mark.parametrize("logit", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_extreme_logits_and_empty_or_full_masks_give_finite_losses(
    terms: dict[str, float], logit: float, target: float
) -> None:
    logits = torch.full((2, 3, 5), logit, requires_grad=True)
    loss = loss_of(logits, torch.full((2, 3, 5), target), **terms)
    loss.backward()
    assert loss.isfinite() and loss >= 0
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("terms", TERMS, ids=names)
def test_no_term_waits_for_the_gpu(terms: dict[str, float]) -> None:
    logits, target = (tensor.cuda() for tensor in random_batch())
    loss_of(logits, target, **terms)  # what is done only once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_of(logits.requires_grad_(), target, **terms).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- the minimum ---------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", SMOOTH_TERMS, ids=names)
def test_the_gradient_vanishes_where_the_probability_is_the_coverage(terms: dict[str, float]) -> None:
    target = torch.tensor([[[0.1, 0.5, 0.9], [0.3, 0.001, 0.999]]])
    exact = target.logit().requires_grad_()
    loss_of(exact, target, **terms).backward()
    assert exact.grad is not None and exact.grad.abs().max() < 1e-6
    near = (target.logit() + 0.1).requires_grad_()
    loss_of(near, target, **terms).backward()
    assert near.grad is not None and near.grad.max() > 1e-5


@pytest.mark.parametrize("terms", SMOOTH_TERMS, ids=names)
@given(target=fractions, prob=fractions)
def test_no_other_probability_has_a_smaller_loss_than_the_coverage(
    terms: dict[str, float], target: Tensor, prob: Tensor
) -> None:
    best, other = (p.clamp(1e-6, 1 - 1e-6).logit()[None] for p in (target, prob))
    assert loss_of(other, target[None], **terms) >= loss_of(best, target[None], **terms) - 1e-5


def test_the_gradient_of_jaccard_fades_toward_the_minimum_where_smps_does_not() -> None:
    """The reason for a Jaccard of our own."""
    from segmentation_models_pytorch.losses import JaccardLoss

    target = torch.full((1, 4, 4), 0.5)
    for loss, fades in ((soft_jaccard_loss, True), (JaccardLoss("binary", from_logits=False), False)):
        slopes = []
        for error in (0.1, 0.001):
            prob = (target + error).requires_grad_()
            loss(prob, target).backward()
            assert prob.grad is not None
            slopes.append(prob.grad.sum().item())
        assert (slopes[1] < 0.02 * slopes[0]) == fades and min(slopes) > 0


# --- term by term ---------------------------------------------------------------------------------


def test_soft_jaccard_loss_has_known_values() -> None:
    target = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    assert soft_jaccard_loss(target, target).item() == 0
    assert soft_jaccard_loss(1 - target, target).item() == pytest.approx(1 - 1 / 5)  # (0 + 1) / (2 + 2 - 0 + 1)
    assert soft_jaccard_loss(target / 2, target).item() == pytest.approx(1 - 2 / 2.5)  # (1 + 1) / (0.5 + 2 - 1 + 1)
    empty = torch.zeros(1, 1, 4)
    assert soft_jaccard_loss(empty, empty).item() == 0


@given(target=fractions, prob=fractions)
def test_soft_jaccard_is_never_a_smaller_loss_than_soft_dice(target: Tensor, prob: Tensor) -> None:
    dice, jaccard = soft_dice_loss(prob[None], target[None]), soft_jaccard_loss(prob[None], target[None])
    assert -1e-6 <= dice.item() <= jaccard.item() + 1e-6 <= 1 + 1e-6


def test_focal_loss_has_a_known_value() -> None:
    logits, target = torch.tensor([[[0.0, math.log(3)]]]), torch.tensor([[[1.0, 0.0]]])  # p = 1/2 and 3/4
    expected = ((1 - 1 / 2) ** 2 * math.log(2) + (1 - 1 / 4) ** 2 * math.log(4)) / 2
    assert focal_loss(logits, target).item() == pytest.approx(expected)


def test_lovasz_loss_has_known_values() -> None:
    target = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    right = torch.where(target > 0.5, 5.0, -5.0)
    assert lovasz_loss(right, target).item() == 0
    wrong_once = right.clone()
    wrong_once[0, 0, 1] = 1.0  # an error of 1 + 1, and Jaccard falls from 1 to 1/2
    assert lovasz_loss(wrong_once, target).item() == pytest.approx(2 * 0.5)


def test_lovasz_thresholds_the_target_at_one_half() -> None:
    logits = random_batch()[0]
    target = torch.tensor([127, 128]).div(255).repeat(3, 6, 4)[:, :, :7]
    assert lovasz_loss(logits, target) == lovasz_loss(logits, (target * 255 >= 128).float())


# --- the weight of the edge -----------------------------------------------------------------------


def test_the_band_reaches_edge_px_cells_to_both_sides_of_an_edge() -> None:
    target = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1]).expand(1, 5, 8)
    near = torch.tensor([1.0, 1, 4, 4, 4, 4, 1, 1])
    assert torch.allclose(edge_weights(target, 3.0, edge_px=2), (near / near.mean()).expand(1, 5, 8))
    assert torch.allclose(edge_weights(target.mT, 3.0, edge_px=2), (near / near.mean()).expand(1, 5, 8).mT)


def test_an_edge_that_covers_half_a_cell_gets_half_the_weight() -> None:
    target = torch.tensor([0.0, 0, 0, 0.5, 0, 0, 0]).expand(1, 5, 7)
    near = torch.tensor([1.0, 1, 2, 2, 2, 1, 1])
    assert torch.allclose(edge_weights(target, 2.0, edge_px=1), (near / near.mean()).expand(1, 5, 7))


def test_rows_then_columns_have_the_maximum_of_a_window_on_a_cpu_and_by_pooling_as_on_a_gpu() -> None:
    values = torch.rand(2, 1, 9, 12, generator=torch.Generator().manual_seed(0))
    expected = F.max_pool2d(values, 5, stride=1)
    assert torch.equal(window_maximum(values, 5), expected) and torch.equal(pooled_maximum(values, 5), expected)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_the_border_of_the_image_is_not_an_edge(value: float) -> None:
    target = torch.full((2, 4, 6), value)
    assert torch.equal(edge_weights(target, 5.0, edge_px=3), torch.ones(2, 4, 6))


def test_a_window_may_be_larger_than_the_image() -> None:
    target = torch.zeros(1, 3, 4)
    target[0, 1, 1] = 1
    assert torch.allclose(edge_weights(target, 5.0, edge_px=9), torch.ones(1, 3, 4))


@given(target=fractions, edge_weight=st.floats(0, 100), edge_px=st.integers(1, 5))
def test_the_band_is_dilation_less_erosion_and_the_mean_weight_is_1(target: Tensor, edge_weight: float, edge_px: int):
    side = 2 * edge_px + 1
    dilated = F.max_pool2d(target[None], side, stride=1, padding=edge_px)
    eroded = -F.max_pool2d(-target[None], side, stride=1, padding=edge_px)
    plain = 1 + edge_weight * (dilated - eroded)
    weights = edge_weights(target[None], edge_weight, edge_px)
    assert torch.allclose(weights, plain / plain.mean())
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)


def test_errors_near_the_edge_count_more_and_those_far_from_it_less() -> None:
    target = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1]).expand(1, 8, 8)
    right = torch.where(target > 0.5, 3.0, -3.0)
    near, far = right.clone(), right.clone()
    near[0, 0, 3] = far[0, 0, 0] = 3.0
    plain, weighted = ([loss_of(x, target, bce=1, edge_weight=w).item() for x in (near, far)] for w in (0, 4))
    assert plain[0] == pytest.approx(plain[1])
    assert weighted[0] > plain[0] and weighted[1] < plain[1]
