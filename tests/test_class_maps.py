"""Class maps: means before decisions, the same on all ways there, and colours for them."""
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data import augment
from pipeline.inference.class_maps import ClassEnsemble
from pipeline.cutout import class_map
from pipeline.inference.evaluate import compute_class_scores, evaluate_confusions, launch_processes
from pipeline.inference.loading import build_ensemble
from pipeline.inference.ensemble import Member
from pipeline.inference.tta import ANGLES
from pipeline.masks.confusion import ignored
from pipeline.masks.colours import IGNORED_COLOUR, OKABE_ITO, SEEN_BY, to_lab_as_seen, palette, palette_image
from pipeline.runtime.problem import Problem

HEIGHT, WIDTH = 30, 44
STILL = dict(flip=0.0, shift=0.0, zoom=0.0, rotate_deg=0.0, brightness=0.0, contrast=0.0, hue_deg=0.0, saturation=0.0)


class Fixed(nn.Module):
    """Logits of each class are a colour of the picture, times a factor."""

    def __init__(self, *factors: float):
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors), requires_grad=False)

    def forward(self, image_NHWC: Tensor) -> Tensor:
        return image_NHWC[..., : len(self.factors)].permute(0, 3, 1, 2).float() * self.factors.view(1, -1, 1, 1) / 64


class Constant(nn.Module):
    """The same probabilities in each pixel."""

    def __init__(self, *probabilities: float):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log(), requires_grad=False)

    def forward(self, image_NHWC: Tensor) -> Tensor:
        return self.logits.view(1, -1, 1, 1).expand(len(image_NHWC), -1, *image_NHWC.shape[1:3])


