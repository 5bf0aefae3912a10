"""Cross-entropy and soft Dice of classes: known values, ignored pixels, and a batch as the mean over its images."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.losses import build, class_loss

IGNORED = 255
WEIGHTS = torch.tensor([1.0, 0.5, 3.0])


def random_batch(seed: int = 0, images: int = 3, ignored: bool = True) -> tuple[Tensor, Tensor]:
    """Return logits (N, 3, 6, 7) and classes, of which some are ignored: more in the first image."""
    generator = torch.manual_seed(seed)
    index_NHW = torch.randint(0, 3, (images, 6, 7), generator=generator).to(torch.uint8)
    if ignored:
        index_NHW[0, :4], index_NHW[1:, 0, :3] = IGNORED, IGNORED
    return 2 * torch.randn(images, 3, 6, 7, generator=generator), index_NHW


def ce(logits_NCHW: Tensor, index_NHW: Tensor, weights_C: Tensor | None = None) -> Tensor:
    return class_loss(logits_NCHW, index_NHW, weights_C, bce=1.0)


def dice(logits_NCHW: Tensor, index_NHW: Tensor) -> Tensor:
    return class_loss(logits_NCHW, index_NHW, dice=1.0)


def test_the_cross_entropy_of_an_image_is_torchs() -> None:
    logits, index = random_batch(images=2)
    expected = F.cross_entropy(logits[:1], index[:1].long(), ignore_index=IGNORED)
    assert ce(logits[:1], index[:1]).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_class_of_weight_3_counts_three_times() -> None:
    logits, index = random_batch(ignored=False)
    each = F.cross_entropy(logits, index.long(), reduction="none")
    expected = (each * WEIGHTS[index.long()]).mean()
    assert ce(logits, index, WEIGHTS).item() == pytest.approx(expected.item(), rel=1e-6)


def test_dice_has_a_known_value() -> None:
    logits = torch.tensor([[[[math.log(3.0), 0.0]], [[0.0, 0.0]], [[-99.0, -99.0]]]])  # p = 3/4 1/4 0, and 1/2 1/2 0
    index = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    first = 1 - (2 * 3 / 4 + 1) / (9 / 16 + 1 / 4 + 1 + 1)
    second = 1 - (2 * 1 / 2 + 1) / (1 / 16 + 1 / 4 + 1 + 1)
    assert dice(logits, index).item() == pytest.approx((first + second) / 2)  # the third class is absent


@pytest.mark.parametrize("loss_of", [ce, dice])
def test_the_right_answer_costs_nothing_and_a_wrong_one_does(loss_of) -> None:
    index = random_batch()[1]
    right = 50.0 * F.one_hot(index.long().where(index != IGNORED, 0), 3).permute(0, 3, 1, 2)
    assert loss_of(right, index).item() == pytest.approx(0, abs=1e-5)
    assert loss_of(right.roll(1, dims=1), index).item() > 0.5


@pytest.mark.parametrize("loss_of", [ce, dice])
def test_ignored_pixels_do_not_count(loss_of) -> None:
    logits, index = random_batch()
    other = logits.clone()
    other[(index == IGNORED)[:, None].expand_as(other)] *= -7
    logits.requires_grad_()
    loss = loss_of(logits, index)
    loss.backward()
    assert loss_of(other, index).item() == pytest.approx(loss.item(), rel=1e-6)
    assert logits.grad is not None and not logits.grad[(index == IGNORED)[:, None].expand_as(logits)].any()
    assert logits.grad.any()


@pytest.mark.parametrize("loss_of", [ce, dice])
def test_a_batch_without_a_valid_pixel_gives_0_and_no_nan(loss_of) -> None:
    logits = random_batch()[0].requires_grad_()
    loss = loss_of(logits, torch.full((3, 6, 7), IGNORED, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("loss_of", [ce, dice])
def test_the_loss_of_a_batch_is_the_mean_over_its_images(loss_of) -> None:
    """So that a batch may be split into micro-batches, though one image has more valid pixels."""
    logits, index = random_batch()
    each = [loss_of(logits[i : i + 1], index[i : i + 1]).item() for i in range(len(logits))]
    assert loss_of(logits, index).item() == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert max(each) - min(each) > 1e-3


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_give_a_finite_loss(size: float) -> None:
    logits = (size * torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2)).requires_grad_()
    loss = class_loss(logits, torch.zeros(3, 2, 2, dtype=torch.uint8), WEIGHTS, bce=1.0, dice=1.0)
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


def test_hundreds_of_classes_are_uint16() -> None:
    index = torch.tensor([[[0, 700, 65535]]], dtype=torch.uint16)
    logits = torch.zeros(1, 894, 1, 3)
    assert ce(logits, index).item() == pytest.approx(math.log(894))


def test_the_target_of_a_binary_task_is_coverage_in_bytes() -> None:
    weights = dict(bce=1.0, dice=0.0, jaccard=0.0, focal=0.0, lovasz=0.0, edge_weight=0.0, edge_px=2)
    loss_of = build(True, [], weights, torch.device("cpu"))
    logits, coverage = torch.tensor([[[[0.3, -0.2]]]]), torch.tensor([[[255, 51]]], dtype=torch.uint8)
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], torch.tensor([[[1.0, 0.2]]]))
    assert loss_of(logits, coverage).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("size", [1.0, 40.0])
def test_class_weights_set_how_classes_compare_and_not_how_large_the_loss_is(size: float) -> None:
    weights = dict(bce=1.0, dice=0.5, jaccard=0.0, focal=0.0, lovasz=0.0, edge_weight=0.0, edge_px=2)
    logits, index = random_batch()
    several = build(False, (size * WEIGHTS).tolist(), weights, torch.device("cpu"))
    expected = ce(logits, index, WEIGHTS / 1.5) + 0.5 * dice(logits, index)
    assert several(logits, index).item() == pytest.approx(expected.item(), rel=1e-5)
    equal, none = (build(False, class_weights, weights, torch.device("cpu")) for class_weights in ([size] * 3, []))
    assert equal(logits, index).item() == pytest.approx(none(logits, index).item(), rel=1e-5)
