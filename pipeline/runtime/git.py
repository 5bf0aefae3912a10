"""Which code is at work: the checkout's commit, and whether its files are those of the commit.

The ledger is left out of account: it is tracked and each submission adds to it, but no stage's artefact depends on it.
"""
import contextlib
import hashlib
import importlib.metadata
import pathlib
import subprocess

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
ALL_BUT_THE_LEDGER = (".", ":(exclude)submissions/ledger.csv")
# What a prediction comes out of, beside our own code.
PACKAGES = ("torch", "numpy", "pillow", "opencv-python-headless", "segmentation-models-pytorch", "timm")


def commit() -> str:
    """The full hash of the commit that is checked out; "" where git does not know this code."""
    tracked = git("ls-files", "--error-unmatch", __file__)
    return (tracked and git("rev-parse", "HEAD")) or ""


def is_clean() -> bool:
    """Whether every tracked file is as the commit has it. Files that git does not track are no matter."""
    return git("status", "--porcelain", "--untracked-files=no", "--", *ALL_BUT_THE_LEDGER) == ""


def same_code(one: str, other: str) -> bool:
    """Whether two commits hold the same files."""
    return git("diff", "--quiet", one, other, "--", *ALL_BUT_THE_LEDGER) is not None


def code_digest() -> str:
    """Hex digest of the pipeline's own files as they are: it tells code apart that no commit has, too."""
    package, found = CHECKOUT / "pipeline", hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def packages() -> dict[str, str]:
    """The versions of PACKAGES, as far as they are installed."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def git(*words: str) -> str | None:
    """What a git command prints; None when it fails, or there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
