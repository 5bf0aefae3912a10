"""Several processes train as one does; a batch in parts as one in a piece; activations kept or computed again."""
import copy
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.__main__ import main
from pipeline.data.loader import BatchSchedule
from pipeline.model import checkpoint
from pipeline.model.sync_batchnorm import SyncedBatchNorm2d, sync_batch_norm
from pipeline.model.factory import build
from pipeline.model.losses import mask_loss
from pipeline.model.unet import UNet
from pipeline.runtime.distributed import processes
from pipeline.runtime.problem import Problem
from pipeline.train import one_step

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


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """uint8 pictures (count, 16, 24, 3) and shares (count, 16, 24)."""
    generator = torch.Generator().manual_seed(0)
    image_NHWC = torch.randint(0, 256, (count, 16, 24, 3), dtype=torch.uint8, generator=generator)
    return image_NHWC, torch.rand(count, 16, 24, generator=generator)


# --- several processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_processes_share_each_batch_of_the_one_schedule(count: int) -> None:
    alone = list(BatchSchedule(pictures=20, batch_size=6, epochs=2, seed=0))
    shares = [list(BatchSchedule(20, 6, 2, 0, share=(rank, count))) for rank in range(count)]
    assert [sum(parts, []) for parts in zip(*shares)] == alone
    assert all(len(part) == 6 // count for parts in shares for part in parts)


def test_a_step_knows_its_batch() -> None:
    schedule = BatchSchedule(pictures=20, batch_size=6, epochs=2, seed=0, share=(1, 2))
    whole = list(BatchSchedule(pictures=20, batch_size=6, epochs=2, seed=0))
    assert [schedule.batch(step) for step in range(6)] == whole


def test_shared_batch_norm_is_batch_norm(group_of_one: None) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3))
    nn.init.uniform_(plain[0].weight)
    shared = sync_batch_norm(copy.deepcopy(plain))
    assert type(shared[0]) is SyncedBatchNorm2d
    x = torch.randn(4, 3, 5, 6) * 7 + 2
    for network in (plain, shared):
        given = x.clone().requires_grad_()
        network(given).cos().sum().backward()
        network.x_grad = given.grad
    assert torch.allclose(plain.x_grad, shared.x_grad, atol=1e-5)
    assert torch.allclose(plain[0].weight.grad, shared[0].weight.grad, atol=1e-4)
    for key, value in plain[0].state_dict().items():
        if key != "num_batches_tracked":
            assert torch.allclose(value, shared[0].state_dict()[key], atol=1e-6)
    assert torch.allclose(plain.eval()(x), shared.eval()(x), atol=1e-5)


def test_a_process_alone_needs_no_group() -> None:
    with processes() as everyone:
        assert everyone.first and everyone.count == 1
        assert everyone.any_rank([True, False]) == [True, False] and everyone.gather("x") == ["x"]


@pytest.fixture
def workplace(demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with a config and folds for the runs one, parts and two."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.yaml").write_text(CONFIG)
    for run in ("one", "parts", "two"):
        assert main(["folds", "--config", "two.yaml", "--data", str(demo_folder), "--run", run]) == 0
    return tmp_path


def start(folder: pathlib.Path, workplace: pathlib.Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipeline", *words, "--config", "two.yaml", "--data", str(folder)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # without bf16, whose rounding would hide what is compared
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=workplace, env=environment, stdout=pipe, stderr=pipe, text=True)


def pipeline(folder: pathlib.Path, workplace: pathlib.Path, *words: str) -> subprocess.CompletedProcess:
    process = start(folder, workplace, *words)
    out, told = process.communicate(timeout=300)
    return subprocess.CompletedProcess(words, process.returncode, out, told)


def losses(workplace: pathlib.Path, run: str) -> list[tuple[float, float]]:
    lines = (workplace / "runs" / run / "fold0" / "log.jsonl").read_text().splitlines()
    return [(row["train_loss"], row["val_dice"]) for row in map(json.loads, lines)]


def test_two_processes_have_the_loss_curve_of_one_with_the_same_batch(
    demo_folder: pathlib.Path, workplace: pathlib.Path
) -> None:
    for run, words in {"one": (), "parts": ("--set", "train.accumulate=2"), "two": ("--gpus", "2")}.items():
        done = pipeline(demo_folder, workplace, "train", "--run", run, *words)
        assert done.returncode == 0, done.stderr
    one, parts, two = (losses(workplace, run) for run in ("one", "parts", "two"))
    assert two == [pytest.approx(row, rel=1e-3) for row in one]
    # A bar that can fail: batch norm over each half alone, as an unshared one would have it, is farther off.
    assert parts != [pytest.approx(row, rel=1e-3) for row in one]


