"""All stages of a competition in one command, from folds to the upload, which resumes wherever it was stopped.

It stands above the stages: each step runs one of them, and what a step needs to know of another is in its files. A
start leaves alone what is there and fits, such as a trained fold, or held-out predictions of these networks with these
settings, and makes the rest. So the same command, after a kill at any moment, ends with the same submission.

A step that loads networks or many images is a process of its own, so that its memory ends with it, and what it sets up
in torch changes no bits of a later one. The others are calls.
"""
import functools
import json
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline import blend, check, config, folds, threshold
from pipeline.config import Settings
from pipeline.data import grouping
from pipeline.data.dataset import SegmentationDataset, competition_of, open_dataset
from pipeline.inference.oof import read_oof_histograms
from pipeline.inference.stored_threshold import (
    join_settings, oof_digests, other_network_message, predicted_with, read_threshold_json, stale_message,
)  # fmt: skip
from pipeline.kaggle import ledger, submit
from pipeline.kaggle.client import connect
from pipeline.model import checkpoint
from pipeline.options import Common, runs_of
from pipeline.paths import SUBMISSIONS, Fold, Run, TrainingFiles
from pipeline.report import gains
from pipeline.report.speeds import EPOCHS, IMAGES, REFINER_EPOCHS, Speeds, count_epochs
from pipeline.runtime.files import locked, read_json, sha256, stamp
from pipeline.runtime.launch import check_gpus, run_stage
from pipeline.runtime.problem import Problem, counted, sentence_of
from pipeline.runtime.steps import Step, Watch, Work, run_steps
from pipeline.submission import provenance
from pipeline.submission.plan import fingerprint, open_test_images, read_blend, weights_and_threshold
from pipeline.training import resume
from pipeline.training.fold_data import check_not_replaced

LONGEST_SAVE_S = 1800.0  # in which a trainer that an earlier start left behind evaluates, saves and ends


def main(
    common: Common, names: list[str], gpus: int, deterministic: bool, dry_run: bool, ledger_path: pathlib.Path
) -> None:
    """Run all steps that are left, and print what each of them gained.

    names: of runs to average; with one or none, the run that is trained here is predicted alone. dry_run: upload
    nothing. Raises Problem, before anything that takes long, for what is missing, such as data or a Kaggle token.
    """
    settings, run = common.settings, common.named_run()
    runs = runs_of(names) or [run]
    dataset, tests = check_before(settings, run, runs, gpus, dry_run, ledger_path)
    folder = pathlib.Path(settings.data.folder)
    with locked(run.lock("compete"), f"{run.folder} is being made by another `compete`; wait until it is done."):
        folds.main(settings, run, folder)
        table = grouping.read_folds(run.folds)
        numbers = list(common.fold or grouping.fold_numbers(table))
        wait_for_trainers(run, numbers)
        check_folds(common, run, runs, numbers)
        held_out = {fold: grouping.split(table, fold, dataset.names, dataset.group_key)[1] for fold in numbers}
        del dataset
        plan = Competing(common, settings, run, runs, held_out, tests, gpus, deterministic)
        upload = Step("submit", lambda watch: plan.submit(ledger_path, dry_run))
        try:
            run_steps([*plan.steps(), upload], Speeds(run).seconds)
        finally:
            if plan.is_checked:
                print("\n".join(plan.table()))


# --- before anything that takes long ---------------------------------------------------------------------------------


def check_before(
    settings: Settings, run: Run, runs: list[Run], gpus: int, dry_run: bool, ledger_path: pathlib.Path
) -> tuple[SegmentationDataset, int]:
    """Raise Problem for what would end the last steps after hours, if it can be seen now.

    Returns the training images and the number of test images.
    """
    competition = competition_of(settings.data.kind)
    names = [each.name for each in runs]
    if run.name not in names:
        named = " ".join(names)
        raise Problem(f'RUNS="{named}" leaves out {run.name}, the run that is trained here; name it there, too.')
    check_gpus(gpus)
    check_not_replaced(settings.data, joint_of(runs))
    ledger.read(ledger_path)
    dataset = open_dataset(settings.data, settings.task, pathlib.Path(settings.data.folder))
    tests = len(open_test_images(competition, settings)[0])
    if not dry_run:
        try:
            connect(competition)
        except Problem as problem:
            raise Problem(f"{str(problem).removesuffix('.')}; or add DRY_RUN=1, which uploads nothing.") from None
    return dataset, tests


