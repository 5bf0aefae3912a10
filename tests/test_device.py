"""What a machine lacks is told in one sentence: kernels for an old GPU, a compiler, the other processes, memory."""
import pathlib
import sysconfig

import pytest
import torch
import torch.distributed as dist

from pipeline.runtime import distributed
from pipeline.runtime.device import check_capability, check_compiler
from pipeline.runtime.distributed import process_group
from pipeline.runtime.memory import is_out_of_memory
from pipeline.runtime.problem import Problem

WHEEL_OF_2_11 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name, capability", [("Tesla P100", (6, 0)), ("Tesla V100", (7, 0)), ("GTX 1080", (6, 1))])
def test_a_gpu_that_is_older_than_the_kernels_is_a_problem(name: str, capability: tuple[int, int]) -> None:
    number = rf"{capability[0]}\.{capability[1]}"
    with pytest.raises(Problem, match=rf"{name} has compute capability {number}, .* 7\.5 and newer"):
        check_capability(name, capability, WHEEL_OF_2_11)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (12, 0), (13, 0)])
def test_a_gpu_that_is_as_new_as_the_oldest_kernels_is_used(capability: tuple[int, int]) -> None:
    check_capability("GPU", capability, WHEEL_OF_2_11)
    check_capability("GPU", (6, 0), [])  # a torch that does not know


@pytest.fixture
def header(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A Python.h, and no compiler."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "Python.h").touch()
    return tmp_path / "Python.h"


def make_program(path: pathlib.Path) -> None:
    path.touch()
    path.chmod(0o700)


@pytest.mark.parametrize("device, program", [(GPU, "gcc"), (GPU, "clang"), (CPU, "g++")])
def test_compiling_needs_a_compiler(header: pathlib.Path, device: torch.device, program: str) -> None:
    with pytest.raises(Problem, match=r"train\.compile needs a compiler \(.*\+?\); .* set train\.compile=false"):
        check_compiler(device, "train.compile")
    make_program(header.parent / program)
    check_compiler(device, "train.compile")


def test_compiling_needs_the_headers_of_python(header: pathlib.Path) -> None:
    make_program(header.parent / "gcc")
    header.unlink()
    with pytest.raises(Problem, match=r"^predict\.compile needs Python's headers \(Python\.h, from python3-dev\);"):
        check_compiler(GPU, "predict.compile")


def test_the_compiler_that_the_environment_names_is_the_one_that_is_needed(
    header: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_program(header.parent / "gcc")
    monkeypatch.setenv("CC", "icx")
    with pytest.raises(Problem, match=r"a compiler \(icx\)"):
        check_compiler(GPU, "train.compile")


@pytest.fixture
def rank_1_of_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "launched_by_torchrun", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"),
        dist.DistBackendError("NCCL error in: NCCL.cpp:3384, remote process exited or there was a network error"),
        dist.DistNetworkError("recvValue failed: Connection was likely closed. Did the remote server shutdown?"),
    ],
)  # fmt: skip
def test_a_process_whose_partner_has_ended_ends_without_a_word(
    rank_1_of_2: None, error: Exception, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end, process_group():
        raise error
    assert end.value.code == 1 and capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError("NCCL error in: NCCL.cpp:3384, unhandled system error\nCall to ibv_modify_qp failed"),
        dist.DistBackendError("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType=ALLREDUCE)"),
        dist.DistStoreError("Timed out after 601 seconds waiting for clients. 1/2 clients joined."),
    ],
)  # fmt: skip
def test_another_failure_to_communicate_is_told_with_its_rank_and_cause(rank_1_of_2: None, error: Exception) -> None:
    with pytest.raises(Problem, match=r"^Process 1 of 2 cannot communicate") as problem, process_group():
        raise error
    assert str(error).split(",")[0].split("\n")[0] in str(problem.value) and "\n" not in str(problem.value)


def test_an_error_of_the_network_itself_is_not_one_of_communication(rank_1_of_2: None) -> None:
    with pytest.raises(RuntimeError, match="shapes"), process_group():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    "message",
    [
        "CUDA driver error: out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation", "DefaultCPUAllocator: can't allocate memory",
    ],
)  # fmt: skip
def test_all_allocators_are_understood_when_they_run_out(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message)) and not is_out_of_memory(ValueError(message))
