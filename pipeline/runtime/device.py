"""The device that the network runs on, and the precision that it computes in."""
import contextlib
import os
import pathlib
import platform
import re
import shlex
import shutil
import sysconfig
from collections.abc import Iterator

import torch

from pipeline.runtime.problem import Problem


def pick_device() -> torch.device:
    """Return the GPU, else the CPU. Raises Problem for a GPU that is older than the kernels of this torch."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    check_capability(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), torch.cuda.get_arch_list())
    return torch.device("cuda")


def check_capability(name: str, capability: tuple[int, int], architectures: list[str]) -> None:
    """Raise Problem for a GPU that is older than all `architectures`, such as sm_75, that torch has kernels for.

    Newer ones can run kernels of older ones, or compile them at their start. Wheels of torch 2.8 and later begin at
    7.5, a T4: a P100 (6.0) or V100 (7.0) would fail at its first kernel, with "no kernel image is available".
    """
    oldest = min((int(number) for each in architectures for number in re.findall(r"sm_(\d+)", each)), default=0)
    if 10 * capability[0] + capability[1] < oldest:
        what = f"The GPU {name} has compute capability {capability[0]}.{capability[1]}"
        needed = f"this torch has kernels for {oldest // 10}.{oldest % 10} and newer"
        raise Problem(f"{what}, but {needed}; take a T4 or newer, or set CUDA_VISIBLE_DEVICES= to use the CPU.")


def check_compiler(device: torch.device, setting: str) -> None:
    """Raise Problem if torch.compile lacks what it builds kernels with; `setting` names the setting that asked for it.

    Triton builds launchers for a GPU in C (https://github.com/triton-lang/triton, runtime/build.py), inductor kernels
    for a CPU in C++; both include Python.h. Slim images have neither, and torch would fail in the first step.
    """
    variable, names = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++",))
    programs = shlex.split(os.environ.get(variable, ""))[:1] or names
    missing = [] if any(map(shutil.which, programs)) else [f"a compiler ({' or '.join(programs)})"]
    if not pathlib.Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append("Python's headers (Python.h, from python3-dev)")
    if missing:
        raise Problem(f"{setting} needs {' and '.join(missing)}; install what is missing, or set {setting}=false.")


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

    The first two halve the memory traffic; bf16 has the range of float32, float16 (T4) has not.
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
    """Call once, before a network is built: allow the fastest kernels, or only those that give the same bits always.

    Prediction does not call it. cuDNN's search may find another kernel each time, and with it other last bits, but the
    same checkpoint must give the same submission.
    """
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
