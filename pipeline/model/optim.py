"""Optimisers and learning-rate schedules.

`OPTIMIZERS` and `SCHEDULES` are the tables: a new one is one function and its line there, and `train.optimizer` or
`train.schedule` then takes its name.

Three optimisers earn their place: AdamW, which needs the least care; SGD with Nesterov's momentum, the field's
yardstick, with half of AdamW's memory; Muon, with which speed records on small images are set (see its sources).
"""
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from pipeline.runtime.device import precision


def build(
    name: str, network: nn.Module, learning_rate: float, weight_decay: float, momentum: float
) -> torch.optim.Optimizer:
    """Return an optimiser, a key of `OPTIMIZERS`, of all parameters of a network, with one learning rate for all.

    weight_decay: of weights with more than one axis; biases and the scales of norms are never pulled to 0.
        AdamW and Muon shrink the weights themselves, SGD adds it to the gradient, as is usual for each.
    momentum: how much of the last mean gradient lives on; of AdamW it is the first beta.
    """
    return OPTIMIZERS[name](network, learning_rate, weight_decay, momentum)


def build_adamw(network: nn.Module, learning_rate: float, weight_decay: float, momentum: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups(network, weight_decay), learning_rate, betas=(momentum, 0.999), fused=True)


def build_sgd(network: nn.Module, learning_rate: float, weight_decay: float, momentum: float) -> torch.optim.SGD:
    parameters = groups(network, weight_decay)
    sgd = torch.optim.SGD(parameters, learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True)
    if momentum:  # or the buffers would be left as they come when a loss scaler leaves the first step out
        for parameter in (parameter for group in sgd.param_groups for parameter in group["params"]):
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def build_muon(network: nn.Module, learning_rate: float, weight_decay: float, momentum: float) -> "Muon":
    decayed, rest = (group["params"] for group in groups(network, weight_decay))
    return Muon(hidden_weights(network), decayed, rest, learning_rate, weight_decay, momentum)


def groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two parameter groups: those with more than one axis, which decay, and the rest."""
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


# (network, learning_rate, weight_decay, momentum) -> optimiser
OPTIMIZERS: dict[str, Callable[[nn.Module, float, float, float], torch.optim.Optimizer]] = {
    "adamw": build_adamw,
    "sgd": build_sgd,
    "muon": build_muon,
}


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


# The fraction of the peak, after warm-up, on the way from 0 (its end) to 1 (the end of the last step).
# cosine: Loshchilov, Hutter 2017, https://arxiv.org/abs/1608.03983.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda way: (1 + math.cos(math.pi * way)) / 2,
    "linear": lambda way: 1 - way,
    "constant": lambda way: 1.0,
}


def learning_rate_at(step: int, steps: int, peak: float, warmup_fraction: float, schedule: str) -> float:
    """Return the learning rate of step number `step`, from 0, of `steps`.

    It rises linearly to `peak` over the first `warmup_fraction` of the steps and then follows `SCHEDULES[schedule]`.
    """
    warmup_steps = round(warmup_fraction * steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * SCHEDULES[schedule]((step - warmup_steps) / max(1, steps - warmup_steps))


# --- Muon -----------------------------------------------------------------------------------------


def hidden_weights(network: nn.Module) -> list[Tensor]:
    """Return the weights of convolutions and linear layers between the first and the last layer.

    The layer that sees the image and the one that gives the logits are left out as in Muon's own README, and
    so are grouped convolutions: each of their channels is a small filter of its own.
    """
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]
    return [layer.weight for layer in layers[1:-1] if isinstance(layer, nn.Linear) or layer.groups == 1]


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for hidden weights; AdamW for all other parameters.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, in the form of airbench
    (https://github.com/KellerJordan/cifar10-airbench): the mean gradient of a layer, seen as a matrix, is
    replaced by the nearest matrix whose singular values are all 1, so that directions with small gradients, which
    few images support, are learnt as fast as those with large ones. torch.optim.Muon takes 2-D weights only; here
    a weight is reshaped into a matrix.

    The step is scaled to the usual size of AdamW's, a root mean square of 0.2 (Liu et al. 2025,
    https://arxiv.org/abs/2502.16982, section 2.2), so that one learning rate and one decay serve all groups.
    """

    def __init__(
        self, hidden: list[Tensor], decayed: list[Tensor], rest: list[Tensor],
        learning_rate: float, weight_decay: float, momentum: float,
    ):
        """`decayed` may contain those of `hidden`, which then follow Muon's rule."""
        of_muon = set(hidden)
        others = [parameter for parameter in decayed if parameter not in of_muon]
        param_groups: list[dict[str, Any]] = [
            {"params": hidden, "weight_decay": weight_decay, "rule": "muon"},
            {"params": others, "weight_decay": weight_decay, "rule": "adamw"},
            {"params": rest, "weight_decay": 0.0, "rule": "adamw"},
        ]
        # With `fused`, torch also keeps the step count on the device when a state is loaded.
        super().__init__(param_groups, {"lr": learning_rate, "momentum": momentum, "fused": True})
        self.dtype = precision(next(iter([*hidden, *decayed, *rest])).device)  # a T4 would emulate bf16

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            with_grad = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["rule"] == "muon":
                for weight in with_grad:
                    self.step_muon(weight, weight.grad, group)
            elif with_grad:
                self.step_adamw(with_grad, [parameter.grad for parameter in with_grad], group)

    def step_muon(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["mean"] = torch.zeros_like(weight)
        state["mean"].lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(state["mean"], group["momentum"])  # Nesterov: a step ahead of the mean
        matrix = as_matrix(direction)
        update = 0.2 * math.sqrt(max(matrix.shape)) * orthogonal(matrix, self.dtype)
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view(weight.shape), alpha=-group["lr"])

    def step_adamw(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                means = {"mean": torch.zeros_like(parameter), "mean_square": torch.zeros_like(parameter)}
                self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **means}
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters, gradients, [state["mean"] for state in states], [state["mean_square"] for state in states], [],
            [state["step"] for state in states], fused=True, amsgrad=False, beta1=group["momentum"], beta2=0.999,
            lr=group["lr"], weight_decay=group["weight_decay"], eps=1e-8, maximize=False,
        )


def as_matrix(weight: Tensor) -> Tensor:
    """Return a weight as the matrix by which it acts at one place of the image.

    A convolution's (out, in, height, width) maps the in · height · width values of a window to out values. A
    transposed one's (in, out, height, width) maps in values to a window of out · height · width. It too is
    flattened behind its first axis: its matrix is then transposed, which does not matter, as the orthogonal form of
    a transposed matrix is the transposed orthogonal form.
    """
    return weight.flatten(1)


def orthogonal(matrix: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return nearly U Vᵀ of a matrix U S Vᵀ, float32: singular values between 0.65 and 1.25 instead of S.

    Five iterations of Newton-Schulz, whose coefficients lift small values as steeply as they can; those below 1/300
    of the matrix's norm stay smaller. See the source that `Muon` names.

    dtype: of the products; bf16 is exact enough, and no value here comes near the limits of float16.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.mT) / (torch.linalg.matrix_norm(matrix) + 1e-7)  # no singular value above 1
    x = x.to(dtype)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).float()