def pictures(count: int = 2, scale: int = 2, seed: int = 0) -> Tensor:
    shape = (count, HEIGHT // scale, WIDTH // scale, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(seed))


def ensemble(*networks: nn.Module, tta: str = "none", scale: int = 2) -> ClassEnsemble:
    members = [Member(network, scale, ANGLES[tta], 1 / len(networks)) for network in networks]
    found = build_ensemble(members, False, HEIGHT, WIDTH)
    assert isinstance(found, ClassEnsemble)
    return found


def test_probabilities_are_averaged_before_the_class_is_chosen() -> None:
    """Two of three networks prefer the first class by a little, the third is sure of the second."""
    hesitant, sure = (0.5, 0.4, 0.1), (0.0001, 0.9, 0.0999)
    found = ensemble(Constant(*hesitant), Constant(*hesitant), Constant(*sure))({2: pictures()})
    assert found.shape == (2, HEIGHT, WIDTH) and found.dtype == torch.uint8
    assert found.unique().tolist() == [1]
    assert ensemble(Constant(*hesitant))({2: pictures()}).unique().tolist() == [0]


@pytest.mark.parametrize("tta", ["none", "hflip"])
def test_a_network_that_sees_pixels_alone_gives_the_same_in_all_views(tta: str) -> None:
    image = pictures(scale=1)
    found = ensemble(Fixed(1.0, 1.0, 1.0), tta=tta, scale=1)({1: image})
    first_of_largest = (image.float() / 64).argmax(-1)
    assert (found == first_of_largest).float().mean() > 0.999  # bf16 may tie


@pytest.mark.parametrize("tta", ["hflip+scales", "shifts"])
def test_every_view_comes_back_to_its_place(tta: str) -> None:
    image = torch.zeros(1, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    image[:, :, : WIDTH // 3, 0] = image[:, :, WIDTH // 3 :, 1] = 250
    found = ensemble(Fixed(1.0, 1.0, 1.0), tta=tta, scale=1)({1: image})
    wrong = (found[0] != (torch.arange(WIDTH) >= WIDTH // 3)).float().mean(0)
    assert wrong.sum() <= 6 and not wrong[: WIDTH // 3 - 3].any() and not wrong[WIDTH // 3 + 3 :].any()


def test_one_class_at_a_time_is_argmax_of_all_and_scales_are_added() -> None:
    members = [Member(Fixed(1.0, 2.0, 0.5), 2, ANGLES["none"], 0.6), Member(Fixed(2.0, 1.0, 1.0), 1, ANGLES["none"], 0.4)]
    both = ClassEnsemble(members, HEIGHT, WIDTH)
    images = {2: pictures(), 1: pictures(scale=1)}
    shares = both.weighted_probs(images)
    assert torch.allclose(sum(share.sum(1).mean() for share in shares.values()), torch.tensor(1.0), atol=1e-5)
    on_device = both.class_map_on_device(shares)
    large = nn.functional.interpolate(shares[2], scale_factor=2, mode="bicubic") + shares[1]
    assert torch.equal(on_device.long(), large.argmax(1))
    assert (both(images) == on_device).float().mean() > 0.999  # OpenCV's bicubic is torch's but for rounding


def test_hundreds_of_classes_have_room() -> None:
    found = ensemble(Constant(*([0.001] * 300 + [0.7])))({2: pictures(1)})
    assert found.unique().tolist() == [300]


def test_scores_of_all_pictures_are_those_of_their_matrices_added_up_by_any_number_of_processes() -> None:
    generator = np.random.default_rng(0)
    truth = {str(n): generator.integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8) for n in range(4)}
    truth["0"][:9] = ignored(np.uint8)
    names, predictor = list(truth), ensemble(Fixed(1.0, 1.0, 1.0))

    def judged(mine: list[str]):
        batches = [pictures(1, seed=int(name)) for name in mine]
        return evaluate_confusions(lambda image: predictor({2: image}), batches, mine, truth.__getitem__, 3)

    whole, parts = judged(names), launch_processes([judged(names[:3]), judged(names[3:])])
    for one, other in zip(whole, parts):
        np.testing.assert_array_equal(one, other)
    assert whole.matrix.sum() == 4 * HEIGHT * WIDTH - 9 * WIDTH == whole.per_image.in_truth.sum()
    assert 0 < compute_class_scores(whole)["mean_iou"] < compute_class_scores(whole)["mean_dice"] < 1


def test_masks_in_which_nothing_is_judged_are_a_problem() -> None:
    nothing = np.full((HEIGHT, WIDTH), 255, np.uint8)
    predictor = ensemble(Constant(0.5, 0.5))
    judged = evaluate_confusions(lambda image: predictor({2: image}), [pictures(1)], ["a"], lambda _: nothing, 2)
    with pytest.raises(Problem, match="No pixel of the held-out pictures has a class"):
        compute_class_scores(judged)


def test_a_photo_of_any_size_gets_a_class_map_of_its_size() -> None:
    photo = np.zeros((33, 71, 3), np.uint8)
    photo[:, :40, 0] = photo[:, 40:, 2] = 255
    found = class_map(ensemble(Fixed(1.0, 1.0, 1.0)), photo)
    assert found.shape == (33, 71) and found.dtype == np.uint8
    assert (found[:, :38] == 0).all() and (found[:, 42:] == 2).all()


# --- classes that are moved -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_class_maps_are_moved_with_their_picture_never_mixed_and_not_judged_beyond_the_border(dtype) -> None:
    index = np.zeros((40, 60), dtype)
    index[10:30, 15:40] = 7
    image = np.repeat((index * 30).astype(np.uint8)[..., None], 4, axis=2)
    change = augment.build(**{**STILL, "flip": 0.5, "shift": 0.1, "zoom": 0.2, "rotate_deg": 15.0}, of_classes=True)
    moved = beyond = 0
    for seed in range(12):
        changed, changed_index = change(image, index, seed)
        judged = changed_index != ignored(dtype)
        assert changed.shape == (40, 60, 4) and changed_index.dtype == dtype
        assert set(np.unique(changed_index)) <= {0, 7, ignored(dtype)} and judged.mean() > 0.5
        wrong = judged & (abs(changed[..., 0].astype(int) - 30 * changed_index.astype(int)) > 105)
        assert wrong.mean() < 0.01  # along the edge, where the picture is interpolated
        np.testing.assert_array_equal(changed[..., 3], changed[..., 0])  # depth goes with it
        moved += (changed_index != index).any()
        beyond += not judged.all()
    assert moved == 12 and beyond > 6


def test_depth_takes_no_change_of_colour_and_the_picture_does() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 4)).astype(np.uint8)
    kept = image.copy()
    colourful = {**STILL, "brightness": 0.3, "contrast": 0.3, "hue_deg": 30.0, "saturation": 0.3}
    changed, index = augment.build(**colourful, of_classes=True)(image, np.ones((20, 30), np.uint8), 1)
    np.testing.assert_array_equal(changed[..., 3], kept[..., 3])
    assert (changed[..., :3] != kept[..., :3]).mean() > 0.5 and (index == 1).all()
    np.testing.assert_array_equal(image, kept)


# --- colours --------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes, least", [(3, 20), (7, 14), (14, 11), (41, 5)])
def test_no_two_classes_look_alike_to_any_eye(classes: int, least: float) -> None:
    colours = np.concatenate([palette(classes), [IGNORED_COLOUR]]).astype(float)
    for matrix in SEEN_BY.values():
        lab = to_lab_as_seen(colours, matrix)
        distances = np.linalg.norm(lab[:, None] - lab, axis=2) + 1e9 * np.eye(len(lab))
        assert distances.min() > least


def test_a_longer_palette_begins_with_a_shorter_one_and_all_differ() -> None:
    assert palette(3).tolist() == [list(colour) for colour in OKABE_ITO[:3]]
    np.testing.assert_array_equal(palette(894)[:41], palette(41))
    assert len(np.unique(palette(894), axis=0)) == 894


def test_a_class_map_becomes_a_picture_that_still_holds_it() -> None:
    index = np.array([[0, 1, 2, 255]], np.uint8)
    image = palette_image(index, 3)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), index)
    assert np.asarray(image.convert("RGB")).tolist() == [[*palette(3).tolist(), list(IGNORED_COLOUR)]]
    wide = palette_image(np.array([[299, 65535]], np.uint16), 300)
    assert np.asarray(wide).tolist() == [[palette(300)[299].tolist(), list(IGNORED_COLOUR)]]
