"""Optimisers and learning rates: which rule updates which weight, how far, and the same bits after a resume."""
import copy
import math
import pathlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.model import checkpoint, optim
from pipeline.model import factory as models

NAMES = list(optim.OPTIMIZERS)
SCHEDULES = list(optim.SCHEDULES)


def unet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(arch="unet", width=4, depth=2, patch=1, encoder="", encoder_weights=None).train()


def build(name: str, network: nn.Module, learning_rate: float = 0.01, weight_decay: float = 0.1):
    return optim.build(name, network, learning_rate, weight_decay, momentum=0.9)


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range, device: str = "cpu") -> list[float]:
    """Fit the brightness of random images; return the losses before each step."""
    losses = []
    for step in steps:
        image = torch.randint(0, 256, (2, 8, 12, 3), dtype=torch.uint8, generator=torch.manual_seed(step)).to(device)
        loss = F.mse_loss(network(image)[:, 0], image.float().mean(-1) / 255)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return [loss.item() for loss in losses]


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_one_group_and_only_those_with_axes_decay(name: str) -> None:
    network = unet()
    optimizer = build(name, network, weight_decay=0.3)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))
    for key, parameter in network.named_parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim > 1 else 0), key


@pytest.mark.parametrize("name", NAMES)
def test_an_optimiser_makes_a_loss_smaller(name: str) -> None:
    network = unet()
    losses = train(network, build(name, network), range(30))
    assert sum(losses[-5:]) < sum(losses[:5]) / 3


@pytest.mark.parametrize("name", NAMES)
def test_a_learning_rate_of_0_changes_nothing(name: str) -> None:
    network = unet()
    optimizer = build(name, network, learning_rate=1.0)
    optim.set_learning_rate(optimizer, 0.0)
    before = copy.deepcopy(list(network.parameters()))
    train(network, optimizer, range(2))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_saved_and_loaded_continues_with_the_same_bits(name: str, tmp_path: pathlib.Path) -> None:
    uninterrupted = unet()
    optimizer = build(name, uninterrupted)
    train(uninterrupted, optimizer, range(3))
    checkpoint.save(tmp_path / "last.pt", {"network": uninterrupted.state_dict(), "optimizer": optimizer.state_dict()})
    train(uninterrupted, optimizer, range(3, 6))

    resumed = unet(seed=1)
    state = checkpoint.load(tmp_path / "last.pt", keys=("network", "optimizer"))
    resumed.load_state_dict(state["network"])
    optimizer = build(name, resumed)
    optimizer.load_state_dict(state["optimizer"])
    train(resumed, optimizer, range(3, 6))
    for key, value in uninterrupted.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_without_a_gradient_is_not_changed(name: str) -> None:
    network = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(3)))
    optimizer = build(name, network)
    network[1].requires_grad_(False)
    before = copy.deepcopy(network)
    network(torch.ones(1, 2, 1, 1)).square().sum().backward()
    optimizer.step()
    assert torch.equal(network[1].weight, before[1].weight)
    assert not torch.equal(network[0].weight, before[0].weight)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_no_optimiser_waits_for_the_gpu_after_a_resume_either(name: str, tmp_path: pathlib.Path) -> None:
    network = unet().cuda()
    optimizer = build(name, network)
    train(network, optimizer, range(2), device="cuda")  # what is done only once may wait
    checkpoint.save(tmp_path / "last.pt", {"optimizer": optimizer.state_dict()})
    optimizer.load_state_dict(checkpoint.load(tmp_path / "last.pt", keys=("optimizer",))["optimizer"])
    network(torch.zeros(1, 8, 8, 3, dtype=torch.uint8, device="cuda")).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_sgd_without_momentum_is_plain() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = optim.build("sgd", layer, 0.1, weight_decay=0.0, momentum=0.0)
    for _ in range(2):
        layer(torch.ones(1, 1)).backward()  # a gradient of 1
        optimizer.step()
        optimizer.zero_grad()
    assert layer.weight.item() == pytest.approx(0.8)


def test_nesterovs_momentum_looks_a_step_ahead() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = optim.build("sgd", layer, 0.1, weight_decay=0.0, momentum=0.5)
    layer(torch.ones(1, 1)).backward()
    optimizer.step()
    assert layer.weight.item() == pytest.approx(1 - 0.1 * (1 + 0.5 * 1))


# --- Muon -----------------------------------------------------------------------------------------


def test_muon_takes_the_hidden_weights_and_adamw_the_rest() -> None:
    network = unet()
    optimizer = build("muon", network)
    key_of = {id(parameter): key for key, parameter in network.named_parameters()}
    rules = {key_of[id(p)]: group["rule"] for group in optimizer.param_groups for p in group["params"]}
    for key, parameter in network.named_parameters():
        hidden = parameter.ndim == 4 and key not in ("network.stem.0.weight", "network.head.weight")
        assert rules[key] == ("muon" if hidden else "adamw"), key
    assert rules["network.up.0.weight"] == "muon"


def test_grouped_convolutions_are_not_a_matrix() -> None:
    first, last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 1, 1)
    grouped, linear = nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 4)
    assert optim.hidden_weights(nn.Sequential(first, grouped, linear, last)) == [linear.weight]


