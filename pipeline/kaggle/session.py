"""What runs in a session on Kaggle: the stages of a job, on the competition's files where Kaggle mounts them.

`packing` puts this checkout and a `Job` into the script that Kaggle runs; the script starts `main` below. It goes on
from what an earlier session of the run has left, stops the stages before Kaggle would, and writes `outputs.json`: how
the job ended, and each file of the run with its sha256. `remote`, on the user's machine, brings these home.

Whatever happens to a stage, the session itself ends well, since only then Kaggle surely keeps its files.
"""
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.runtime.files import digest, sha256, write_text
from pipeline.runtime.problem import Problem, sentence_of

MANIFEST = "outputs.json"
SESSION_S = 12 * 3600.0  # Kaggle's limit
RESERVE_S = 20 * 60.0  # of it, in which a stage saves, and files are hashed and stored
SAVING_S = 600.0  # for a stage to save when it is asked to stop
NO_GPU = "none"  # in place of a machine shape: a session without GPU, which costs no quota
UNUSABLE_GPU = "P100"  # torch.cuda.is_available() is true on it, but Kaggle's torch has no kernels for it
SEARCH_PATTERNS = ("*", "*/*", "*/*/*", "*/*/*/*")  # below input/; how deep Kaggle mounts has changed over the years
GPU_STAGES = ("train", "refine", "predict")  # that take --gpus


def safe_path(name: str) -> str:
    """Return the name of an output; ValueError unless it is a plain path below runs/ or submissions/."""
    path = pathlib.PurePosixPath(name)
    if str(path) != name or ".." in path.parts or path.parts[0] not in ("runs", "submissions") or "\\" in name:
        raise ValueError(f"{name!r} does not lie in runs/ or submissions/")
    return name


class Job(BaseModel):
    """What a session is to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    stages: list[list[str]]  # command lines of `python -m pipeline`, without --data
    files: dict[str, str]  # path in the checkout -> text, such as the config
    gpu: str  # Kaggle's machine shape, or NO_GPU
    packages: list[str]  # that Kaggle's image lacks, as pip takes them
    sample_table: str  # of the competition, by which its folder is known
    folder: str  # the config's `data.folder`: the name of that folder in the checkout
    commit: str  # of the code, "" if unknown
    clean: bool  # whether the code is exactly that commit's
    code: str  # digest of the code

    @property
    def tag(self) -> str:
        """Return what is equal for equal commands, whatever code runs them, and whether tracebacks are wanted."""
        stages = [[word for word in stage if word != "--debug"] for stage in self.stages]
        return digest(stages, self.model_dump(exclude={"stages", "commit", "clean", "code"}))[:12]


class OutputFile(BaseModel):
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Outputs(BaseModel):
    """The contents of `outputs.json`."""

    run: str
    state: Literal["done", "stopped", "failed"]  # stopped: at the time limit, with its checkpoints saved
    message: str  # why it failed, in one sentence
    files: dict[Annotated[str, AfterValidator(safe_path)], OutputFile]


# --- on Kaggle -------------------------------------------------------------------------------------------------------


def main(working: pathlib.Path, began: float) -> None:
    """Run the job that stdin holds. working: where Kaggle collects outputs. began: `time.time()` of the start."""
    job = Job.model_validate_json(sys.stdin.read())
    try:
        restore(job.run, working)  # first: what a session lists is all that the next one starts from
        gpus = gpu_names() if job.gpu != NO_GPU else []
        check_gpus(job, gpus)
        prepare_checkout(job, working)
        # The run remembers where its data were, so that is a name which is good on the user's machine, too.
        link(pathlib.Path(job.folder), find_competition(working.parent / "input", job.sample_table))
        state, message = run_stages(job, len(gpus), began + SESSION_S - RESERVE_S)
    except (Problem, OSError) as problem:
        state, message = "failed", f"kaggle: {sentence_of(problem)}"
        print(message, file=sys.stderr)
    outputs = Outputs(run=job.run, state=state, message=message, files=list_outputs(job.run, working))
    write_text(working / MANIFEST, outputs.model_dump_json(indent=1))
    print(f"Session {state}: {len(outputs.files)} files are listed in {MANIFEST}.", flush=True)


def gpu_names() -> list[str]:
    """Return the names of this machine's GPUs, as NVIDIA's driver gives them."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        ended = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return ended.stdout.splitlines() if ended.returncode == 0 else []


