"""One script that Kaggle can run: the code and the configs of this checkout in base64, and a job for them."""
import ast
import base64
import io
import json
import pathlib
import re
import tarfile

from pydantic import ValidationError

from pipeline.config import Settings
from pipeline.kaggle.session import Job
from pipeline.runtime import git
from pipeline.runtime.problem import Problem

CODE = "pipeline"
PACKED_FOLDERS = (CODE, "configs")
MAX_SCRIPT_BYTES = 1_000_000  # our own bound, four times of what the code needs; Kaggle's is not documented
SMP = "segmentation-models-pytorch>=0.6,<0.7"
LOSSES_OF_SMP = ("focal", "lovasz")
SCRIPT = '''\
# {title}
# Made by `make {stage} ON=kaggle`. It unpacks the code and runs the job; the files of the run are its output.
JOB = {job!r}
ARCHIVE = {archive!r}

import base64, io, os, subprocess, sys, tarfile, tempfile

checkout = tempfile.mkdtemp()
with tarfile.open(fileobj=io.BytesIO(base64.b64decode(ARCHIVE)), mode="r:xz") as archive:
    archive.extractall(checkout, filter="data")
command = [sys.executable, "-u", "-m", "pipeline.kaggle.session", os.getcwd()]
sys.exit(subprocess.run(command, input=JOB, cwd=checkout, text=True).returncode)
'''


def check_committed(config_path: str, stage: str, force: bool) -> bool:
    """Return whether code and config are exactly those of the commit, which the run's provenance names.

    Raise Problem if they are not, unless `force`. An untracked module or config is not of the commit either.
    """
    if not git.commit():
        return False
    names = git.uncommitted(CODE, config_path)
    if names and not force:
        what = f"{names[0]} and {len(names) - 1} more files are" if names[1:] else f"{names[0]} is"
        why = "the commit would not say what ran"
        advice = f"commit the changes, or send them as they are: make {stage} ON=kaggle FORCE=1"
        raise Problem(f"{what} not as committed, so that {why}; {advice}.")
    return not names


def needed_packages(settings: Settings) -> list[str]:
    """Return what the config needs and Kaggle's image lacks."""
    uses_smp = settings.model.arch.startswith("smp.") or any(name in settings.loss.weights for name in LOSSES_OF_SMP)
    return [SMP] if uses_smp else []


def pack(title: str, job: Job) -> str:
    """Return the script of a kernel."""
    packed = base64.b64encode(pack_checkout(job)).decode()
    script = SCRIPT.format(title=title, stage=main_stage(job.stages), job=job.model_dump_json(), archive=packed)
    if len(script) > MAX_SCRIPT_BYTES:
        raise Problem(f"The script for Kaggle has {len(script):,} bytes; {MAX_SCRIPT_BYTES:,} are allowed.")
    return script


def pack_checkout(job: Job) -> bytes:
    """Return a .tar.xz of PACKED_FOLDERS: tracked files and untracked code, or all files outside of a git checkout.

    Untracked code gets here only by FORCE=1.
    """
    if git.commit():
        names = git.split_names(git.git("ls-files", "-z", "--", *PACKED_FOLDERS)) + git.untracked(CODE)
    else:
        paths = [path for name in PACKED_FOLDERS for path in (git.CHECKOUT / name).rglob("*")]
        names = [str(path.relative_to(git.CHECKOUT)) for path in paths if "__pycache__" not in path.parts]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name in sorted(names):
            path = git.CHECKOUT / name
            if path.is_file():
                add(archive, name, path.read_bytes())
        state = {"commit": job.commit, "clean": job.clean}
        add(archive, git.PACKED_COMMIT.name, json.dumps(state).encode())
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file without times and owners: the same code gives the same bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def read_job(script: str) -> Job | None:
    """Return the job of a script that `pack` made; None for another script."""
    match = re.search(r"^JOB = (.+)$", script, flags=re.MULTILINE)
    try:
        return Job.model_validate_json(ast.literal_eval(match[1])) if match else None
    except (ValidationError, ValueError, SyntaxError, TypeError):
        return None


def main_stage(stages: list[list[str]]) -> str:
    """Return the stage that a session is for, as `make STAGE ON=kaggle` names it; others come with it."""
    return next(name for name, *_ in stages if name != "folds")


def read_local_file(name: str) -> str:
    """Return the text of a file that a job takes along; Problem unless it can lie there where it lies here."""
    if pathlib.Path(name).is_absolute() or ".." in pathlib.Path(name).parts:
        raise Problem(f"{name} must lie in this folder, since it goes to Kaggle under the same name.")
    try:
        return pathlib.Path(name).read_text()
    except (OSError, UnicodeDecodeError):
        raise Problem(f"{name} cannot be read; check its path.") from None
