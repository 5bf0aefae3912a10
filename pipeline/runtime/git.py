"""Which code runs: the commit that is checked out, and whether the files match it.

The ledger is ignored: it is tracked and each submission adds to it, but no stage's output depends on it.
"""
import contextlib
import hashlib
import importlib.metadata
import json
import pathlib
import subprocess
from typing import Any

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
PACKED_COMMIT = CHECKOUT / "packed-commit.json"  # what a copy that was sent to Kaggle says instead of git
ALL_BUT_THE_LEDGER = (".", ":(exclude)submissions/ledger.csv")
# The packages that a prediction depends on.
PACKAGES = ("torch", "numpy", "pillow", "opencv-python-headless", "segmentation-models-pytorch", "timm")


def commit() -> str:
    """Return the full hash of the checked-out commit; "" if this code is not in a git checkout, or packed from one."""
    tracked = git("ls-files", "--error-unmatch", __file__)
    return (tracked and git("rev-parse", "HEAD")) or packed_state().get("commit", "")


def is_clean() -> bool:
    """Return whether every tracked file matches the commit. Untracked files do not count."""
    if state := packed_state():
        return state["clean"]
    return git("status", "--porcelain", "--untracked-files=no", "--", *ALL_BUT_THE_LEDGER) == ""


def uncommitted(*untracked_too: str) -> list[str]:
    """Return the tracked files that differ from the commit, and untracked ones of these files and folders.

    Names are relative to the checkout; what git ignores does not count. Empty outside of a git checkout.
    """
    changed = git("diff", "--name-only", "--relative", "-z", "HEAD", "--", *ALL_BUT_THE_LEDGER)
    return sorted([*split_names(changed), *untracked(*untracked_too)])


def untracked(*names: str) -> list[str]:
    return split_names(git("ls-files", "--others", "--exclude-standard", "-z", "--", *names)) if names else []


def split_names(listed: str | None) -> list[str]:
    """Split what git lists with -z."""
    return list(filter(None, (listed or "").split("\0")))


def packed_state() -> dict[str, Any]:
    """Return {"commit": hash, "clean": bool} of a packed copy of a checkout; {} if this is none."""
    return json.loads(PACKED_COMMIT.read_text()) if PACKED_COMMIT.is_file() else {}


def same_code(one: str, other: str) -> bool:
    """Return whether two commits have the same files."""
    return git("diff", "--quiet", one, other, "--", *ALL_BUT_THE_LEDGER) is not None


def code_digest() -> str:
    """Return the SHA-256 of the pipeline's source files, in hex; it distinguishes uncommitted code too."""
    package, digest = CHECKOUT / "pipeline", hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def packages() -> dict[str, str]:
    """Return {name: version} of those PACKAGES that are installed."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def git(*arguments: str) -> str | None:
    """Run git in the checkout and return its output; None if it fails or is not installed."""
    try:
        process = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return process.stdout.strip() if process.returncode == 0 else None
