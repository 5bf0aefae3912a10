"""The device that the network runs on, and the precision that it computes in."""
import contextlib
import os
import platform
from collections.abc import Iterator

import torch

from pipeline.runtime.problem import Problem


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bf16 in hardware; elsewhere bf16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and "avx512_bf16" in cpu_line("flags")


def cpu_line(key: str) -> str:
    """Return the first line of /proc/cpuinfo that starts with `key`, "" if there is none."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        return next((line for line in file if line.startswith(key)), "")
    return ""


def precision(device: torch.device) -> torch.dtype:
    """Return the dtype of convolutions: bf16 where the processor has it, else float16 on a GPU, float32 on a CPU.

    The first two halve the memory traffic; bf16 has the range of float32, float16 (T4, P100, V100) has not.
    """
    if has_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    dtype = precision(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def loss_scaler(device: torch.device) -> torch.amp.GradScaler:
    """Return a scaler that keeps small gradients from vanishing in float16, and does nothing in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision(device) == torch.float16)


def set_up(deterministic: bool) -> None:
    """Call once, before a network is built: allow the fastest kernels, or only those that give the same bits always."""
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        # https://docs.nvidia.com/cuda/cublas/#results-reproducibility
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextlib.contextmanager
def explain_missing_kernel() -> Iterator[None]:
    """Turn torch's error about an operation that has no deterministic kernel into a Problem."""
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        operation = str(error).split(" does not have")[0]
        raise Problem(f"{operation} has no deterministic kernel here; train without --deterministic.") from None


def describe(device: torch.device) -> str:
    """Return one line for logs and tables: the device, its precision, and on a CPU the threads."""
    if device.type == "cuda":
        return describe_machine(device)
    return f"CPU, {name_of(precision(device))}, {torch.get_num_threads()} threads"


def describe_machine(device: torch.device) -> str:
    """Return what the bits of a result depend on, as far as can be known: processor, instruction set, precision."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {name_of(precision(device))}"
    model = cpu_line("model name").partition(":")[2].strip() or platform.machine()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, {name_of(precision(device))}"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
