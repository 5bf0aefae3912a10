"""A git checkout whose stages take no time: for tests of what happens around them in a session on Kaggle."""
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).parent.parent
REAL = (
    "pipeline/__init__.py", "pipeline/kaggle/__init__.py", "pipeline/kaggle/session.py", "pipeline/runtime/__init__.py",
    "pipeline/runtime/files.py", "pipeline/runtime/problem.py",
)  # fmt: skip
# BEHAVIOUR says what `train` does, beside printing and writing the file that its successor finds.
STAGES = '''\
import os, pathlib, signal, sys, time

stage, arguments = sys.argv[1], sys.argv[2:]
fold = pathlib.Path("runs") / arguments[arguments.index("--run") + 1] / "fold0"
fold.mkdir(parents=True, exist_ok=True)
behaviour = os.environ.get("BEHAVIOUR", "")
print(f"{stage} begins: {' '.join(arguments)}")
if stage == "train":
    data = pathlib.Path(arguments[arguments.index("--data") + 1])
    last = fold / "last.pt"
    print(f"resumed from {last.read_text()}" if last.exists() else "from scratch")
    print(f"{len(list(data.iterdir()))} files of the competition in {data.resolve()}")
    print(f"environment: {sorted(os.environ.items())}")
    for step in range(40):
        print(f"step {step} éß")
    last.write_text(f"{behaviour or 'end'}")
    if behaviour == "stop":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("train: stopped, saved"))
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
    if behaviour.startswith("wait"):
        while not pathlib.Path(behaviour.partition(" ")[2]).exists():
            time.sleep(0.05)
    if behaviour == "table":
        (fold.parent / "folds.csv").write_text("folds")
    if behaviour == "fail":
        sys.exit("train: The loss is not finite at step 40; lower train.learning_rate.")
    (fold / "best.pt").write_text("weights")
    (fold / "coarse.zip").write_text("large")
    (fold.parent / "inspected.json").write_text("times")
'''


def make(folder: pathlib.Path) -> pathlib.Path:
    """Write the checkout and commit it."""
    for name in REAL:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
        else:
            (folder / name).touch()
    (folder / "pipeline/__main__.py").write_text(STAGES)
    (folder / "pipeline/runtime/git.py").touch()
    (folder / "configs").mkdir()
    (folder / "configs/x.yaml").touch()
    identity = ("-c", "user.name=x", "-c", "user.email=x")
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder
