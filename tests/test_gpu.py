"""What only a GPU can show. `make gpu-proof` runs it there; its rehearsal runs it on the CPU, where less can go wrong.

Synchronisations are errors (torch.cuda.set_sync_debug_mode) around all that should only queue work on the GPU. What
may wait stands outside: the first steps, which tune and compile, the loss scaler of float16, copies to the CPU.
"""
import contextlib
import hashlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import REHEARSE_GPU_TESTS, one_thread
from tiny_run import CONFIG, with_set
from torch import Tensor, nn

from pipeline import config
from pipeline.config import Settings
from pipeline.data.images import grid_shape
from pipeline.data.loader import prefetch_to_device
from pipeline.inference.edge import EdgeRefiner
from pipeline.inference.ensemble import Ensemble, Member
from pipeline.inference.evaluate import count_histograms, predict_ahead
from pipeline.inference.tta import TTA_SETS
from pipeline.masks import dice, on_device, rle
from pipeline.model import optim
from pipeline.model.refiner import build_refiner
from pipeline.predict import bounds_and_masks, bounds_and_masks_on_device
from pipeline.runtime.device import check_compiler, precision
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.problem import Problem
from pipeline.training.networks import build_loss, build_network
from pipeline.training.state import TrainingState, create_state

pytestmark = pytest.mark.gpu

CPU, DEVICE = torch.device("cpu"), torch.device("cpu" if REHEARSE_GPU_TESTS else "cuda")
ROOT = pathlib.Path(__file__).parent.parent
BATCH = 4
HEIGHT, WIDTH, STEPS = (32, 48, 20) if DEVICE.type == "cpu" else (96, 144, 40)  # float16 is slow on a CPU


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """On a CPU, networks this small are no work for two threads."""
    with one_thread() if DEVICE.type == "cpu" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Raise RuntimeError where the CPU waits for the GPU."""
    if DEVICE.type == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def use_precision(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr("pipeline.runtime.device.precision", lambda device: dtype)


def tiny(**train: object) -> Settings:
    overrides = ["model.width=8", "model.depth=2", f"train.batch_size={BATCH}"]
    return config.load(ROOT / "configs/unet_seed.yaml", overrides + [f"train.{k}={v}" for k, v in train.items()])


def make_state(settings: Settings) -> TrainingState:
    dist = ProcessGroup(rank=0, world_size=1, device=DEVICE)
    state = create_state(lambda: build_network(settings, pretrained=False), settings.train, dist)
    state.network.train()
    return state


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and coverages of discs, in pinned memory as a loader's are."""
    generator = torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    for _ in range(count):
        centre = torch.rand(BATCH, 2, generator=generator) * torch.tensor([HEIGHT, WIDTH])
        distance = ((y - centre[:, :1, None]) ** 2 + (x - centre[:, 1:, None]) ** 2).sqrt()
        target = (255 * (HEIGHT / 4 - distance).clamp(0, 1)).to(torch.uint8)
        noise = torch.randint(0, 100, (BATCH, HEIGHT, WIDTH, 3), generator=generator)
        image = (noise + 100 * (target > 127)[..., None]).to(torch.uint8)
        yield (image.pin_memory(), target.pin_memory()) if DEVICE.type == "cuda" else (image, target)


