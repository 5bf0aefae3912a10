"""TTA transforms that are inverted, means that are rounded once, weights of a blend, objects that are cut out."""
import contextlib
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from pipeline.blend import MAX_WEIGHTINGS, Tally, blend_histograms, list_weightings
from pipeline.config import Predict
from pipeline.cutout import compute_alpha, cut_out
from pipeline.data.image_files import read_image
from pipeline.data.images import upsample_u8
from pipeline.inference.edge import EdgeRefiner
from pipeline.inference.ensemble import Ensemble, Member
from pipeline.inference.probability import to_u8_on_device, upsample_on_device
from pipeline.inference.evaluate import count_histograms, evaluate_histograms, predict_ahead
from pipeline.inference.loading import batch_that_fits
from pipeline.inference.tta import TTA_SETS, TtaTransform
from pipeline.masks import dice
from pipeline.runtime.problem import Problem

HEIGHT, WIDTH = 24, 34  # at 1/4: 6 x 9 cells, the last column hanging over


class Red(nn.Module):
    """Returns the red of a pixel, 0 to 255, as the probability; an ensemble can use it as a `Segmenter`."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, image_NHWC: Tensor) -> Tensor:
        prob_NHW = image_NHWC[..., 0].float() / 255 * self.factor
        return prob_NHW.clamp(1e-7, 1 - 1e-7).logit()[:, None]


def red_images(prob_NHW: Tensor) -> Tensor:
    return (prob_NHW * 255).round().to(torch.uint8)[..., None].repeat(1, 1, 1, 3)


def smooth(rows: int = 6, columns: int = 9) -> Tensor:
    """Probabilities (2, rows, columns) without steep edges, different at the left and at the right."""
    y, x = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij")
    return torch.stack([0.2 + 0.6 * x, 0.1 + 0.5 * x * y])


# --- TTA transforms ---------------------------------------------------------------------------------


def test_each_value_of_predict_tta_has_its_transforms() -> None:
    assert {"none", Predict().tta} <= set(TTA_SETS)
    assert all(transforms[0] == TtaTransform() for transforms in TTA_SETS.values())


@pytest.mark.parametrize("transform", sorted({each for one in TTA_SETS.values() for each in one}, key=str), ids=str)
def test_a_transform_is_inverted_on_the_grid_of_the_images(transform: TtaTransform) -> None:
    prob_NHW = smooth(60, 90)
    transformed = transform.apply(red_images(prob_NHW))
    inverted_NHW = transform.invert(transformed[..., 0].float() / 255, 60, 90)
    assert inverted_NHW.shape == prob_NHW.shape
    inside = (slice(None), slice(6, -6), slice(6, -6))  # what a shift has moved out comes back as its edge
    assert (inverted_NHW - prob_NHW)[inside].abs().max() < 0.01
    if transform != TtaTransform():
        assert transformed.shape != (2, 60, 90, 3) or (transformed[..., 0] / 255 - prob_NHW).abs().max() > 0.02


def test_a_shift_moves_down_and_to_the_right() -> None:
    image_NHWC = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4, 1)
    shifted_NHWC = TtaTransform(shift=(1, 2)).apply(image_NHWC)
    assert shifted_NHWC[0, :, :, 0].tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [4, 4, 4, 5]]


# --- means ------------------------------------------------------------------------------------------


def test_a_mean_is_rounded_once_and_not_member_by_member() -> None:
    """The mean of 100, 99.4 and 99.4 is 99.6 and becomes 100; members that are rounded first would give 99."""
    members = [Member(Red(factor), 4, TTA_SETS["none"], 1 / 3) for factor in (1.0, 0.994, 0.994)]
    image = red_images(torch.full((1, 6, 9), 100.0) / 255)
    assert Ensemble(members, HEIGHT, WIDTH)({4: image}).unique().tolist() == [100]
    weighted = [Member(Red(factor), 4, TTA_SETS["none"], weight) for factor, weight in ((1.0, 0.9), (0.5, 0.1))]
    assert Ensemble(weighted, HEIGHT, WIDTH)({4: image}).unique().tolist() == [95]


def test_members_at_several_scales_meet_at_full_size() -> None:
    quarter, half = torch.full((2, 6, 9), 0.4), torch.full((2, 12, 17), 0.8)
    members = [Member(Red(), 4, TTA_SETS["hflip"], 0.25), Member(Red(), 2, TTA_SETS["none"], 0.75)]
    ensemble = Ensemble(members, HEIGHT, WIDTH)
    assert ensemble.scales == (2, 4)
    result = ensemble({4: red_images(quarter), 2: red_images(half)})
    assert result.shape == (2, HEIGHT, WIDTH) and result.dtype == torch.uint8
    assert result.unique().tolist() == [round(255 * (0.25 * 0.4 + 0.75 * 0.8))]


def test_weights_that_do_not_sum_to_1_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1.5"):
        Ensemble([Member(Red(), 4, TTA_SETS["none"], 0.75)] * 2, HEIGHT, WIDTH)


def test_a_mean_of_one_network_with_itself_or_with_its_mirror_is_its_prediction() -> None:
    image_NHWC, grids = red_images(smooth()), (smooth() * 255).round() / 255
    twice = [Member(Red(), 4, TTA_SETS["none"], 0.5)] * 2
    predicted = Ensemble(twice, HEIGHT, WIDTH)({4: image_NHWC})
    expected = [upsample_u8(grid.numpy(), 4, HEIGHT, WIDTH) for grid in grids]
    assert (predicted.int() - torch.from_numpy(np.stack(expected)).int()).abs().max() <= 1
    mirrored = Ensemble([Member(Red(), 4, TTA_SETS["hflip"], 1.0)], HEIGHT, WIDTH)({4: image_NHWC})
    assert (mirrored.int() - predicted.int()).abs().max() <= 1


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_upsampling_on_a_device_agrees_with_the_cpu(scale: int) -> None:
    generator = torch.Generator().manual_seed(0)
    prob_NHW = torch.rand(2, 6, 9, generator=generator)
    height, width = 6 * scale - 1, 9 * scale - 2
    on_device = to_u8_on_device(upsample_on_device(prob_NHW, scale, height, width))
    expected = np.stack([upsample_u8(prob.numpy(), scale, height, width) for prob in prob_NHW])
    assert np.abs(on_device.numpy().astype(int) - expected).max() <= 1


def test_finished_predictions_come_in_their_order() -> None:
    results = predict_ahead(lambda n: torch.tensor(n), range(5), lambda n, predicted: (n, int(predicted)))
    assert list(results) == [(n, n) for n in range(5)]


class OnGpu:
    """Represents a prediction on a GPU, and counts the streams that it waits for."""

    def __init__(self, number: int):
        self.number, self.device = number, torch.device("cuda")

    def record_stream(self, stream: object) -> None:
        pass


def test_a_gpu_finishes_all_batches_on_one_side_stream_and_each_behind_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each stream has memory of its own: a new one a batch held up to 31 GB in validation, by an estimate."""
    streams, events = [], []

    class Stream:
        def __init__(self, device: torch.device):
            streams.append(self)

        def wait_event(self, event: object) -> None:
            pass

        def synchronize(self) -> None:
            pass

    def predict(number: int) -> tuple[OnGpu]:
        events.append(f"predict {number}")
        return (OnGpu(number),)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: None))
    finished = [events.append(f"finish {n}") for n in predict_ahead(predict, range(3), lambda n, predicted: n)]
    assert len(streams) == 1 and len(finished) == 3
    assert events == ["predict 0", "predict 1", "finish 0", "predict 2", "finish 1", "finish 2"]


