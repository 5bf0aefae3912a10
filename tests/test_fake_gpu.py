"""What can be proven of a GPU without one: with fake tensors, which have a shape and a device and no numbers."""
import copy
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory import fake_copy, full_size, peak_gib, stated
from pipeline import config
from pipeline.config import Settings
from pipeline.data.images import grid_shape
from pipeline.inference.edge import EdgeRefiner
from pipeline.inference.ensemble import Ensemble, Member, Predictions
from pipeline.inference.tta import TTA_SETS
from pipeline.model import optim
from pipeline.model.ema import Ema
from pipeline.model.factory import build
from pipeline.model.fold_norms import fold_batch_norms
from pipeline.model.losses import LossOf
from pipeline.model.refiner import build_refiner as plain_refiner
from pipeline.runtime.device import autocast
from pipeline.runtime.progress import Stopwatch
from pipeline.training.messages import memory_note
from pipeline.training.networks import build_loss, build_network, build_refiner, build_refiner_loss
from pipeline.training.state import TrainingState

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
CPU_CONFIGS = ("cpu", "cpu_best", "cpu_fast", "cpu_refined", "demo", "rooms")  # the others are meant for a GPU
GPU_CONFIGS = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.stem not in CPU_CONFIGS)
T4_GIB, GPU = 14.6, torch.device("cuda")


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GPU_CONFIGS)
def test_a_step_needs_the_memory_that_the_config_states(name: str) -> None:
    settings = config.load(CONFIGS / name)
    accumulate_of = {"train": settings.train.accumulate}
    if settings.refine:
        accumulate_of["refine"] = settings.refine.accumulate
    in_use = {section: gib for section, accumulate, gib in stated(settings) if accumulate == accumulate_of[section]}
    counted = {section: peak_gib(settings, section, accumulate) for section, accumulate in accumulate_of.items()}
    assert in_use == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("name", ["unet_640.yaml", "smp_resnet34_1280.yaml"])
def test_micro_batches_need_the_memory_that_the_config_states(name: str) -> None:
    settings = config.load(CONFIGS / name)
    rows = [row for row in stated(settings) if row[1] > settings.train.accumulate]
    assert len(rows) == len(settings.train.gpu_gib) - 1 > 0
    for section, accumulate, gib in rows:
        assert gib == pytest.approx(peak_gib(settings, section, accumulate), rel=0.1)


@pytest.mark.parametrize("name", ["kaggle.yaml", "kaggle_refined.yaml"])
def test_the_configs_for_kaggle_fit_on_a_t4_in_float16(name: str) -> None:
    settings = config.load(CONFIGS / name)
    for section in {section for section, _, _ in stated(settings)}:
        accumulate = getattr(settings, section).accumulate
        assert 0.1 < peak_gib(settings, section, accumulate, torch.float16) < T4_GIB - 1.5
        assert memory_note(section, getattr(settings, section), 1, T4_GIB) == []


def test_a_gpu_that_is_too_small_is_named_before_the_first_step() -> None:
    hyper = config.Train(batch_size=16, gpu_gib=[28, 14, 7])
    assert memory_note("train", hyper, 1, 79.0) == []
    assert "train.accumulate=2" in memory_note("train", hyper, 1, 23.6)[0]
    (note,) = memory_note("train", hyper, 1, T4_GIB)
    assert "30 GiB" in note and "15;" in note and "train.accumulate=4" in note
    assert "train.accumulate=2" in memory_note("train", hyper, 2, T4_GIB)[0]  # each of two GPUs takes half of a batch
    assert "larger" in memory_note("train", hyper, 1, 4.0)[0]
    assert memory_note("train", config.Train(accumulate=3, gpu_gib=[28, 14]), 1, 4.0) == []  # not counted


# --- devices ---------------------------------------------------------------------------------------------------------


