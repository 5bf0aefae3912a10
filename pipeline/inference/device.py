"""Where the network runs, and in which precision."""
import contextlib
from collections.abc import Iterator

import torch

from pipeline.problem import Problem


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bf16 in hardware; elsewhere bf16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and "avx512_bf16" in cpu_flags()


def cpu_flags() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        return next((line for line in file if line.startswith("flags")), "")
    return ""


def autocast(device: torch.device) -> torch.autocast:
    """bf16 where the processor has it: half the memory traffic, and range enough to need no loss scaling."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device))


@contextlib.contextmanager
def out_of_memory_told(settings: str) -> Iterator[None]:
    """Turn the GPU's out-of-memory error into a Problem that names the settings to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Problem(f"The GPU's memory is too small for {settings}; lower the batch size.") from error


def describe(device: torch.device) -> str:
    """One line for logs and tables."""
    precision = "bf16" if has_bf16(device) else "float32"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    return f"CPU, {torch.get_num_threads()} threads, {precision}"
