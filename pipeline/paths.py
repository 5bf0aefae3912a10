"""Every path that a stage reads or writes, relative to the folder where `make` runs."""
import pathlib

RUNS = pathlib.Path("runs")
SUBMISSIONS = pathlib.Path("submissions")
LEDGER = SUBMISSIONS / "ledger.csv"


class Fold:
    """`runs/RUN/fold{k}/`: one network, trained on the other folds."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.config = folder / "config.yaml"  # the settings that trained it
        self.best = folder / "best.pt"  # the weights of the epoch with the best validation score
        self.last = folder / "last.pt"  # all that a resume needs
        self.previous = folder / "last.previous.pt"  # the last.pt before that
        self.damaged = folder / "last.damaged.pt"  # a last.pt that could not be read, renamed to make room for the next
        self.lock = folder / ".lock"  # locked while it is trained
        self.log = folder / "log.jsonl"  # one row an epoch
        self.tensorboard = folder / "tb"


class Run:
    """`runs/RUN/` and its submission. What several runs make together, a blend or a comparison, is `Run("a+b")`."""

    def __init__(self, name: str):
        self.name = name
        self.folder = RUNS / name
        self.folds = self.folder / "folds.csv"
        self.threshold = self.folder / "threshold.json"
        self.blend = self.folder / "blend.json"  # the weights of several runs
        self.report = self.folder / "report"  # the page and its tables
        self.report_page = self.report / "index.html"
        self.compare_page = self.folder / "compare" / "index.html"
        self.demo_ledger = self.folder / "ledger.csv"
        self.submission = SUBMISSIONS / f"{name}.csv.gz"
        self.provenance = SUBMISSIONS / f"{name}.json"  # what the submission was made from
        self.shards = SUBMISSIONS / f".{name}.shards"  # of a submission that is being predicted
        self.submission_lock = SUBMISSIONS / f".{name}.lock"  # locked while it is written

    def fold(self, number: int) -> Fold:
        return Fold(self.folder / f"fold{number}")

    def trained_folds(self) -> list[int]:
        """Return the sorted numbers of the folds that have a `best.pt`."""
        numbers = [path.parent.name.removeprefix("fold") for path in self.folder.glob("fold[0-9]*/best.pt")]
        return sorted(int(number) for number in numbers if number.isdecimal())  # a copy such as fold0.bak is no fold

    def oof(self, fold: int) -> pathlib.Path:
        return self.folder / "oof" / f"fold{fold}.npz"

    def oof_predictions(self, fold: int) -> pathlib.Path:
        return self.folder / "oof" / f"fold{fold}.zip"  # or class maps, for the report

    def lock(self, stage: str) -> pathlib.Path:
        return self.folder / f".{stage}.lock"  # locked while that stage writes
