"""Views that come back to where they were, means that are rounded once, weights that are found, photos cut out."""
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from pipeline.config import Predict
from pipeline.data.images import full_size
from pipeline.blend import WEIGHTINGS_AT_MOST, Tally, blended_histograms, weightings
from pipeline.cutout import cut_out, opacity, read_photo
from pipeline.inference.evaluate import count, evaluate_histograms, predict_ahead
from pipeline.inference.loading import batch_that_fits
from pipeline.inference.ensemble import Ensemble, Member, upsample_on_device, to_u8_on_device
from pipeline.inference.tta import ANGLES, TtaTransform
from pipeline.masks import dice
from pipeline.runtime.problem import Problem

HEIGHT, WIDTH = 24, 34  # at 1/4: 6 x 9 cells, the last column hanging over


class Red(nn.Module):
    """Takes the red of a pixel, 0 to 255, for the probability; a `Segmenter` in the eyes of an ensemble."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, image_NHWC: Tensor) -> Tensor:
        share = image_NHWC[..., 0].float() / 255 * self.factor
        return share.clamp(1e-7, 1 - 1e-7).logit()[:, None]


def red_pictures(prob_NHW: Tensor) -> Tensor:
    return (prob_NHW * 255).round().to(torch.uint8)[..., None].repeat(1, 1, 1, 3)


def smooth(rows: int = 6, columns: int = 9) -> Tensor:
    """Shares (2, rows, columns) without steep edges, other at the left than at the right."""
    y, x = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij")
    return torch.stack([0.2 + 0.6 * x, 0.1 + 0.5 * x * y])


# --- views ------------------------------------------------------------------------------------------


def test_each_word_of_the_config_has_its_views() -> None:
    assert set(ANGLES) == set(Predict.model_fields["tta"].annotation.__args__)  # type: ignore[union-attr]
    assert all(views[0] == TtaTransform() for views in ANGLES.values())


@pytest.mark.parametrize("view", sorted({view for views in ANGLES.values() for view in views}, key=str), ids=str)
def test_a_view_is_undone_on_the_grid_of_the_pictures(view: TtaTransform) -> None:
    share = smooth(60, 90)
    seen = view.of(red_pictures(share))
    back = view.undone(seen[..., 0].float() / 255, 60, 90)
    assert back.shape == share.shape
    inside = (slice(None), slice(6, -6), slice(6, -6))  # what a shift has moved out comes back as its edge
    assert (back - share)[inside].abs().max() < 0.01
    if view != TtaTransform():
        assert seen.shape != (2, 60, 90, 3) or (seen[..., 0].float() / 255 - share).abs().max() > 0.02


def test_a_shift_moves_down_and_to_the_right() -> None:
    picture = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4, 1)
    assert TtaTransform(shift=(1, 2)).of(picture)[0, :, :, 0].tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [4, 4, 4, 5]]


# --- means ------------------------------------------------------------------------------------------


def test_a_mean_is_rounded_once_and_not_member_by_member() -> None:
    """Of 101 and 102 the mean is 101.5: members rounded first would give the same, but not with weights of a third."""
    members = [Member(Red(factor), 4, ANGLES["none"], 1 / 3) for factor in (1.0, 0.995, 0.99)]
    image = red_pictures(torch.full((1, 6, 9), 100.0) / 255)
    exact = (100 + 99.5 + 99) / 3
    assert Ensemble(members, HEIGHT, WIDTH)({4: image}).unique().tolist() == [round(exact)]
    weighted = [Member(Red(factor), 4, ANGLES["none"], weight) for factor, weight in ((1.0, 0.9), (0.5, 0.1))]
    assert Ensemble(weighted, HEIGHT, WIDTH)({4: image}).unique().tolist() == [95]


def test_members_at_several_scales_meet_at_full_size() -> None:
    quarter, half = torch.full((2, 6, 9), 0.4), torch.full((2, 12, 17), 0.8)
    members = [Member(Red(), 4, ANGLES["hflip"], 0.25), Member(Red(), 2, ANGLES["none"], 0.75)]
    ensemble = Ensemble(members, HEIGHT, WIDTH)
    assert ensemble.scales == (2, 4)
    result = ensemble({4: red_pictures(quarter), 2: red_pictures(half)})
    assert result.shape == (2, HEIGHT, WIDTH) and result.dtype == torch.uint8
    assert result.unique().tolist() == [round(255 * (0.25 * 0.4 + 0.75 * 0.8))]


def test_weights_that_do_not_sum_to_1_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1.5"):
        Ensemble([Member(Red(), 4, ANGLES["none"], 0.75)] * 2, HEIGHT, WIDTH)


def test_a_mean_of_one_network_with_itself_or_with_its_mirror_is_its_prediction() -> None:
    share = smooth()
    twice = [Member(Red(), 4, ANGLES["none"], 0.5)] * 2
    predicted = Ensemble(twice, HEIGHT, WIDTH)({4: red_pictures(share)})
    expected = [full_size(((one * 255).round() / 255).numpy(), 4, HEIGHT, WIDTH) for one in share]
    assert (predicted.int() - torch.from_numpy(np.stack(expected)).int()).abs().max() <= 1
    mirrored = Ensemble([Member(Red(), 4, ANGLES["hflip"], 1.0)], HEIGHT, WIDTH)({4: red_pictures(share)})
    assert (mirrored.int() - predicted.int()).abs().max() <= 1


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_full_size_on_a_device_is_that_on_the_cpu(scale: int) -> None:
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(2, 6, 9, generator=generator)
    height, width = 6 * scale - 1, 9 * scale - 2
    on_device = to_u8_on_device(upsample_on_device(share, scale, height, width))
    expected = np.stack([full_size(one.numpy(), scale, height, width) for one in share])
    assert np.abs(on_device.numpy().astype(int) - expected).max() <= 1


def test_what_is_made_of_predictions_comes_in_their_order() -> None:
    found = predict_ahead(lambda n: torch.tensor(n), range(5), lambda n, predicted: (n, int(predicted)))
    assert list(found) == [(n, n) for n in range(5)]


def test_histograms_are_those_of_each_picture() -> None:
    generator = np.random.default_rng(0)
    probability = generator.integers(0, 256, (5, 7, 9), dtype=np.uint8)
    masks = {str(n): generator.random((7, 9)) < 0.3 for n in range(5)}
    batches = torch.from_numpy(probability).split(2)  # 2, 2 and 1: the last batch is shorter
    found = evaluate_histograms(lambda batch: batch, batches, list(masks), masks.__getitem__)
    expected = [dice.histogram(one, mask) for one, mask in zip(probability, masks.values())]
    np.testing.assert_array_equal(found, np.stack(expected))


def test_a_process_without_a_picture_has_no_histogram_and_disturbs_no_other() -> None:
    nothing = evaluate_histograms(lambda batch: batch, [], [], {}.__getitem__)
    assert nothing.shape == (0, 2, 256) and nothing.dtype == np.int32
    assert np.concatenate([nothing, np.ones((1, 2, 256), np.int32)]).dtype == np.int32


def test_the_batch_is_lowered_to_what_fits() -> None:
    class Small(Red):
        def forward(self, image_NHWC: Tensor) -> Tensor:
            if len(image_NHWC) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(image_NHWC)

    ensemble = Ensemble([Member(Small(), 4, ANGLES["hflip"], 1.0)], HEIGHT, WIDTH)
    assert [batch_that_fits(ensemble, asked) for asked in (1, 3, 4, 8)] == [1, 3, 3, 3]

    class Smallest(Red):
        def forward(self, image_NHWC: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(Problem, match="a single picture"):
        batch_that_fits(Ensemble([Member(Smallest(), 4, ANGLES["none"], 1.0)], HEIGHT, WIDTH), 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_predicts_what_the_cpu_predicts_and_in_order() -> None:
    images = [red_pictures(smooth() * factor) for factor in (1.0, 0.8, 0.6, 0.4)]
    found = []
    for device in ("cpu", "cuda"):
        ensemble = Ensemble([Member(Red().to(device), 4, ANGLES["hflip+scales"], 1.0)], HEIGHT, WIDTH)
        finished = predict_ahead(lambda image: ensemble({4: image}), images, lambda image, probability: probability.cpu())
        found.append(torch.stack(list(finished)).int())
    assert (found[0] - found[1]).abs().max() <= 1
    assert found[0].float().mean(dim=(1, 2, 3)).diff().max() < 0  # darker from batch to batch


# --- weights of runs --------------------------------------------------------------------------------


@given(st.integers(2, 9))
def test_the_weightings_hold_every_single_run_and_equal_weights(runs: int) -> None:
    tried = weightings(runs)
    assert len(tried) <= WEIGHTINGS_AT_MOST + 1
    assert np.allclose(tried.sum(axis=1), 1) and tried.min() >= 0
    assert (tried == 1).any(axis=1).sum() == runs
    assert np.isclose(tried, 1 / runs).all(axis=1).sum() == 1
    assert len(np.unique(tried, axis=0)) == len(tried)


def test_blended_histograms_are_those_of_every_pixel() -> None:
    generator = np.random.default_rng(0)
    edge = generator.random((3, 20, 30), dtype=np.float32) * 1.2 - 0.1
    sure = generator.choice(np.array([-0.01, 0, 0.3 / 255, 1, 1.02], np.float32), size=(1, 20, 30))
    share = np.where(generator.random((20, 30)) < 0.7, sure, edge).astype(np.float32)
    mask = generator.random((20, 30)) < 0.4
    for found, weights in zip(blended_histograms(share, mask, tried := weightings(3)), tried, strict=True):
        mean = np.tensordot(weights, share, axes=1).clip(0, 1)
        expected = dice.histogram(np.rint(255 * mean).astype(np.uint8), mask)
        assert found.sum() == expected.sum() and np.abs(found - expected).sum() <= 4  # where float32 rounds otherwise


def counts(probability: list[int], mask: list[int]) -> np.ndarray:
    return dice.histogram(np.array(probability, np.uint8), np.array(mask, bool))


def test_two_runs_that_err_in_other_places_are_better_together() -> None:
    mask = [1, 1, 0, 0]
    one, other = np.array([250, 90, 100, 10]), np.array([90, 250, 10, 100])  # each misses one pixel and adds one
    tried = weightings(2)
    tally = Tally(len(tried))
    for make in ("audi", "bmw"):
        blended = [np.rint(weighting @ np.stack([one, other])).astype(int).tolist() for weighting in tried]
        tally.add(make, np.stack([counts(probability, mask) for probability in blended]))
    everything = tally.best(among=np.ones(len(tried), bool))
    single = tally.best(among=(tried == 1).any(axis=1))
    assert everything.dice == everything.dice_cross_fitted == 1
    assert single.dice == single.dice_cross_fitted == pytest.approx(0.8)  # 2 of 2 found, with one too many
    assert 0 < tried[everything.weighting].min()


def test_a_choice_that_fits_one_make_alone_is_worth_nothing_cross_fitted() -> None:
    """Under either weighting one make is right and of the other everything is taken for car."""
    right, everything = counts([255, 0], [1, 0]), counts([255, 255], [1, 0])
    tally = Tally(2)
    tally.add("audi", np.stack([right, everything]))
    tally.add("bmw", np.stack([everything, right]))
    choice = tally.best(among=np.array([True, True]))
    assert choice.dice == pytest.approx((1 + 2 / 3) / 2)
    assert choice.dice_cross_fitted == pytest.approx(2 / 3)
    assert tally.best(among=np.array([False, True])).weighting == 1


# --- photos -----------------------------------------------------------------------------------------


def photo_of_a_red_disc(height: int, width: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2
    return np.where(disc[..., None], (255, 60, 60), (0, 200, 0)).astype(np.uint8)


@pytest.mark.parametrize("height, width", [(24, 34), (210, 140), (331, 477)])
def test_a_photo_of_any_size_is_cut_out_with_a_soft_edge(height: int, width: int) -> None:
    photo = photo_of_a_red_disc(height, width, min(height, width) // 3)
    ensemble = Ensemble([Member(Red(), 2, ANGLES["hflip"], 1.0)], 200, 300)
    cut = cut_out(ensemble, photo)
    assert cut.shape == (height, width, 4) and cut.dtype == np.uint8
    alpha = cut[..., 3]
    assert alpha[height // 2, width // 2] == 255 and alpha[0, 0] == 0
    assert (cut[alpha > 0][:, :3] == photo[alpha > 0]).all() and not cut[alpha == 0].any()
    assert ((alpha > 0) & (alpha < 255)).any()
    disc = photo[..., 0] == 255
    assert dice_of(alpha >= 128, disc) > 0.95


def dice_of(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_an_edge_is_as_steep_as_a_cell_is_large_and_a_doubt_does_not_shine_through() -> None:
    share = np.array([[0.0, 0.05, 0.5, 0.95, 1.0]], np.float32)
    assert opacity(share, side_px=1.0).tolist() == [[0, 13, 128, 242, 255]]
    assert opacity(share, side_px=4.0).tolist() == [[0, 0, 128, 255, 255]]


def test_a_photo_is_read_upright_and_what_is_none_is_a_problem(tmp_path: pathlib.Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera lay on its side
    Image.new("L", (30, 20), 7).save(tmp_path / "a.jpg", exif=turned.tobytes())
    assert read_photo(tmp_path / "a.jpg").shape == (30, 20, 3)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    with pytest.raises(Problem, match="b.jpg is no picture"):
        read_photo(tmp_path / "b.jpg")
    Image.fromarray(np.full((3, 4), 900, np.uint16)).save(tmp_path / "d.png")
    with pytest.raises(Problem, match="d.png has more than 8 bits a colour"):
        read_photo(tmp_path / "d.png")
    with pytest.raises(Problem, match="no .*c.jpg"):
        read_photo(tmp_path / "c.jpg")


def test_counts_of_a_batch_do_not_depend_on_the_device() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from pipeline.masks import on_device

    probability = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = [one.numpy() > 99 for one in probability]
    with ThreadPoolExecutor(2) as pool:
        found = count(probability, masks, pool)
    expected = on_device.histograms(probability, torch.from_numpy(np.stack(masks)))
    np.testing.assert_array_equal(found, expected.numpy())