def test_histograms_are_those_of_each_image() -> None:
    generator = np.random.default_rng(0)
    probability = generator.integers(0, 256, (5, 7, 9), dtype=np.uint8)
    masks = {str(n): generator.random((7, 9)) < 0.3 for n in range(5)}
    batches = torch.from_numpy(probability).split(2)  # 2, 2 and 1: the last batch is shorter
    histograms = evaluate_histograms(lambda batch: batch, batches, list(masks), masks.__getitem__)
    expected = [dice.histogram(values, mask) for values, mask in zip(probability, masks.values())]
    np.testing.assert_array_equal(histograms, np.stack(expected))


def test_a_process_without_an_image_has_no_histogram_and_disturbs_no_other() -> None:
    nothing = evaluate_histograms(lambda batch: batch, [], [], {}.__getitem__)
    assert nothing.shape == (0, 2, 256) and nothing.dtype == np.int32
    assert np.concatenate([nothing, np.ones((1, 2, 256), np.int32)]).dtype == np.int32


def test_the_batch_is_lowered_to_what_fits() -> None:
    class Small(Red):
        def forward(self, image_NHWC: Tensor) -> Tensor:
            if len(image_NHWC) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(image_NHWC)

    ensemble = Ensemble([Member(Small(), 4, TTA_SETS["hflip"], 1.0)], HEIGHT, WIDTH)
    assert [batch_that_fits(ensemble, asked) for asked in (1, 3, 4, 8)] == [1, 3, 3, 3]

    class Smallest(Red):
        def forward(self, image_NHWC: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(Problem, match="a single image"):
        batch_that_fits(Ensemble([Member(Smallest(), 4, TTA_SETS["none"], 1.0)], HEIGHT, WIDTH), 8)


def test_one_batch_of_tiles_is_tried_however_many_are_unsure() -> None:
    class Unsure(Red):
        def forward(self, image_NHWC: Tensor) -> Tensor:
            return super().forward(image_NHWC) * 0

    class Refined(Unsure):
        def forward(self, image_NHWC: Tensor) -> Tensor:
            seen.append(tuple(image_NHWC.shape))
            if len(seen) > fitting:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(image_NHWC)

    refiner = EdgeRefiner(Refined(), scale=2, tile_px=256, margin_px=120, transforms=TTA_SETS["hflip"])
    ensemble = Ensemble([Member(Unsure(), 4, TTA_SETS["none"], 1.0, refiner)], HEIGHT, WIDTH)
    seen: list[tuple[int, ...]] = []
    fitting = 1000
    assert refiner.tiles_at_once(ensemble.device) == 2
    assert batch_that_fits(ensemble, 8) == 8
    assert seen == 2 * [(2, 256, 256, 4)]  # one batch by each transform
    ensemble({2: red_images(torch.zeros(8, 12, 17)), 4: red_images(torch.zeros(8, 6, 9))})
    assert len(seen) > 2 + 2 * 2  # more of them where all is unsure
    seen, fitting = [], 0
    with pytest.raises(Problem, match="a single image"):
        batch_that_fits(ensemble, 8)


@pytest.mark.gpu
def test_a_gpu_predicts_what_the_cpu_predicts_and_in_order() -> None:
    images = [red_images(smooth() * factor) for factor in (1.0, 0.8, 0.6, 0.4)]
    predicted = []
    for device in ("cpu", "cuda"):
        ensemble = Ensemble([Member(Red().to(device), 4, TTA_SETS["hflip+scales"], 1.0)], HEIGHT, WIDTH)
        finished = predict_ahead(lambda image: ensemble({4: image}), images, lambda image, prob_u8: prob_u8.cpu())
        predicted.append(torch.stack(list(finished)).int())
    assert (predicted[0] - predicted[1]).abs().max() <= 1
    assert predicted[0].float().mean(dim=(1, 2, 3)).diff().max() < 0  # darker from batch to batch


# --- weights of runs --------------------------------------------------------------------------------


@given(st.integers(2, 9))
def test_the_weightings_hold_every_single_run_and_equal_weights(runs: int) -> None:
    weightings = list_weightings(runs)
    assert len(weightings) <= MAX_WEIGHTINGS + 1
    assert np.allclose(weightings.sum(axis=1), 1) and weightings.min() >= 0
    assert (weightings == 1).any(axis=1).sum() == runs
    assert np.isclose(weightings, 1 / runs).all(axis=1).sum() == 1
    assert len(np.unique(weightings, axis=0)) == len(weightings)


def test_blended_histograms_are_those_of_every_pixel() -> None:
    generator = np.random.default_rng(0)
    edge = generator.random((3, 20, 30), dtype=np.float32) * 1.2 - 0.1
    sure = generator.choice(np.array([-0.01, 0, 0.3 / 255, 1, 1.02], np.float32), size=(1, 20, 30))
    prob_RHW = np.where(generator.random((20, 30)) < 0.7, sure, edge).astype(np.float32)
    mask, weightings = generator.random((20, 30)) < 0.4, list_weightings(3)
    for histogram, weights in zip(blend_histograms(prob_RHW, mask, weightings), weightings, strict=True):
        mean = np.tensordot(weights, prob_RHW, axes=1).clip(0, 1)
        expected = dice.histogram(np.rint(255 * mean).astype(np.uint8), mask)
        assert histogram.sum() == expected.sum()
        assert np.abs(histogram - expected).sum() <= 4  # float32 may round differently


def histogram_of(probability: list[int], mask: list[int]) -> np.ndarray:
    return dice.histogram(np.array(probability, np.uint8), np.array(mask, bool))


def test_two_runs_with_errors_in_different_places_are_better_in_their_mean() -> None:
    mask = [1, 1, 0, 0]
    one, other = np.array([250, 90, 100, 10]), np.array([90, 250, 10, 100])  # each misses one pixel and adds one
    weightings = list_weightings(2)
    tally = Tally(len(weightings))
    for make in ("audi", "bmw"):
        blended = [np.rint(weighting @ np.stack([one, other])).astype(int).tolist() for weighting in weightings]
        tally.add(make, np.stack([histogram_of(probability, mask) for probability in blended]))
    blend = tally.choose(np.ones(len(weightings), bool))
    single = tally.choose((weightings == 1).any(axis=1))
    assert blend.dice == blend.dice_cross_fitted == 1
    assert single.dice == single.dice_cross_fitted == pytest.approx(0.8)  # both pixels of the object and one too many
    assert 0 < weightings[blend.weighting].min()


def test_a_choice_that_fits_one_make_alone_is_worth_nothing_cross_fitted() -> None:
    """Either weighting is right for one make, and predicts car everywhere for the other."""
    right, everything = histogram_of([255, 0], [1, 0]), histogram_of([255, 255], [1, 0])
    tally = Tally(2)
    tally.add("audi", np.stack([right, everything]))
    tally.add("bmw", np.stack([everything, right]))
    choice = tally.choose(np.array([True, True]))
    assert choice.dice == pytest.approx((1 + 2 / 3) / 2)
    assert choice.dice_cross_fitted == pytest.approx(2 / 3)
    assert tally.choose(np.array([False, True])).weighting == 1


# --- cutout -----------------------------------------------------------------------------------------


def draw_red_disc(height: int, width: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2
    return np.where(disc[..., None], (255, 60, 60), (0, 200, 0)).astype(np.uint8)


@pytest.mark.parametrize("height, width", [(24, 34), (210, 140), (331, 477)])
def test_an_image_of_any_size_is_cut_out_with_a_soft_edge(height: int, width: int) -> None:
    image = draw_red_disc(height, width, min(height, width) // 3)
    ensemble = Ensemble([Member(Red(), 2, TTA_SETS["hflip"], 1.0)], 200, 300)
    rgba = cut_out(ensemble, image)
    assert rgba.shape == (height, width, 4) and rgba.dtype == np.uint8
    alpha = rgba[..., 3]
    assert alpha[height // 2, width // 2] == 255 and alpha[0, 0] == 0
    assert (rgba[alpha > 0][:, :3] == image[alpha > 0]).all() and not rgba[alpha == 0].any()
    assert ((alpha > 0) & (alpha < 255)).any()
    disc = image[..., 0] == 255
    assert dice_of(alpha >= 128, disc) > 0.95


def dice_of(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_an_edge_is_as_steep_as_a_cell_is_large_and_a_doubt_does_not_shine_through() -> None:
    prob = np.array([[0.0, 0.05, 0.5, 0.95, 1.0]], np.float32)
    assert compute_alpha(prob, side_px=1.0).tolist() == [[0, 13, 128, 242, 255]]
    assert compute_alpha(prob, side_px=4.0).tolist() == [[0, 0, 128, 255, 255]]


def test_an_image_is_read_upright_and_a_file_that_is_none_is_a_problem(tmp_path: pathlib.Path) -> None:
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera lay on its side
    Image.new("L", (30, 20), 7).save(tmp_path / "a.jpg", exif=rotated.tobytes())
    assert read_image(tmp_path / "a.jpg", 1).shape == (30, 20, 3)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    with pytest.raises(Problem, match="b.jpg is not an image"):
        read_image(tmp_path / "b.jpg", 1)
    Image.fromarray(np.full((3, 4), 900, np.uint16)).save(tmp_path / "d.png")
    with pytest.raises(Problem, match="d.png has 16 bits a colour"):
        read_image(tmp_path / "d.png", 1)
    with pytest.raises(Problem, match="no .*c.jpg"):
        read_image(tmp_path / "c.jpg", 1)


def test_counts_of_a_batch_do_not_depend_on_the_device() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from pipeline.masks import on_device

    probability = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = [values.numpy() > 99 for values in probability]
    with ThreadPoolExecutor(2) as pool:
        histograms = count_histograms(probability, masks, pool)
    expected = on_device.histograms(probability, torch.from_numpy(np.stack(masks)))
    np.testing.assert_array_equal(histograms, expected.numpy())
