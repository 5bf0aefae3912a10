"""Every path that a stage reads or writes, relative to the folder where `make` runs."""
import pathlib

RUNS = pathlib.Path("runs")
SUBMISSIONS = pathlib.Path("submissions")
LEDGER = SUBMISSIONS / "ledger.csv"


class TrainingFiles:
    """What the training of one network writes; `prefix` starts their names."""

    def __init__(self, folder: pathlib.Path, best: str, prefix: str = ""):
        self.folder = folder
        self.all = folder / f"{prefix}*" if prefix else folder  # of them, for messages
        self.best = folder / best  # the weights of the epoch with the best validation score
        self.config = folder / f"{prefix}config.yaml"  # the settings that trained it
        self.last = folder / f"{prefix}last.pt"  # all that a resume needs
        self.previous = folder / f"{prefix}last.previous.pt"  # the last.pt before that
        self.damaged = folder / f"{prefix}last.damaged.pt"  # a last.pt that could not be read, renamed
        self.lock = folder / ".lock"  # locked while any network of this folder is trained
        self.log = folder / f"{prefix}log.jsonl"  # one row an epoch
        self.tensorboard = folder / f"{prefix}tb"
        self.is_short = prefix == "short."  # of the network of `refine.short_epochs`


class Fold(TrainingFiles):
    """`runs/RUN/fold{k}/`: one network, trained on the other folds, and the refiner of its edges, if it has one."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder, "best.pt")
        self.refiner = TrainingFiles(folder, "refiner.pt", "refiner.")
        self.pseudo = folder / "pseudo.csv"  # which pseudo-labels it is trained on, and how unsure they are
        self.short = TrainingFiles(folder, "short.pt", "short.")  # of the network of `refine.short_epochs`
        self.coarse = folder / "coarse.zip"  # coarse predictions of the images that the refiner trains on

    def checkpoints(self, with_refiner: bool = True) -> list[pathlib.Path]:
        """Return `best.pt` and, if there is one, `refiner.pt`."""
        return [self.best, *([self.refiner.best] if with_refiner and self.refiner.best.exists() else [])]


class Run:
    """`runs/RUN/` and its submission. What several runs make together, a blend or a comparison, is `Run("a+b")`."""

    def __init__(self, name: str):
        self.name = name
        self.folder = RUNS / name
        self.folds = self.folder / "folds.csv"
        self.inspected = self.folder / "inspected.json"  # which images and masks are good, and when they were read
        self.threshold = self.folder / "threshold.json"
        self.blend = self.folder / "blend.json"  # the weights of several runs
        self.compete = self.folder / "compete.json"  # how long predictions took: `compete` tells the time left
        self.remote = self.folder / "remote.json"  # what came from sessions on Kaggle
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

    def untrained_message(self) -> str:
        """Return what a stage says that needs a network of this run."""
        if self.blend.is_file():
            how = 'RUNS="a b" for predict and submit, RUN=a for a single one'
            return f"{self.folder} holds a blend of other runs and no network of its own; name those runs: {how}."
        return f"{self.folder} has no trained fold; run `make train FOLD=0` first."

    def oof(self, fold: int) -> pathlib.Path:
        return self.folder / "oof" / f"fold{fold}.npz"

    def oof_predictions(self, fold: int) -> pathlib.Path:
        return self.folder / "oof" / f"fold{fold}.zip"  # probabilities or class maps, for the report

    def lock(self, stage: str) -> pathlib.Path:
        return self.folder / f".{stage}.lock"  # locked while that stage writes