def check_folds(common: Common, run: Run, runs: list[Run], numbers: list[int]) -> None:
    """Raise Problem if a fold is unknown, was trained with other settings, or is not trained in the other runs."""
    table = grouping.read_folds(run.folds)
    for number in numbers:
        grouping.check_fold(table, number)
        check_own_fold(common, run.fold(number))
    for other, number in ((other, number) for other in runs for number in numbers if other.name != run.name):
        check_other_fold(common, other, number)
    if len(runs) > 1:
        blend.check_same_folds(runs)


def check_own_fold(common: Common, files: Fold) -> None:
    """Raise Problem if an earlier start trained a fold of the run with other settings, or it would predict by others.

    A network predicts by the settings that trained it and SET=, so that `predict.` of a changed config has no effect.
    """
    settings = common.settings
    began = config.load(files.config, check_choices=False) if files.config.is_file() else settings
    if any(not line.startswith(resume.FREE_KEYS) for line in config.difference(began, settings)):
        resume.read_last(files, settings, repair=False)  # which says what differs, and what to do
    if not files.best.is_file():
        return
    later = config.for_later_stage(trained_settings(files.best), common.overrides).predict
    for name, key in (("tta", "tta"), ("tile_tta", "refiner_tta"), ("refine", "refine")):
        if (value := getattr(later, name)) != (wanted := getattr(settings.predict, name)):
            then, now = (f"predict.{key}={json.dumps(each)}" for each in (value, wanted))
            advice = f"add SET={now} to predict all folds so, or set it back"
            raise Problem(f"{files.best} was trained with {then}, but {common.config} has {now} by now; {advice}.")


def check_other_fold(common: Common, run: Run, number: int) -> None:
    """Raise Problem unless a fold of another run is trained to its end, its refiner too, for the same images."""
    files, data = run.fold(number), common.settings.data
    if not files.best.is_file():
        raise Problem(f"There is no {files.best}; train that fold first, or leave its run out of RUNS=.")
    trained = config.load(files.config, check_choices=False)
    if (trained.data.kind, trained.data.hq) != (data.kind, data.hq):
        raise Problem(f"{files.best} was trained with other data.kind or data.hq; leave its run out of RUNS=.")
    epochs_of: dict[TrainingFiles, int] = {files: trained.train.epochs}
    of_refiner = files.refiner.config  # perhaps of another config than that of the network
    own = config.load(of_refiner, check_choices=False) if of_refiner.is_file() else trained
    if own.refine and config.for_later_stage(trained, common.overrides, check_choices=False).predict.refine:
        epochs_of[files.refiner] = own.refine.epochs
    for network, epochs in epochs_of.items():
        if (done := count_epochs(network.log)) < epochs or not network.best.is_file():
            what = f"{network.log} has {done:.0f} of {epochs} epochs, so that {network.best} is not trained to its end"
            advice = f"end it with its `make train RUN={run.name} FOLD={number}`, or leave its run out of RUNS="
            raise Problem(f"{what}; {advice}.")


def trained_settings(best: pathlib.Path) -> Settings:
    """Return the settings in a `best.pt`, by which it predicts; the `config.yaml` beside it is of the last start."""
    return read_settings(best, stamp(best))


@functools.cache
def read_settings(best: pathlib.Path, stamp: str) -> Settings:
    """stamp: of the file, by which it is read again once it has changed."""
    return config.parse(checkpoint.load(best, keys=("settings",))["settings"], where=str(best), check_choices=False)


def wait_for_trainers(run: Run, numbers: list[int]) -> None:
    """Wait until trainers of a `compete` that was killed, which get a SIGTERM then, have saved and ended."""
    deadline, is_printed = time.monotonic() + LONGEST_SAVE_S, False
    for lock in (run.fold(number).lock for number in numbers if run.fold(number).lock.exists()):
        while True:
            try:
                with locked(lock, f"{lock.parent} is being trained by another process; wait for it, or stop it."):
                    break
            except Problem:
                if time.monotonic() > deadline:
                    raise
                if not is_printed:
                    print(f"Waiting for the trainer of an earlier start to save {lock.parent} and end.", flush=True)
                is_printed = True
                time.sleep(1)


# --- the steps -------------------------------------------------------------------------------------------------------