def test_what_is_wrong_for_all_is_told_once(demo_folder: pathlib.Path, workplace: pathlib.Path) -> None:
    done = pipeline(demo_folder, workplace, "train", "--gpus", "2", "--set", "train.batch_size=7")
    assert done.returncode == 1
    assert done.stderr.startswith("train: train.batch_size (7) must be a multiple") and done.stderr.count("\n") == 1


def test_sigterm_is_heard_by_all_and_the_rest_is_trained_after_it(
    demo_folder: pathlib.Path, workplace: pathlib.Path
) -> None:
    words = ("--gpus", "2", "--set", "train.checkpoint_steps=1", "train.epochs=40")
    running = start(demo_folder, workplace, "train", *words)
    last = workplace / "runs/two/fold0/last.pt"
    while not last.exists():
        assert running.poll() is None
        time.sleep(0.05)
    running.terminate()
    _, told = running.communicate(timeout=120)
    assert running.returncode == 1
    assert len(re.findall(r"train: Stopped after step \d+ of 160; it is saved", told)) == 1 and "Traceback" not in told
    step = checkpoint.load(last, ("step",))["step"]
    assert 0 < step < 160 and f"after step {step} of" in told


def test_a_fold_each_and_a_problem_of_one_is_told(demo_folder: pathlib.Path, workplace: pathlib.Path) -> None:
    done = pipeline(demo_folder, workplace, "train", "--fold", "0,7", "--gpus", "2")
    assert done.returncode == 1
    assert "fold 0 | runs/two/fold0/best.pt: Dice" in done.stdout
    assert "fold 7 | train: " in done.stdout
    assert done.stderr == "train: fold 7 did not end well; the same command goes on with the rest.\n"


# --- parts of a batch, and activations --------------------------------------------------------------


def test_parts_of_a_batch_average_to_the_gradient_of_the_whole() -> None:
    torch.manual_seed(0)
    start = nn.Conv2d(3, 1, 3, padding=1)
    weights = dict(bce=1.0, dice=1.0, jaccard=0.0, focal=0.0, lovasz=0.0, edge_weight=0.0, edge_px=2)
    results = []

    def loss_of(logits_NCHW: Tensor, prob_NHW: Tensor) -> Tensor:
        return mask_loss(logits_NCHW[:, 0].float(), prob_NHW, **weights)

    for parts in (1, 2, 3, 6):
        network = copy.deepcopy(start)

        def forward(image_NHWC: Tensor) -> Tensor:
            return network(image_NHWC.permute(0, 3, 1, 2).float() / 255)

        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        step = partial(one_step, forward, network, optimizer, torch.amp.GradScaler("cpu", enabled=False), 1e9, loss_of)
        loss, gradient_norm = step(*pictures(6), parts=parts)
        results.append(torch.cat([loss[None], gradient_norm[None], network.weight.detach().flatten()]))
    for result in results[1:]:
        assert torch.allclose(result, results[0], atol=2e-3)  # of bf16, where the processor has it
    assert not torch.allclose(results[0][2:], start.weight.detach().flatten(), atol=2e-2)


def test_activations_computed_again_change_no_bit() -> None:
    states = []
    for again in (False, True):
        torch.manual_seed(0)
        network = UNet(width=4, depth=2, checkpoint_activations=again)
        image_NCHW = torch.randn(2, 3, 16, 16)
        network(image_NCHW).square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        buffers = {name: buffer for name, buffer in network.named_buffers() if "num_batches" not in name}
        states.append(gradients | buffers)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_activations_of_smp_cannot_be_computed_again() -> None:
    with pytest.raises(Problem, match="checkpoint_activations"):
        build(
            arch="smp.Unet", width=1, depth=1, patch=1, encoder="resnet18", encoder_weights=None,
            checkpoint_activations=True,
        )


def test_compiled_activations_are_computed_again_too() -> None:
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


def test_batch_norm_that_does_more_is_not_replaced_in_silence(group_of_one: None) -> None:
    from timm.layers import BatchNormAct2d

    with pytest.raises(Problem, match="BatchNormAct2d cannot be synchronised"):
        sync_batch_norm(nn.Sequential(BatchNormAct2d(3)))