def take_steps(state: TrainingState, settings: Settings, count: int, first_may_wait: int) -> list[Tensor]:
    """Take steps as `training.loop` does, of which the first ones may wait; return the losses."""
    loss_of, hyper, losses = build_loss(settings, DEVICE), settings.train, []
    with contextlib.ExitStack() as stack:
        for number, (image, target) in enumerate(prefetch_to_device(batches(count), DEVICE)):
            if number == first_may_wait:
                stack.enter_context(no_waiting())
            optim.set_learning_rate(state.optimizer, hyper.learning_rate * (1 - number / count))
            loss, norm = state.take_step(image, target, loss_of, hyper.clip_norm, hyper.accumulate)
            state.ema.update(state.step)
            state.count_step(loss, norm)
            losses.append(loss)
    return losses


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", optim.OPTIMIZERS)
def test_a_training_step_never_waits_for_the_gpu(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_precision(monkeypatch, torch.bfloat16)
    settings = tiny(optimizer=optimizer, compile="false", accumulate=2)
    state = make_state(settings)
    losses = take_steps(state, settings, count=6, first_may_wait=2)
    assert int(state.non_finite_step) == -1 and all(loss.isfinite() for loss in losses)


def test_a_compiled_step_is_one_graph_and_never_waits_for_the_gpu() -> None:
    try:
        check_compiler(DEVICE, "train.compile")
    except Problem as problem:
        pytest.fail(str(problem))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    settings = tiny(optimizer="muon", compile="true")
    state = make_state(settings)
    waits = precision(DEVICE) is torch.float16  # its scaler waits; and a T4 compiles nothing in bf16
    losses = take_steps(state, settings, count=6, first_may_wait=6 if waits else 3)
    assert all(loss.isfinite() for loss in losses)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("optimizer", optim.OPTIMIZERS)
def test_float16_with_its_scaler_learns(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a T4. The scaler waits for the GPU in each step, to see whether a gradient is infinite."""
    use_precision(monkeypatch, torch.float16)
    settings = tiny(optimizer=optimizer, compile="false", learning_rate=0.1 if optimizer == "sgd" else 0.01)
    state = make_state(settings)
    assert state.scaler.is_enabled()
    losses = [loss.item() for loss in take_steps(state, settings, count=STEPS, first_may_wait=STEPS)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert int(state.non_finite_step) == -1 and all(value.isfinite().all() for value in state.network.parameters())
    assert 0 < state.scaler.get_scale() < 2.0**24


def test_deterministic_training_gives_the_same_bytes_twice(demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    common = ["--config", "tiny.yaml", "--data", str(demo_folder), *with_set("train.epochs=1")]
    digests = []
    for name in ("one", "two"):
        for stage in (["folds"], ["train", "--deterministic"]):
            command = [sys.executable, "-m", "pipeline", *stage, *common, "--run", name]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert ended.returncode == 0, ended.stderr
        weights = (tmp_path / f"runs/{name}/fold0/best.pt").read_bytes()
        digests.append(hashlib.sha256(weights).hexdigest())
    assert digests[0] == digests[1]


# --- prediction ------------------------------------------------------------------------------------------------------


def make_ensemble(device: torch.device, refined: bool = False) -> Ensemble:
    """Return an ensemble whose weights are the same on every device."""
    torch.manual_seed(0)
    network, second = build_network(tiny(), pretrained=False), build_refiner(8, 2, 1)
    flips = TTA_SETS["hflip"]
    refiner = EdgeRefiner(second.to(device).eval(), 2, tile_px=32, margin_px=4, transforms=flips) if refined else None
    member = Member(network.to(device).eval(), 4, flips, 1.0, refiner)
    return Ensemble([member], 4 * HEIGHT, 4 * WIDTH)


def images_of(ensemble: Ensemble, count: int) -> list[dict[int, Tensor]]:
    """Return batches of smooth images at the scales of an ensemble."""
    generator, image_batches = torch.manual_seed(1), []
    for _ in range(count):
        small = torch.rand(BATCH, 3, 9, 13, generator=generator)
        images = {}
        for scale in ensemble.scales:
            shape = grid_shape(ensemble.height, ensemble.width, scale)
            image_NCHW = nn.functional.interpolate(small, shape, mode="bicubic", align_corners=False).clamp(0, 1)
            image = (255 * image_NCHW).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            images[scale] = image.pin_memory() if DEVICE.type == "cuda" else image
        image_batches.append(images)
    return image_batches


def test_a_prediction_only_queues_work_on_the_gpu() -> None:
    ensemble = make_ensemble(DEVICE)
    images = images_of(ensemble, 3)
    ensemble(images[0])  # what is done only once may wait
    with no_waiting():
        predicted = [ensemble(each) for each in images]
    assert all(each.shape == (BATCH, ensemble.height, ensemble.width) for each in predicted)


def test_batches_are_predicted_ahead_and_finished_in_order() -> None:
    ensemble = make_ensemble(DEVICE)
    images = images_of(ensemble, 4)
    expected = [ensemble(each).cpu() for each in images]

    finished = predict_ahead(ensemble, images, lambda batch, prob_u8: prob_u8.cpu())
    for mine, theirs in zip(finished, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, None], ids=["float32", "as it is"])
def test_a_gpu_predicts_what_the_cpu_predicts(
    refined: bool, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype is not None:
        use_precision(monkeypatch, dtype)
    predicted = []
    for device in (CPU, DEVICE):
        ensemble = make_ensemble(device, refined)
        predicted.append(ensemble(images_of(ensemble, 1)[0]).cpu().int())
    difference = (predicted[0] - predicted[1]).abs()
    assert predicted[0].float().std() > 1  # there is something to compare
    assert (difference <= 1).float().mean() > (0.99 if dtype is torch.float32 else 0.9)


# --- masks -----------------------------------------------------------------------------------------------------------


def test_run_lengths_and_histograms_of_the_gpu_are_those_of_the_cpu() -> None:
    generator = torch.manual_seed(0)
    prob_u8 = torch.randint(0, 256, (3, 200, 301), dtype=torch.uint8, generator=generator)
    mask = torch.rand(3, 200, 301, generator=generator) < 0.4
    bounds = on_device.bounds(mask.to(DEVICE))
    assert [rle.text(each) for each in bounds] == [rle.encode(each) for each in mask.numpy()]
    expected = np.stack([dice.histogram(*pair) for pair in zip(prob_u8.numpy(), mask.numpy())])
    assert np.array_equal(on_device.histograms(prob_u8.to(DEVICE), mask.to(DEVICE)).cpu().numpy(), expected)
    with ThreadPoolExecutor() as pool:
        counted = count_histograms(prob_u8.to(DEVICE), list(mask.numpy()), pool)
    assert counted.dtype == np.int32 and np.array_equal(counted, expected)


@pytest.mark.parametrize("verify", [[True] * 3, [True, False, True], [False] * 3])
def test_masks_are_read_back_with_their_run_lengths(verify: list[bool]) -> None:
    prob_u8 = torch.randint(0, 256, (5, 60, 91), dtype=torch.uint8, generator=torch.manual_seed(0))
    expected = list(bounds_and_masks(prob_u8, 128, verify))
    read = list(bounds_and_masks(prob_u8.to(DEVICE), 128, verify))
    on_its_device = list(bounds_and_masks_on_device((prob_u8.to(DEVICE) >= 128)[:3], verify))
    for rows in (read, on_its_device):
        for (bounds, mask), (other_bounds, other_mask) in zip(rows, expected, strict=True):
            assert np.array_equal(bounds, other_bounds) and (mask is None) == (other_mask is None)
            assert mask is None or np.array_equal(mask, other_mask)


def test_a_mask_at_full_size_has_the_same_run_lengths_on_both() -> None:
    y, x = torch.meshgrid(torch.arange(1280), torch.arange(1918), indexing="ij")
    mask = ((y - 700) ** 2 + (x - 900) ** 2 < 400**2) ^ (x % 97 == 0)
    assert [rle.text(each) for each in on_device.bounds(mask[None].to(DEVICE))] == [rle.encode(mask.numpy())]


def test_the_precision_is_that_of_the_card() -> None:
    wanted = {torch.bfloat16, torch.float16} if DEVICE.type == "cuda" else {torch.bfloat16, torch.float32}
    assert precision(DEVICE) in wanted
