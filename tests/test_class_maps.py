"""Class maps: means before decisions, the same on every code path, and colours for them."""
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.cutout import predict_class_map
from pipeline.data import augment
from pipeline.inference.class_maps import ClassEnsemble
from pipeline.inference.ensemble import Member
from pipeline.inference.evaluate import Confusions, compute_class_scores, evaluate_confusions, merge_confusions
from pipeline.inference.loading import build_ensemble
from pipeline.inference.tta import TTA_SETS
from pipeline.masks.colours import IGNORED_COLOUR, OKABE_ITO, SEEN_BY, palette, palette_image, to_lab_as_seen
from pipeline.masks.confusion import ignored
from pipeline.runtime.problem import Problem

HEIGHT, WIDTH = 30, 44
STILL = dict(flip=0.0, shift=0.0, zoom=0.0, rotate_deg=0.0, brightness=0.0, contrast=0.0, hue_deg=0.0, saturation=0.0)


class Fixed(nn.Module):
    """The logits of each class are a colour channel of the image, times a factor."""

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


def random_images(count: int = 2, scale: int = 2, seed: int = 0) -> Tensor:
    shape = (count, HEIGHT // scale, WIDTH // scale, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(seed))


def ensemble_of(*networks: nn.Module, tta: str = "none", scale: int = 2) -> ClassEnsemble:
    members = [Member(network, scale, TTA_SETS[tta], 1 / len(networks)) for network in networks]
    ensemble = build_ensemble(members, False, HEIGHT, WIDTH)
    assert isinstance(ensemble, ClassEnsemble)
    return ensemble


def test_probabilities_are_averaged_before_the_class_is_chosen() -> None:
    """Two of three networks prefer the first class by a little, the third is sure of the second."""
    hesitant, sure = (0.5, 0.4, 0.1), (0.0001, 0.9, 0.0999)
    index_NHW = ensemble_of(Constant(*hesitant), Constant(*hesitant), Constant(*sure))({2: random_images()})
    assert index_NHW.shape == (2, HEIGHT, WIDTH) and index_NHW.dtype == torch.uint8
    assert index_NHW.unique().tolist() == [1]
    assert ensemble_of(Constant(*hesitant))({2: random_images()}).unique().tolist() == [0]


@pytest.mark.parametrize("tta", ["none", "hflip"])
def test_a_network_of_single_pixels_gives_the_same_with_every_transform(tta: str) -> None:
    image = random_images(scale=1)
    index_NHW = ensemble_of(Fixed(1.0, 1.0, 1.0), tta=tta, scale=1)({1: image})
    first_of_largest = (image.float() / 64).argmax(-1)
    assert (index_NHW == first_of_largest).float().mean() > 0.999  # bf16 may tie


@pytest.mark.parametrize("tta", ["hflip+scales", "shifts"])
def test_every_transform_is_inverted(tta: str) -> None:
    image = torch.zeros(1, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    image[:, :, : WIDTH // 3, 0] = image[:, :, WIDTH // 3 :, 1] = 250
    index_NHW = ensemble_of(Fixed(1.0, 1.0, 1.0), tta=tta, scale=1)({1: image})
    wrong = (index_NHW[0] != (torch.arange(WIDTH) >= WIDTH // 3)).float().mean(0)
    assert wrong.sum() <= 6 and not wrong[: WIDTH // 3 - 3].any() and not wrong[WIDTH // 3 + 3 :].any()


def test_one_class_at_a_time_is_argmax_of_all_and_scales_are_added() -> None:
    networks = {2: Fixed(1.0, 2.0, 0.5), 1: Fixed(2.0, 1.0, 1.0)}
    members = [Member(networks[scale], scale, TTA_SETS["none"], weight) for scale, weight in ((2, 0.6), (1, 0.4))]
    both = ClassEnsemble(members, HEIGHT, WIDTH)
    images = {2: random_images(), 1: random_images(scale=1)}
    predicted = both.predict(images)
    prob_of_scale = predicted.prob_of_scale
    total = sum(prob_NCHW.sum(1).mean() for prob_NCHW in prob_of_scale.values())
    assert torch.allclose(total, torch.tensor(1.0), atol=1e-5)
    on_device = both.decide_on_device(predicted, 3)
    large = nn.functional.interpolate(prob_of_scale[2], scale_factor=2, mode="bicubic") + prob_of_scale[1]
    assert torch.equal(on_device.long(), large.argmax(1))
    assert (both(images) == on_device).float().mean() > 0.999  # OpenCV's bicubic agrees with torch's up to rounding


def test_hundreds_of_classes_fit_into_the_dtype() -> None:
    index_NHW = ensemble_of(Constant(*([0.001] * 300 + [0.7])))({2: random_images(1)})
    assert index_NHW.unique().tolist() == [300]


def test_scores_of_all_images_are_those_of_their_summed_matrices_with_any_number_of_processes() -> None:
    generator = np.random.default_rng(0)
    truth = {str(n): generator.integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8) for n in range(4)}
    truth["0"][:9] = ignored(np.uint8)
    names, ensemble = list(truth), ensemble_of(Fixed(1.0, 1.0, 1.0))

    def evaluate(mine: list[str]) -> Confusions:
        batches = [{2: random_images(1, seed=int(name))} for name in mine]
        return evaluate_confusions(ensemble, batches, mine, truth.__getitem__, 3)

    whole, merged = evaluate(names), merge_confusions([evaluate(names[:3]), evaluate(names[3:])])
    for one, other in zip(whole, merged):
        np.testing.assert_array_equal(one, other)
    assert whole.matrix.sum() == 4 * HEIGHT * WIDTH - 9 * WIDTH == whole.per_image.in_truth.sum()
    assert 0 < compute_class_scores(whole)["mean_iou"] < compute_class_scores(whole)["mean_dice"] < 1


def test_masks_without_a_valid_pixel_are_a_problem() -> None:
    nothing = np.full((HEIGHT, WIDTH), 255, np.uint8)
    ensemble = ensemble_of(Constant(0.5, 0.5))
    batches = [{2: random_images(1)}]
    confusions = evaluate_confusions(ensemble, batches, ["a"], lambda _: nothing, 2)
    with pytest.raises(Problem, match="No pixel of the held-out images has a class"):
        compute_class_scores(confusions)


def test_an_image_of_any_size_gets_a_class_map_of_its_size() -> None:
    image = np.zeros((33, 71, 3), np.uint8)
    image[:, :40, 0] = image[:, 40:, 2] = 255
    class_map = predict_class_map(ensemble_of(Fixed(1.0, 1.0, 1.0)), image)
    assert class_map.shape == (33, 71) and class_map.dtype == np.uint8
    assert (class_map[:, :38] == 0).all() and (class_map[:, 42:] == 2).all()


# --- augmentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_class_maps_move_with_their_image_are_never_mixed_and_are_ignored_beyond_the_border(dtype) -> None:
    index = np.zeros((40, 60), dtype)
    index[10:30, 15:40] = 7
    image = np.repeat((index * 30).astype(np.uint8)[..., None], 4, axis=2)
    transform = augment.build(**{**STILL, "flip": 0.5, "shift": 0.1, "zoom": 0.2, "rotate_deg": 15.0}, of_classes=True)
    moved = beyond = 0
    for seed in range(12):
        new_image, new_index = transform(image, index, seed)
        valid = new_index != ignored(dtype)
        assert new_image.shape == (40, 60, 4) and new_index.dtype == dtype
        assert set(np.unique(new_index)) <= {0, 7, ignored(dtype)} and valid.mean() > 0.5
        wrong = valid & (abs(new_image[..., 0].astype(int) - 30 * new_index.astype(int)) > 105)
        assert wrong.mean() < 0.01  # along the edge, where the image is interpolated
        np.testing.assert_array_equal(new_image[..., 3], new_image[..., 0])  # depth moves with it
        moved += (new_index != index).any()
        beyond += not valid.all()
    assert moved == 12 and beyond > 6


def test_colour_augmentation_changes_the_image_but_not_its_depth() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 4)).astype(np.uint8)
    original = image.copy()
    colourful = {**STILL, "brightness": 0.3, "contrast": 0.3, "hue_deg": 30.0, "saturation": 0.3}
    new_image, index = augment.build(**colourful, of_classes=True)(image, np.ones((20, 30), np.uint8), 1)
    np.testing.assert_array_equal(new_image[..., 3], original[..., 3])
    assert (new_image[..., :3] != original[..., :3]).mean() > 0.5 and (index == 1).all()
    np.testing.assert_array_equal(image, original)


# --- colours --------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes, least", [(3, 20), (7, 14), (14, 11), (41, 5)])
def test_no_two_classes_look_alike_to_colour_blind_eyes(classes: int, least: float) -> None:
    colours = np.concatenate([palette(classes), [IGNORED_COLOUR]]).astype(float)
    for matrix in SEEN_BY.values():
        lab = to_lab_as_seen(colours, matrix)
        distances = np.linalg.norm(lab[:, None] - lab, axis=2) + 1e9 * np.eye(len(lab))
        assert distances.min() > least


def test_a_longer_palette_begins_with_a_shorter_one_and_all_differ() -> None:
    assert palette(3).tolist() == [list(colour) for colour in OKABE_ITO[:3]]
    np.testing.assert_array_equal(palette(894)[:41], palette(41))
    assert len(np.unique(palette(894), axis=0)) == 894


def test_a_class_map_becomes_an_image_that_still_holds_it() -> None:
    index = np.array([[0, 1, 2, 255]], np.uint8)
    image = palette_image(index, 3)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), index)
    assert np.asarray(image.convert("RGB")).tolist() == [[*palette(3).tolist(), list(IGNORED_COLOUR)]]
    wide = palette_image(np.array([[299, 65535]], np.uint16), 300)
    assert np.asarray(wide).tolist() == [[palette(300)[299].tolist(), list(IGNORED_COLOUR)]]
