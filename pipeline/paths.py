"""Every path that a stage reads or writes, relative to the folder where `make` runs."""
import pathlib
from dataclasses import dataclass

RUNS = pathlib.Path("runs")
SUBMISSIONS = pathlib.Path("submissions")
LEDGER = SUBMISSIONS / "ledger.csv"


@dataclass(frozen=True)
class Fold:
    """`runs/RUN/fold{k}/`: one network, trained on the other folds."""

    folder: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        return self.folder / "config.yaml"  # the settings that trained it

    @property
    def best(self) -> pathlib.Path:
        return self.folder / "best.pt"  # the weights of the epoch with the best validation score

    @property
    def last(self) -> pathlib.Path:
        return self.folder / "last.pt"  # all that a resume needs

    @property
    def previous(self) -> pathlib.Path:
        return self.folder / "last.previous.pt"  # the last.pt before that

    @property
    def damaged(self) -> pathlib.Path:
        return self.folder / "last.damaged.pt"  # a last.pt that could not be read, renamed to make room for the next

    @property
    def lock(self) -> pathlib.Path:
        return self.folder / ".lock"  # locked while it is trained

    @property
    def log(self) -> pathlib.Path:
        return self.folder / "log.jsonl"

    @property
    def tensorboard(self) -> pathlib.Path:
        return self.folder / "tb"


@dataclass(frozen=True)
class Run:
    """`runs/RUN/` and its submission."""

    name: str

    @property
    def folder(self) -> pathlib.Path:
        return RUNS / self.name

    @property
    def folds(self) -> pathlib.Path:
        return self.folder / "folds.csv"

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

    @property
    def threshold(self) -> pathlib.Path:
        return self.folder / "threshold.json"

    def lock(self, stage: str) -> pathlib.Path:
        return self.folder / f".{stage}.lock"  # locked while that stage writes

    @property
    def blend(self) -> pathlib.Path:
        return self.folder / "blend.json"  # of several runs, `Run("a+b")`: their weights

    @property
    def report(self) -> pathlib.Path:
        return self.folder / "report"  # the page and its tables

    @property
    def report_page(self) -> pathlib.Path:
        return self.report / "index.html"

    @property
    def compare_page(self) -> pathlib.Path:
        return self.folder / "compare" / "index.html"  # of two runs, `Run("a+b")`

    @property
    def submission(self) -> pathlib.Path:
        return SUBMISSIONS / f"{self.name}.csv.gz"

    @property
    def provenance(self) -> pathlib.Path:
        return SUBMISSIONS / f"{self.name}.json"  # what the submission was made from

    @property
    def demo_ledger(self) -> pathlib.Path:
        return self.folder / "ledger.csv"

    @property
    def shards(self) -> pathlib.Path:
        return SUBMISSIONS / f".{self.name}.shards"  # of a submission that is being predicted

    @property
    def submission_lock(self) -> pathlib.Path:
        return SUBMISSIONS / f".{self.name}.lock"  # locked while it is written
