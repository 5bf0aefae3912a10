"""Several processes train as one does, a batch in micro-batches as a whole one, and with recomputed activations."""
import copy
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.__main__ import main
from pipeline.data.loader import BatchSchedule
from pipeline.model import checkpoint
from pipeline.model.ema import Ema
from pipeline.model.factory import build
from pipeline.model.losses import mask_loss
from pipeline.model.sync_batchnorm import SyncedBatchNorm2d, sync_batch_norm
from pipeline.model.unet import UNet
from pipeline.runtime.distributed import process_group
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import Stopwatch
from pipeline.training.state import TrainingState

REPOSITORY = pathlib.Path(__file__).parent.parent
CONFIG = """
data: {scale: 8, folds: 2, workers: 0}
model: {width: 8, depth: 2, patch: 2}
train: {epochs: 2, batch_size: 8, learning_rate: 3e-3, ema_decay: 0.9}
"""


@pytest.fixture
def group_of_one(tmp_path: pathlib.Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def batch_of(count: int) -> tuple[Tensor, Tensor]:
    """Images uint8 (count, 16, 24, 3) and coverage 0 to 1 (count, 16, 24)."""
    generator = torch.Generator().manual_seed(0)
    image_NHWC = torch.randint(0, 256, (count, 16, 24, 3), dtype=torch.uint8, generator=generator)
    return image_NHWC, torch.rand(count, 16, 24, generator=generator)


# --- several processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_split_each_batch_of_one_schedule(world_size: int) -> None:
    alone = list(BatchSchedule(images=20, batch_size=6, epochs=2, seed=0))
    by_rank = [list(BatchSchedule(20, 6, 2, 0, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert [sum(slices, []) for slices in zip(*by_rank)] == alone
    assert all(len(batch) == 6 // world_size for batches in by_rank for batch in batches)


def test_a_step_knows_its_batch() -> None:
    schedule = BatchSchedule(images=20, batch_size=6, epochs=2, seed=0, rank=1, world_size=2)
    whole = list(BatchSchedule(images=20, batch_size=6, epochs=2, seed=0))
    assert [schedule.batch(step) for step in range(6)] == whole


def test_synchronised_batch_norm_is_batch_norm(group_of_one: None) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3))
    nn.init.uniform_(plain[0].weight)
    synced = sync_batch_norm(copy.deepcopy(plain), compiled=False)
    assert type(synced[0]) is SyncedBatchNorm2d
    x = torch.randn(4, 3, 5, 6) * 7 + 2
    for network in (plain, synced):
        leaf = x.clone().requires_grad_()
        network(leaf).cos().sum().backward()
        network.x_grad = leaf.grad
    assert torch.allclose(plain.x_grad, synced.x_grad, atol=1e-5)
    assert torch.allclose(plain[0].weight.grad, synced[0].weight.grad, atol=1e-4)
    for key, value in plain[0].state_dict().items():
        if key != "num_batches_tracked":
            assert torch.allclose(value, synced[0].state_dict()[key], atol=1e-6)
    assert torch.allclose(plain.eval()(x), synced.eval()(x), atol=1e-5)


def test_batch_norm_of_timm_keeps_its_activation(group_of_one: None) -> None:
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    plain = nn.Sequential(BatchNormAct2d(3, act_layer=nn.SiLU))
    synced = sync_batch_norm(copy.deepcopy(plain), compiled=False)
    x = torch.randn(4, 3, 5, 6)
    assert torch.allclose(plain(x), synced(x), atol=1e-5)
    assert torch.allclose(plain.eval()(x), synced.eval()(x), atol=1e-5)
    assert plain.state_dict().keys() == synced.state_dict().keys()


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.BatchNorm2d(3, affine=False)])
def test_batch_norm_of_another_kind_is_a_problem(group_of_one: None, norm: nn.Module) -> None:
    with pytest.raises(Problem, match=f"{type(norm).__name__}.*GPUS=1"):
        sync_batch_norm(nn.Sequential(norm), compiled=False)


def train_with_another(rank: int, folder: str, compiled: bool) -> None:
    """Take three steps on half of each batch, and save the losses and the weights."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    network = sync_batch_norm(unet_of_two_levels(), compiled)
    if compiled:
        network.compile(backend="aot_eager", fullgraph=True)  # fails where a graph breaks
    network = DistributedDataParallel(network, bucket_cap_mb=1)  # several buckets, at which torch cuts a graph
    trained = take_three_steps(network, slice(2 * rank, 2 * rank + 2))
    if rank == 0:
        torch.save(trained, f"{folder}/trained.pt")
    dist.destroy_process_group()


def unet_of_two_levels() -> nn.Module:
    torch.manual_seed(0)
    return UNet(width=32, depth=2)


def take_three_steps(network: nn.Module, part: slice) -> dict[str, Tensor]:
    image_NCHW = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        loss = (network(image_NCHW[part]) - image_NCHW[part, :1]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name.removeprefix("module."): value for name, value in network.state_dict().items()}


@pytest.mark.parametrize("compiled", [False, True])
def test_two_processes_train_as_one_compiled_or_not(tmp_path: pathlib.Path, compiled: bool) -> None:
    torch.multiprocessing.spawn(train_with_another, (str(tmp_path), compiled), nprocs=2)
    trained = torch.load(tmp_path / "trained.pt", weights_only=True)
    alone = take_three_steps(unet_of_two_levels(), slice(0, 4))
    start = unet_of_two_levels().state_dict()
    for name, value in alone.items():
        if "num_batches" not in name:
            difference = (trained[name] - value).abs().max().item()
            assert difference < 1e-3, f"{name}: {difference}"
    assert not torch.allclose(start["stem.0.weight"], alone["stem.0.weight"], atol=1e-2)


def test_a_process_alone_needs_no_group() -> None:
    with process_group() as dist:
        assert dist.is_main and dist.world_size == 1
        assert dist.any_rank([True, False]) == [True, False] and dist.gather("x") == ["x"]


@pytest.fixture
def workplace(demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with a config and folds for the runs one, micro and two."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.yaml").write_text(CONFIG)
    for run in ("one", "micro", "two"):
        assert main(["folds", "--config", "two.yaml", "--data", str(demo_folder), "--run", run]) == 0
    return tmp_path


def start(folder: pathlib.Path, workplace: pathlib.Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipeline", *arguments, "--config", "two.yaml", "--data", str(folder)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # without bf16, whose rounding would hide what is compared
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=workplace, env=environment, stdout=pipe, stderr=pipe, text=True)


def pipeline(folder: pathlib.Path, workplace: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    process = start(folder, workplace, *arguments)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def losses(workplace: pathlib.Path, run: str, log: str = "log.jsonl") -> list[tuple[float, float]]:
    lines = (workplace / "runs" / run / "fold0" / log).read_text().splitlines()
    return [(row["train_loss"], row["val_dice"]) for row in map(json.loads, lines)]


def test_two_processes_have_the_loss_curve_of_one_with_the_same_batch(
    demo_folder: pathlib.Path, workplace: pathlib.Path
) -> None:
    for run, arguments in {"one": (), "micro": ("--set", "train.accumulate=2"), "two": ("--gpus", "2")}.items():
        done = pipeline(demo_folder, workplace, "train", "--run", run, *arguments)
        assert done.returncode == 0, done.stderr
    one, micro, two = (losses(workplace, run) for run in ("one", "micro", "two"))
    for (loss, score), (loss_of_two, score_of_two) in zip(one, two, strict=True):
        assert loss_of_two == pytest.approx(loss, rel=1e-3)
        assert score_of_two == pytest.approx(score, rel=1e-2)  # of masks that a rounding may turn at one half
    # A tolerance that can fail: batch norm over each half alone, as without synchronisation, is farther off.
    assert [loss for loss, _ in micro] != [pytest.approx(loss, rel=1e-3) for loss, _ in one]


def test_two_processes_refine_with_the_loss_curve_of_one(demo_folder: pathlib.Path, workplace: pathlib.Path) -> None:
    assert pipeline(demo_folder, workplace, "train", "--run", "one", "--set", "train.epochs=2").returncode == 0
    shutil.copytree("runs/one", "runs/two", dirs_exist_ok=True)
    of_tiles = ("epochs=2", "batch_size=8", "tiles_per_image=2", "tile_px=64", "margin_px=8", "scale=2", "width=8")
    settings = ("train.epochs=2", "refine.short_epochs=1", *(f"refine.{setting}" for setting in of_tiles))
    overrides = [word for setting in settings for word in ("--set", setting)]
    for run, arguments in {"one": (), "two": ("--gpus", "2")}.items():
        done = pipeline(demo_folder, workplace, "train", "--run", run, *overrides, *arguments)
        assert done.returncode == 0, done.stderr
    for log, epochs in {"short.log.jsonl": 1, "refiner.log.jsonl": 2}.items():
        one, two = (losses(workplace, run, log) for run in ("one", "two"))
        assert len(one) == len(two) == epochs
        for (loss, score), (loss_of_two, score_of_two) in zip(one, two):
            assert loss_of_two == pytest.approx(loss, rel=1e-3)
            assert score_of_two == pytest.approx(score, rel=1e-2)  # of masks that a rounding may turn at one half


def test_a_problem_of_all_ranks_is_printed_once(demo_folder: pathlib.Path, workplace: pathlib.Path) -> None:
    done = pipeline(demo_folder, workplace, "train", "--gpus", "2", "--set", "train.batch_size=7")
    assert done.returncode == 1
    assert done.stderr.startswith("train: train.batch_size (7)") and done.stderr.count("\n") == 1


def test_sigterm_stops_all_ranks_after_the_same_step_which_is_saved(
    demo_folder: pathlib.Path, workplace: pathlib.Path
) -> None:
    arguments = ("--gpus", "2", "--set", "train.checkpoint_steps=1", "--set", "train.epochs=40")
    running = start(demo_folder, workplace, "train", *arguments)
    last = workplace / "runs/two/fold0/last.pt"
    while not last.exists():
        assert running.poll() is None
        time.sleep(0.05)
    running.terminate()
    _, err = running.communicate(timeout=120)
    assert running.returncode == 1
    (stopped_after,) = re.findall(r"train: Stopped after step (\d+) of 160", err)
    step = checkpoint.load(last, ("step",))["step"]
    assert 0 < step < 160 and step == int(stopped_after) and "Traceback" not in err


def test_each_gpu_trains_a_fold_and_a_problem_of_one_is_printed(
    demo_folder: pathlib.Path, workplace: pathlib.Path
) -> None:
    done = pipeline(demo_folder, workplace, "train", "--fold", "0,7", "--gpus", "2")
    assert done.returncode == 1
    assert "fold 0 | runs/two/fold0/best.pt: Dice" in done.stdout
    assert "fold 7 | train: " in done.stdout
    assert done.stderr.startswith("train: fold 7 ") and done.stderr.count("\n") == 1


# --- micro-batches, and activations -----------------------------------------------------------------


def test_micro_batches_average_to_the_gradient_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    start = nn.Conv2d(3, 1, 3, padding=1)
    weights = dict(bce=1.0, dice=1.0, jaccard=0.0, focal=0.0, lovasz=0.0, edge_weight=0.0, edge_px=2)
    results = []

    def loss_of(logits_NCHW: Tensor, prob_NHW: Tensor) -> Tensor:
        return mask_loss(logits_NCHW[:, 0].float(), prob_NHW, **weights)

    for micro_batches in (1, 2, 3, 6):
        network = copy.deepcopy(start)

        def forward(image_NHWC: Tensor) -> Tensor:
            return network(image_NHWC.permute(0, 3, 1, 2).float() / 255)

        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        state = TrainingState(
            network, forward, Ema(network, 0.9), optimizer, torch.amp.GradScaler("cpu", enabled=False), Stopwatch(6),
            loss_sum=torch.zeros(()), non_finite_step=torch.tensor(-1), score_name="val_dice",
        )  # fmt: skip
        loss, gradient_norm = state.take_step(*batch_of(6), loss_of, clip_norm=1e9, micro_batches=micro_batches)
        results.append(torch.cat([loss[None], gradient_norm[None], network.weight.detach().flatten()]))
    for result in results[1:]:
        assert torch.allclose(result, results[0], atol=2e-3)  # of bf16, where the processor has it
    assert not torch.allclose(results[0][2:], start.weight.detach().flatten(), atol=2e-2)


def test_recomputed_activations_change_no_bit() -> None:
    states = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = UNet(width=4, depth=2, checkpoint_activations=recompute)
        image_NCHW = torch.randn(2, 3, 16, 16)
        network(image_NCHW).square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        buffers = {name: buffer for name, buffer in network.named_buffers() if "num_batches" not in name}
        states.append(gradients | buffers)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_activations_of_smp_cannot_be_recomputed() -> None:
    with pytest.raises(Problem, match="checkpoint_activations"):
        build(
            arch="smp.Unet", width=1, depth=1, patch=1, encoder="resnet18", encoder_weights=None,
            checkpoint_activations=True,
        )


def test_activations_are_recomputed_when_compiled_too() -> None:
    torch.manual_seed(0)
    start = UNet(width=4, depth=2, checkpoint_activations=True)
    image_NCHW = torch.randn(2, 3, 16, 16)
    states = []
    for compiled in (False, True):
        network = copy.deepcopy(start)
        if compiled:
            network.compile(backend="aot_eager")  # the tracing of torch.compile, without its C++ compiler
        network(image_NCHW).square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        states.append(gradients | {name: value for name, value in network.named_buffers() if "running" in name})
    for name in states[0]:
        assert torch.allclose(states[0][name], states[1][name], rtol=1e-4, atol=1e-6), name