def check_gpus(job: Job, names: list[str]) -> None:
    if job.gpu == NO_GPU:
        return
    if not names:
        advice = "verify your phone number at https://www.kaggle.com/settings, without which Kaggle gives none"
        raise Problem(f"This session has no GPU; {advice}, or take GPU={NO_GPU}.")
    if any(UNUSABLE_GPU in name for name in names):
        raise Problem(f"Kaggle gave a {names[0]}, on which its torch does not work; take GPU=NvidiaTeslaT4.")
    print(f"GPUs: {', '.join(names)}.", flush=True)


def restore(run: str, working: pathlib.Path) -> None:
    """Copy what the last session of the run has left, if it is an input of this one."""
    for path in find_all(working.parent / "input", MANIFEST):
        try:
            earlier = Outputs.model_validate_json(path.read_bytes())
        except ValidationError:
            continue  # of something else
        for name, file in earlier.files.items() if earlier.run == run else ():
            source = path.parent / name
            if not source.is_file():  # Kaggle may leave hidden files out: shards, which are predicted again
                continue
            (working / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, working / name)
            if sha256(working / name) != file.sha256:
                raise Problem(f"{source} has changed since the session that wrote it; start again with another RUN=.")


def prepare_checkout(job: Job, working: pathlib.Path) -> None:
    """Write the job's files, direct outputs to `working`, and install what the image lacks. The checkout is `.`."""
    for name in ("runs", "submissions"):
        (working / name).mkdir(exist_ok=True)
        shutil.rmtree(name, ignore_errors=True)
        link(pathlib.Path(name), working / name)
    for name, text in job.files.items():  # some lie in runs/, such as a table of suspects
        write_text(pathlib.Path(name), text)
    if job.packages and subprocess.run([sys.executable, "-m", "pip", "install", "-q", *job.packages]).returncode:
        raise Problem(f"pip could not install {' '.join(job.packages)}; run the same command later.")


def link(path: pathlib.Path, target: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.absolute())


def find_competition(inputs: pathlib.Path, sample_table: str) -> pathlib.Path:
    """Return the folder that holds the sample submission, packed or not."""
    for name in (sample_table, f"{sample_table}.zip"):
        for path in find_all(inputs, name):
            return path.parent
    raise Problem(f"{inputs} holds no {sample_table}; accept the competition's rules, and run the same command again.")


def find_all(folder: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    for pattern in SEARCH_PATTERNS:
        yield from sorted(folder.glob(f"{pattern}/{name}"))


def run_stages(job: Job, gpus: int, deadline: float) -> tuple[Literal["done", "stopped", "failed"], str]:
    """Run one stage after another; return how that ended, and the last line on stderr of a stage that failed."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    for command in job.stages:
        uses_all = gpus > 1 and command[0] in GPU_STAGES and "--gpus" not in command
        more = ["--gpus", str(gpus)] if uses_all else []
        code, last_line = run_stage([*command, "--data", job.folder, *more], stop, deadline)
        if code and (stop.is_set() or time.time() > deadline):
            return "stopped", last_line
        if code:
            return "failed", last_line or f"{command[0]} ended with code {code} and without a message."
    return "done", ""


def run_stage(command: list[str], stop: threading.Event, deadline: float) -> tuple[int, str]:
    """Run `python -m pipeline COMMAND` until it ends, or is asked to; return its code and last line on stderr."""
    if stop.is_set() or time.time() > deadline:
        return 1, ""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "pipeline", *command], stderr=subprocess.PIPE, text=True, errors="replace"
    )
    last_line = [""]
    assert process.stderr is not None
    reader = threading.Thread(target=forward_lines, args=(process.stderr, last_line))
    reader.start()
    while process.poll() is None and not stop.wait(0.2) and time.time() < deadline:
        pass
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SAVING_S)
        except subprocess.TimeoutExpired:
            process.kill()
    code = process.wait()
    reader.join()
    return code, last_line[0]


def forward_lines(lines: IO[str], last_line: list[str]) -> None:
    for line in lines:
        print(line, end="", file=sys.stderr, flush=True)
        last_line[0] = line.strip() or last_line[0]


def list_outputs(run: str, working: pathlib.Path) -> dict[str, OutputFile]:
    """Return the files that belong to the run, but for locks and drafts, by their paths below `working`."""
    paths = [*(working / "runs" / run).rglob("*"), *(working / "submissions").glob(f"{run}.*")]
    paths += (working / "submissions" / f".{run}.shards").rglob("*")
    files = sorted(path for path in paths if path.is_file() and path.suffix not in (".lock", ".draft"))
    return {
        str(path.relative_to(working)): OutputFile(bytes=path.stat().st_size, sha256=sha256(path))
        for path in files if path.name != ".lock"
    }  # fmt: skip


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), time.time())