class StaysOnGpu(TorchDispatchMode):
    """Fail where a tensor crosses to another device, or where the CPU waits for a number of the GPU."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        before = {each.device.type for each in args if isinstance(each, Tensor) and each.ndim}
        if name in self.WAITS and "cuda" in before:
            raise AssertionError(f"{name} waits for the GPU")
        if name in ("_to_copy", "copy_", "_pin_memory") and before:
            after = torch.device(kwargs.get("device") or next(iter(before))).type
            if before | {after} != {"cuda"}:
                raise AssertionError(f"{name} moves a tensor of {args[0].shape} between {before} and {after}")
        return func(*args, **kwargs)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """Fake tensors can be on a GPU that is not there; autocast must be told that there is one."""
    monkeypatch.setattr("pipeline.runtime.device.has_bf16", lambda device: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *ignored, **also: True)
    return FakeTensorMode(allow_non_fake_inputs=True)


def test_what_crosses_or_waits_is_noticed(fake: FakeTensorMode) -> None:
    with fake:
        on_cpu, on_gpu = torch.zeros(2, 3), torch.zeros(2, 3, device=GPU)
        for mistake in (lambda: on_cpu.to(GPU), lambda: on_gpu.cpu(), lambda: on_gpu.nonzero()):
            with pytest.raises(AssertionError, match="moves|waits"), StaysOnGpu():
                mistake()
        with StaysOnGpu():
            on_gpu.to(torch.bfloat16)


def fake_state(network: nn.Module, hyper: config.Train) -> TrainingState:
    optimizer = optim.build(hyper.optimizer, network, hyper.learning_rate, hyper.weight_decay, hyper.momentum)
    return TrainingState(
        network, network, Ema(network, hyper.ema_decay), optimizer, torch.amp.GradScaler("cuda", enabled=False),
        Stopwatch(hyper.batch_size), torch.zeros((), dtype=torch.float64, device=GPU), torch.tensor(-1, device=GPU),
        "val_dice",
    )  # fmt: skip


def fake_images(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8, device=GPU)


def small(settings: Settings) -> tuple[int, int, int, int]:
    """Return the shape of two images of a config."""
    return 2, *grid_shape(*full_size(settings), settings.data.scale), settings.data.channels


def take_step_but_backward(state: TrainingState, image_NHWC: Tensor, loss_of: LossOf, clip_norm: float) -> None:
    """Do what `take_step` does, but for the backward pass, which would ask for a real GPU."""
    with StaysOnGpu():
        with autocast(GPU):
            logits_NCHW = state.forward(image_NHWC)
        loss = loss_of(logits_NCHW, torch.zeros_like(image_NHWC[..., 0]))
        for parameter in state.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.ema.update(state.step)
        state.count_step(loss, norm)
    assert logits_NCHW.dtype in (torch.bfloat16, torch.float32) and loss.device.type == "cuda"


@pytest.mark.parametrize("name", GPU_CONFIGS)
def test_a_step_stays_on_the_gpu_and_never_waits_for_it(name: str, fake: FakeTensorMode) -> None:
    settings = config.load(CONFIGS / name)
    network = fake_copy(build_network(settings, pretrained=False), fake, GPU).train()
    with fake:
        state, loss_of = fake_state(network, settings.train), build_loss(settings, GPU)
        for _ in range(2):  # the first makes the state of the optimizer
            take_step_but_backward(state, fake_images(*small(settings)), loss_of, settings.train.clip_norm)


@pytest.mark.parametrize("name", [name for name in GPU_CONFIGS if config.load(CONFIGS / name).refine])
def test_a_step_of_a_refiner_stays_on_the_gpu_and_never_waits_for_it(name: str, fake: FakeTensorMode) -> None:
    hyper = config.load(CONFIGS / name).refine
    assert hyper is not None
    network = fake_copy(build_refiner(hyper), fake, GPU).train()
    with fake:
        state, tiles = fake_state(network, hyper), fake_images(4, hyper.tile_px, hyper.tile_px, 4)
        take_step_but_backward(state, tiles, build_refiner_loss(hyper, GPU), hyper.clip_norm)


@pytest.mark.parametrize("tta", sorted(TTA_SETS))
def test_a_prediction_stays_on_the_gpu_and_never_waits_for_it(tta: str, fake: FakeTensorMode) -> None:
    networks = [build(arch="unet", width=4, depth=2, patch=1).eval(), plain_refiner(4, 2, 1).eval()]
    for network in networks:
        fold_batch_norms(network)
    coarse, fine = (fake_copy(network, fake, GPU) for network in networks)
    refiner = EdgeRefiner(fine, scale=1, tile_px=64, margin_px=8, transforms=TTA_SETS[tta])
    member = Member(coarse, 2, TTA_SETS[tta], 1.0)
    ensemble = Ensemble([member], 128, 192)
    with fake, StaysOnGpu(), torch.no_grad():
        images, tiles = {2: fake_images(2, 64, 96, 3)}, fake_images(4, 64, 64, 4)
        prob_NCHW = member.predict(images)
        full_size_NHW = ensemble.round_mean(Predictions({2: prob_NCHW}, []))
        cores = refiner.predict_cores(tiles)
    assert full_size_NHW.shape == (2, 128, 192) and full_size_NHW.dtype == torch.uint8 and cores.shape == (4, 48, 48)
    assert {full_size_NHW.device.type, cores.device.type} == {"cuda"}


# --- torch.compile ---------------------------------------------------------------------------------------------------


class Graphs:
    """A backend of torch.compile that runs what was traced as it is, and counts it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    torch.compiler.reset()
    yield Graphs()
    torch.compiler.reset()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: build(arch="unet", width=4, depth=2, patch=2),
    "smp": lambda: build(arch="smp.Unet", encoder="resnet18", encoder_weights=None),
    "refiner": lambda: plain_refiner(4, 2, 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_one_graph_which_all_folds_share(name: str, graphs: Graphs) -> None:
    """More than eight graphs of one function, and torch.compile gives up and runs it uncompiled."""
    tile = torch.zeros(2, 64, 64, 4 if name == "refiner" else 3, dtype=torch.uint8)
    networks = [NETWORKS[name]() for _ in range(10)]
    for network in networks:
        network.compile(backend=graphs, fullgraph=True)
        network(tile).sum().backward()
    assert graphs.count == 1
    for network in networks:
        network.eval()
        with torch.no_grad():
            network(tile)
    assert graphs.count == 2


# --- float16 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_trains_in_float16_with_a_scaler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a T4. A gradient that overflows leaves the weights as they are, and the step after it moves them."""
    for module in ("runtime.device", "model.optim"):
        monkeypatch.setattr(f"pipeline.{module}.precision", lambda device: torch.float16)
    torch.manual_seed(0)
    network = build(arch="unet", width=4, depth=1, patch=1)
    state = TrainingState(
        network, network, Ema(network, 0.9), optim.build(name, network, 1e-2, 0.0, 0.9),
        torch.amp.GradScaler("cpu", init_scale=2.0**40), Stopwatch(2), torch.zeros((), dtype=torch.float64),
        torch.tensor(-1), "val_dice",
    )  # fmt: skip
    image_NHWC = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    target_NHW = (image_NHWC[..., 0] > 127) * torch.tensor(255, dtype=torch.uint8)
    loss_of = build_loss(Settings(), torch.device("cpu"))
    before = copy.deepcopy(network.state_dict())
    losses, scales = [], []
    for _ in range(60):
        loss, _ = state.take_step(image_NHWC, target_NHW, loss_of, clip_norm=1.0)
        losses.append(loss.item())
        scales.append(state.scaler.get_scale())
        if len(losses) == 1:
            weights = {key: value for key, value in before.items() if key.endswith("weight")}
            assert all(torch.equal(network.state_dict()[key], value) for key, value in weights.items())
    assert scales[0] == 2.0**39 and scales[-1] < 2.0**30 and scales[-1] == scales[-10]
    assert losses[-1] < 0.8 * losses[0] and all(parameter.isfinite().all() for parameter in network.parameters())
