"""The time of a training step by kind of kernel, from torch.profiler."""
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

CONVOLUTION, MATMUL, ELEMENTWISE = "convolution", "matmul", "normalisation and elementwise"
OPTIMIZER, COPIES, OTHER = "optimizer", "copies", "other"
KINDS = (CONVOLUTION, MATMUL, ELEMENTWISE, OPTIMIZER, COPIES, OTHER)
# Parts of the names of CUDA's kernels and of torch's operations on a CPU; the first that matches decides. Inductor
# names a kernel after all operations that it fuses, so only its first letters count: `tem`, a template, is a product.
PATTERNS = [
    (CONVOLUTION, r"^triton_tem_.*conv"),
    (MATMUL, r"^triton_tem_"),
    (ELEMENTWISE, r"^(triton|cpp)_"),
    (COPIES, r"memcpy|memset|copy|nchwtonhwc|nhwctonchw|transpose|catarray|::cat$|aten::(clone|contiguous|to)$"),
    (ELEMENTWISE, r"batch_?norm|(cudnn::|_)bn_|pool|upsample"),
    (OPTIMIZER, r"multi_tensor|fused_?adam|fused_?sgd|_foreach_"),
    (CONVOLUTION, r"conv|fprop|dgrad|wgrad|implicit_gemm|winograd|cudnn"),
    (MATMUL, r"gemm|nvjet|cublas|cutlass|splitk|aten::(mm|bmm|addmm|baddbmm|matmul|linear|dot)$"),
    (ELEMENTWISE, r"elementwise|reduce|vectorized|relu|sigmoid|softplus|aten::(add|sub|mul|div|sum|mean|clamp|where)"),
]
STEP_OF_OPTIMIZER = "Optimizer.step#"  # torch's own name of the range in its profiles


def time_by_kind(step: Callable[[], object], device: torch.device, steps: int) -> dict[str, float]:
    """Return milliseconds a step by the kinds of `KINDS`: of kernels on a GPU, of operations on a CPU."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    return {kind: us / steps / 1e3 for kind, us in sum_by_kind(profiler.events() or [], on_gpu).items()}


def sum_by_kind(events: Iterable[Any], on_gpu: bool) -> dict[str, float]:
    """Return microseconds by kind. events: of the profiler, with ranges of the CPU and, on a GPU, its kernels.

    What the step of an optimizer starts counts as optimizer, whatever its name: Muon multiplies matrices.
    """
    us_of_kind = dict.fromkeys(KINDS, 0.0)
    for event in events:
        is_kernel = event.device_type == DeviceType.CUDA
        if is_kernel and not event.is_user_annotation:  # an annotation spans kernels that are counted by themselves
            us_of_kind[kind_of(event.name)] += event.time_range.elapsed_us()
        elif not is_kernel and not on_gpu:
            kind = OPTIMIZER if is_in_optimizer(event) else kind_of(event.name)
            us_of_kind[kind] += event.self_cpu_time_total
        elif not is_kernel and is_in_optimizer(event):
            for kernel in event.kernels:
                us_of_kind[kind_of(kernel.name)] -= kernel.duration
                us_of_kind[OPTIMIZER] += kernel.duration
    return us_of_kind


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in PATTERNS if re.search(pattern, name, re.IGNORECASE)), OTHER)


def is_in_optimizer(event: Any) -> bool:
    """Whether a range of the CPU is the step of an optimizer, or within one."""
    while event is not None:
        if event.name.startswith(STEP_OF_OPTIMIZER):
            return True
        event = event.cpu_parent
    return False