@settings(deadline=None)
@given(rows=st.integers(1, 24), columns=st.integers(1, 24), seed=st.integers(0, 9))
def test_an_orthogonal_update_has_singular_values_near_1(rows: int, columns: int, seed: int) -> None:
    """And keeps the directions: U Vᵀ, however large the gradient was."""
    generator = torch.manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, rows, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(columns, columns, generator=generator)).Q
    rank = min(rows, columns)
    sizes = 10 ** torch.empty(rank).uniform_(-1.5, 0, generator=generator)
    matrix = u[:, :rank] * sizes @ v[:rank]
    for scale in (1e-5, 1.0, 1e5):
        update = optim.orthogonal(matrix * scale)
        assert update.dtype == torch.float32 and update.shape == matrix.shape
        singular = torch.linalg.svdvals(update)
        assert singular.min() > 0.6 and singular.max() < 1.3
        assert torch.linalg.matrix_norm(update - u[:, :rank] @ v[:rank], ord=2) < 0.4


def test_the_orthogonal_form_of_zeros_is_zeros() -> None:
    assert torch.equal(optim.orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_a_transposed_matrix_has_the_transposed_orthogonal_form() -> None:
    matrix = torch.randn(6, 15, generator=torch.manual_seed(0))
    assert torch.equal(optim.orthogonal(matrix.mT), optim.orthogonal(matrix).mT)


def test_the_matrix_of_a_convolution_maps_a_window_to_the_output_of_one_place() -> None:
    layer, window = nn.Conv2d(3, 5, (2, 4), bias=False), torch.randn(1, 3, 2, 4)
    assert torch.allclose(layer(window).flatten(), optim.as_matrix(layer.weight) @ window.flatten(), atol=1e-6)


def test_the_matrix_of_a_transposed_convolution_maps_one_place_to_a_window() -> None:
    layer, place = nn.ConvTranspose2d(3, 5, 2, stride=2, bias=False), torch.randn(1, 3, 1, 1)
    assert torch.allclose(layer(place).flatten(), place.flatten() @ optim.as_matrix(layer.weight), atol=1e-6)


@pytest.mark.parametrize("layer", [nn.Conv2d(16, 8, 3), nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Linear(16, 40)])
def test_a_step_of_muon_has_the_size_of_adamws(layer: nn.Module) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    before = weight.detach().clone()
    network = nn.Sequential(nn.Linear(1, 1), layer, nn.Linear(1, 1))
    optimizer = build("muon", network, learning_rate=0.01, weight_decay=0.0)
    weight.grad = 1e-3 * torch.randn(weight.shape, generator=torch.manual_seed(0))
    optimizer.step()
    step = weight.detach() - before
    assert step.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.2)
    assert (step * weight.grad).sum() < 0


def test_muon_follows_nesterovs_mean_of_the_gradients() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(6, 1, bias=False), nn.Linear(1, 1))
    optimizer = build("muon", network, weight_decay=0.0)
    first, second = torch.randn(2, 1, 6, generator=torch.manual_seed(0))
    for gradient in (first, second):
        before = network[1].weight.detach().clone()
        network[1].weight.grad = gradient.clone()
        optimizer.step()
    mean = 0.9 * (0.1 * first) + 0.1 * second
    ahead = 0.9 * mean + 0.1 * second
    assert F.cosine_similarity(before - network[1].weight, ahead).item() > 0.9999
    assert F.cosine_similarity(mean, ahead).item() < 0.999


def test_muon_shrinks_the_weights_by_learning_rate_times_decay() -> None:
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    before = network[1].weight.detach().clone()
    optimizer = build("muon", network, learning_rate=0.1, weight_decay=0.5)
    network[1].weight.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.allclose(network[1].weight, before * (1 - 0.1 * 0.5))


def test_what_muon_leaves_to_adamw_is_updated_as_by_torchs_adamw() -> None:
    networks = [nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    image = torch.randn(2, 3, 5, 5, generator=torch.manual_seed(0))
    for name, network in zip(("muon", "adamw"), networks):
        optimizer = build(name, network)
        for _ in range(4):
            network(image).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*(network.parameters() for network in networks)))


# --- the learning rate ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule, middle, last",
    [
        ("cosine", 1.0, 2 * (1 + math.cos(math.pi * 89 / 90)) / 2),
        ("linear", 1.0, 2 / 90),
        ("constant", 2.0, 2.0),
    ],
)
def test_the_learning_rate_rises_linearly_and_follows_its_schedule(schedule: str, middle: float, last: float) -> None:
    rates = [optim.learning_rate_at(step, 100, 2.0, 0.1, schedule) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(middle)
    assert rates[99] == pytest.approx(last)
    assert all(later <= earlier for earlier, later in zip(rates[10:], rates[11:]))


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(steps=st.integers(1, 50), warmup_fraction=st.floats(0, 1))
def test_a_learning_rate_stays_between_0_and_the_peak(schedule: str, steps: int, warmup_fraction: float) -> None:
    rates = [optim.learning_rate_at(step, steps, 3.0, warmup_fraction, schedule) for step in range(steps)]
    assert all(0 <= rate <= 3.0 for rate in rates)
    assert max(rates) == 3.0


def test_sgd_begins_with_buffers_of_0_even_if_its_first_step_is_skipped() -> None:
    network = nn.Linear(3, 2)
    optimizer = optim.build("sgd", network, 0.1, 0.0, momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())  # as a loss scaler sets them
    optimizer.step()
    assert all((optimizer.state[parameter]["momentum_buffer"] == 0).all() for parameter in network.parameters())