@dataclass
class Competing:
    """What all steps have in common."""

    common: Common
    settings: Settings
    run: Run  # that is trained here
    runs: list[Run]  # that are predicted, `run` among them
    held_out: dict[int, list[str]]  # fold -> names of its images
    tests: int  # test images
    gpus: int
    deterministic: bool
    is_checked: bool = False

    @property
    def numbers(self) -> list[int]:
        return list(self.held_out)

    @property
    def joint(self) -> Run:
        return self.run if len(self.runs) == 1 else joint_of(self.runs)

    def steps(self) -> list[Step]:
        """Return all steps but the last, in their order."""
        networks = len(self.numbers) * len(self.runs)
        all_held_out = sum(map(len, self.held_out.values()))
        steps = self.training_steps() + [self.validation_step(fold) for fold in self.numbers]
        steps.append(Step("threshold", lambda watch: threshold.main(self.run), fits(self.has_threshold)))
        if len(self.runs) > 1:
            work = Work(IMAGES, all_held_out * len(self.runs))
            steps.append(Step("blend", self.stage("blend", self.joint_arguments()), fits(self.is_blended), (work,)))
        arguments = [*self.joint_arguments(), *self.on_gpus()]
        work = Work(IMAGES, self.tests * networks / self.gpus, lambda: self.count_predicted() * networks / self.gpus)
        steps.append(Step("predict", self.stage("predict", arguments), fits(self.is_predicted), (work,)))
        steps.append(Step("check", lambda watch: self.check()))
        steps.append(Step("report", self.stage("report", self.arguments()), self.is_reported))
        return steps

    def training_steps(self) -> list[Step]:
        """Return a step for each fold; on several GPUs one for all, a fold a GPU."""
        own = [*self.on_gpus(), *(["--deterministic"] if self.deterministic else [])]
        if self.gpus > 1:
            parallel = min(self.gpus, len(self.numbers))
            work = [item for fold in self.numbers for item in self.training_work(fold, parallel)]
            title = f"train {counted(len(self.numbers), 'fold')} on {self.gpus} GPUs"
            return [Step(title, self.stage("train", [*self.arguments(*self.numbers), *own]), work=tuple(work))]
        stages = {fold: self.stage("train", [*self.arguments(fold), *own]) for fold in self.numbers}
        return [Step(f"train fold {fold}", stages[fold], work=self.training_work(fold)) for fold in self.numbers]

    def training_work(self, fold: int, parallel: int = 1) -> tuple[Work, ...]:
        """parallel: how many folds are trained at once."""
        files, refine = self.run.fold(fold), self.settings.refine
        count = functools.partial(count_epochs, parallel=parallel)
        work = [Work(EPOCHS, self.settings.train.epochs / parallel, functools.partial(count, files.log))]
        if refine and refine.short_epochs:
            work.append(Work(EPOCHS, refine.short_epochs / parallel, functools.partial(count, files.short.log)))
        if refine:
            work.append(Work(REFINER_EPOCHS, refine.epochs / parallel, functools.partial(count, files.refiner.log)))
        return tuple(work)

    def validation_step(self, fold: int) -> Step:
        images = len(self.held_out[fold])
        validate = self.stage("validate", self.arguments(fold))

        def measured(watch: Watch) -> None:
            started = time.monotonic()
            validate(watch)
            Speeds(self.run).note_predicted(images, time.monotonic() - started)

        return Step(f"validate fold {fold}", measured, fits(lambda: self.is_validated(fold)), (Work(IMAGES, images),))

    # --- what a stage is called with ---------------------------------------------------------------------------------

    def stage(self, name: str, arguments: list[str]) -> Callable[[Watch], None]:
        return lambda watch: run_stage(name, *arguments, watch=watch)

    def arguments(self, *numbers: int) -> list[str]:
        return self.common._replace(run=self.run.name, fold=numbers or None).arguments()

    def joint_arguments(self) -> list[str]:
        names = [run.name for run in self.runs] if len(self.runs) > 1 else []
        return self.of_all_runs._replace(run=self.joint.name, fold=self.numbers).arguments(names)

    @property
    def of_all_runs(self) -> Common:
        """Return the options without the overrides that were for the training of the run here."""
        return self.common._replace(set=[each for each in self.common.set if each.startswith(resume.ALWAYS_FREE)])

    def on_gpus(self) -> list[str]:
        return ["--gpus", str(self.gpus)] if self.gpus > 1 else []

    # --- what is there and fits --------------------------------------------------------------------------------------

    def later_settings(self, files: Fold) -> Settings:
        """Return the settings by which a trained fold predicts."""
        return config.for_later_stage(trained_settings(files.best), self.of_all_runs.overrides)

    def checkpoints(self, files: Fold) -> list[pathlib.Path]:
        """Return those by which a trained fold predicts: its refiner's, too, unless its settings leave that out."""
        return files.checkpoints(self.later_settings(files).predict.refine)

    def is_validated(self, fold: int) -> bool:
        """Whether `oof/` holds what `validate` would write again."""
        oof, settings = read_oof_histograms(self.run.oof(fold)), self.later_settings(self.run.fold(fold))
        refined = settings.predict.refine and self.run.fold(fold).refiner.best.exists()
        predictions = self.run.oof_predictions(fold)
        return (
            oof.names == self.held_out[fold] and bool(oof.refiner_sha256) == refined
            and oof.predicted_with == predicted_with(settings, refined)
            and not other_network_message(self.run, fold, oof) and sha256(predictions) == oof.predictions_sha256
        )  # fmt: skip

    def has_threshold(self) -> bool:
        """Whether `threshold.json` was chosen on exactly the predictions that are in `oof/`."""
        chosen_on = read_threshold_json(self.run.threshold).get("predictions")
        return bool(chosen_on) and chosen_on == oof_digests(self.run) and not stale_message(self.run)

    def is_blended(self) -> bool:
        """Whether `blend.json` was made by these networks, all of them, with these settings."""
        read_blend(self.joint.blend, self.runs)
        stored, used, how = read_json(self.joint.blend), set[str](), list[str]()
        for run, fold in ((run, fold) for run in self.runs for fold in self.numbers):
            paths = self.checkpoints(run.fold(fold))
            used.update(map(str, paths))
            how.append(predicted_with(self.later_settings(run.fold(fold)), refined=len(paths) > 1))
        return stored["checkpoints"].keys() == used and stored["predicted_with"] == join_settings(how)

    def is_predicted(self) -> bool:
        """Whether the submission is that of these networks, weights, threshold, settings and test images.

        One whose provenance names no test images, as an earlier version wrote, is predicted again.
        """
        submission = self.joint.submission
        origin = provenance.find_by_file(SUBMISSIONS, submission)
        weights, _, facts = weights_and_threshold(self.joint, self.runs, self.numbers)
        folds = [Fold(best.parent) for best in weights]
        paths = [path for files in folds for path in self.checkpoints(files)]
        is_newer = len(self.runs) == 1 or self.joint.blend.stat().st_mtime <= submission.stat().st_mtime
        trained, now = trained_settings(folds[0].best), self.later_settings(folds[0])
        names, images = open_test_images(competition_of(now.data.kind), now)
        return (
            origin.checkpoints == {str(path): sha256(path) for path in paths} and is_newer
            and origin.threshold == facts["threshold"] and submit.gives_same_masks(origin, trained, now)
            and origin.test_images == fingerprint(images, names) and not origin.bad_images
        )  # fmt: skip

    def is_reported(self) -> bool:
        """Whether the report is newer than all that it shows."""
        page, sources = self.run.report_page, [self.run.oof(fold) for fold in self.numbers]
        sources += [self.run.threshold, self.run.submission, *(self.run.fold(fold).log for fold in self.numbers)]
        return page.is_file() and all(page.stat().st_mtime > path.stat().st_mtime for path in sources if path.exists())

    def count_predicted(self) -> float:
        """Return how many test images are in shards, at least, if the submission is not done."""
        shards = len(list(self.joint.shards.glob("[0-9]*.csv.gz")))
        return min(self.tests, shards * self.settings.predict.rows_per_shard)

    # --- the last steps ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        data = self.settings.data
        check.main(self.joint.submission, pathlib.Path(data.folder), data.kind)
        self.is_checked = True

    def submit(self, ledger_path: pathlib.Path, dry_run: bool) -> None:
        data = self.settings.data
        submit.main(
            self.joint, None, self.numbers, pathlib.Path(data.folder), ledger_path, None, dry_run, False,
            overrides=[], predict_arguments=self.joint_arguments(), kind=data.kind,  # the step before has compared SET=
        )  # fmt: skip

    def table(self) -> list[str]:
        """Return the lines at the end; why there is no table is one of them, and hides no error before."""
        try:
            lines = gains.table(self.run, self.joint)
        except (Problem, OSError, ValueError, LookupError, TypeError) as error:
            reason = sentence_of(error) if isinstance(error, (Problem, OSError)) else repr(error)
            lines = [f"The table could not be made: {reason}"]
        submission = self.joint.submission
        digest = sha256(submission) if submission.is_file() else "unknown, since the file is gone"
        return ["", *lines, "", f"{submission}, checked: {self.tests} images, sha256 {digest}"]


def joint_of(runs: list[Run]) -> Run:
    """Return the run that names the submission of these."""
    return Run("+".join(run.name for run in runs))


def fits(check: Callable[[], bool]) -> Callable[[], bool]:
    """Return a check that is false where a file is missing or damaged."""

    def check_files() -> bool:
        try:
            return check()
        except (Problem, OSError, ValueError, LookupError):
            return False

    return check_files
