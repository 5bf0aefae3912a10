"""Stages on Kaggle's GPUs: start a session or find the running one, follow its log, and bring home what it made.

Each session of a run is a kernel of its own, NAME-1, NAME-2, ..., and reads the outputs of the one before. So all that
is known of a run's sessions is at Kaggle, and the same command goes on after any interruption: it finds the last
kernel, reads from its script which command it runs, and follows it, brings home its outputs, or starts the next one.

`session` is what runs there, `packing` makes its script, `kernels` has the calls, `homecoming` brings outputs home.
"""
import collections
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.config import Data, Settings
from pipeline.data.competition import Competition
from pipeline.data.dataset import COMPETITIONS, competition_of
from pipeline.kaggle import homecoming
from pipeline.kaggle.client import ClientTooOld, connect
from pipeline.kaggle.kernels import Kernels, Status
from pipeline.kaggle.packing import (
    PACKED_FOLDERS, check_committed, main_stage, needed_packages, pack, read_job, read_local_file
)  # fmt: skip
from pipeline.kaggle.retry import NETWORK_ERRORS, explain, is_transient
from pipeline.kaggle.session import NO_GPU, Job
from pipeline.paths import RUNS, SUBMISSIONS, Run
from pipeline.runtime import git
from pipeline.runtime.files import digest, locked
from pipeline.runtime.problem import Problem

TRAINING_STAGES = ("train", "refine")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # between looks at a session, doubled while it prints nothing
MISSING_LOOKS = 7  # in a minute, at a new kernel that Kaggle does not know yet; one that stays unknown was deleted
OUTAGE_S = 6 * 3600.0  # of the network, after which following a session ends
NAME_CHARS = 24  # of a run's name in a slug; Kaggle's titles have 50 at most
LAST_LINES = 3  # of a log, in the message of a session that failed without a message of ours
OUR_LINE = re.compile(r"[a-z-]+: \S")  # how the command line begins the sentence of a problem


@dataclass(frozen=True)
class Part:
    """One session of a run at Kaggle."""

    number: int  # from 1
    slug: str
    status: Status
    job: Job | None  # None: its script is not ours


def main(run: Run, stages: list[list[str]], settings: Settings, config_path: str, gpu: str, force: bool) -> None:
    """Run the stages in a session on Kaggle, up to their outputs at home.

    stages: command lines of `python -m pipeline`, without --data. settings: of config_path, with overrides.
    gpu: Kaggle's machine shape, or NO_GPU. force: send the code even if it is not that of a commit.
    """
    competition = competition_at_kaggle(settings)
    check_nothing_large(settings)
    is_committed = check_committed(config_path, main_stage(stages), force)
    folder = folder_in_session(settings.data.folder)
    local_files = [name for name in (config_path, settings.data.exclude, settings.data.relabel) if name]
    check_outside(folder, local_files)
    job = Job(
        run=run.name, stages=stages, gpu=gpu, packages=needed_packages(settings),
        files={name: read_local_file(name) for name in local_files},
        sample_table=competition.sample_table, folder=folder,
        commit=git.commit(), clean=is_committed, code=git.code_digest(),
    )  # fmt: skip
    with locked(run.lock("remote"), f"Another command follows the session of {run.name}; wait until it is done."):
        kernels = Kernels(connect(competition))
        try:
            run_job(kernels, run, job)
        except KeyboardInterrupt:
            goes_on = f"What was started goes on at Kaggle ({overview_page(kernels)})"
            raise Problem(
                f"{goes_on}; the same command follows it again, `make remote-cancel RUN={run.name}` cancels it."
            ) from None


def check_nothing_large(settings: Settings) -> None:
    """Raise Problem if the settings name a submission or weights: a session gets code, config and small tables only."""
    encoder = settings.model.encoder_weights or ""  # a file, unless it is a plain name such as imagenet
    named = {
        "data.pseudo": settings.data.pseudo, "train.init_from": settings.train.init_from,
        "refine.init_from": settings.refine.init_from if settings.refine else None,
        "model.encoder_weights": encoder if pathlib.Path(encoder).is_file() or re.search(r"[/.]", encoder) else None,
    }  # fmt: skip
    for setting, path in named.items():
        if path is not None:
            raise Problem(f"{setting} is {path}, which is not sent to Kaggle; train this run here, without ON=kaggle.")


def check_outside(folder: str, names: list[str]) -> None:
    """Raise Problem if a file to send lies in the data folder, in whose place a session has Kaggle's, only read."""
    for name in names:
        if pathlib.PurePath(name).is_relative_to(folder):
            what = f"{name} lies in data.folder, which a session on Kaggle has from Kaggle"
            raise Problem(f"{what}; move it out of {folder}.")


def folder_in_session(folder: str) -> str:
    """Return the name of the competition's folder in the session's checkout: that of the config, if it can lie there.

    The run remembers it, so that later stages find their data here as there.
    """
    names = pathlib.PurePath(folder).parts
    taken = ("/", *PACKED_FOLDERS, RUNS.name, SUBMISSIONS.name)
    return folder if names and names[0] not in taken and ".." not in names else Data().folder


def run_job(kernels: Kernels, run: Run, job: Job) -> None:
    """Start a session for the job unless one runs or ran already; after one that stopped at its time limit, the next.

    Returns when the job is done and its outputs are at home.
    """
    part = newest_part(kernels, run)
    if part is not None and (finished := finished_part(kernels, run, part, job)) is not None:
        state, _ = bring_home(kernels, run, finished, finished.status)
        if state == "done":
            print(f"{kernels.page(finished.slug)} has done that already.")
            return
    if part is None or not belongs_to(part, job) or was_reported(run, part):
        part = start_part(kernels, run, job, part)
    while True:
        status = follow(kernels, part)
        state, message = bring_home(kernels, run, part, status)
        if state == "done":
            return
        if state == "failed":
            homecoming.note(run, reported=part.slug)  # so that the same command starts another session
            raise Problem(message)
        print("The session stopped before its time limit; the next one goes on from its checkpoints.")
        part = start_part(kernels, run, job, part)


# --- which session ---------------------------------------------------------------------------------------------------


def newest_part(kernels: Kernels, run: Run) -> Part | None:
    """Return the last session of the run that Kaggle knows; None if there is none."""
    number, newest, started = 0, None, homecoming.read_record(run).started
    while (status := kernels.status(slug := slug_of(run, number + 1, kernels.client.competition))) is not None or (
        slug == started and kernels.appears(slug)  # a start that was interrupted, which Kaggle may not list yet
    ):
        number, newest = number + 1, status or Status("QUEUED", "")
    if newest is None:
        return None
    slug = slug_of(run, number, kernels.client.competition)
    return Part(number, slug, newest, read_job(kernels.script(slug)))


def slug_of(run: Run, number: int, competition: Competition) -> str:
    """Return the name of a session's kernel: its run's name, a digest that keeps similar ones apart, and its number."""
    name = re.sub("[^a-z0-9]+", "-", run.name.lower())[:NAME_CHARS].strip("-") or "run"
    return f"{name}-{digest(competition.slug, run.name)[:6]}-{number}"


def belongs_to(part: Part, job: Job) -> bool:
    """Return whether a session is of the same command; raise Problem if it is of another one that still runs."""
    if part.job is not None and part.job.tag == job.tag:
        if part.status.is_active and part.job.code != job.code:
            print(f"The session runs the code of commit {part.job.commit[:7] or 'unknown'}, which is not what is here.")
        return part.status.is_active or part.job.code == job.code
    if part.status.is_active:
        other = "; ".join(map(shlex.join, part.job.stages)) if part.job else "another script"
        advice = f"wait (make remote-status RUN={job.run}), or cancel it (make remote-cancel RUN={job.run})"
        raise Problem(f"A session of {job.run} is running: {other}; {advice}.")
    return False


def finished_part(kernels: Kernels, run: Run, newest: Part, job: Job) -> Part | None:
    """Return a session before the newest one that has done the same job, unless a later one has trained since.

    So the commands of a whole submission go on where they were interrupted: those before are done.
    """
    part = newest
    while part.number > 1 and part.job is not None and not trains(part.job) and part.job.tag != job.tag:
        slug = slug_of(run, part.number - 1, kernels.client.competition)
        if (status := kernels.status(slug)) is None:
            return None
        part = Part(part.number - 1, slug, status, read_job(kernels.script(slug)))
    is_same = part is not newest and part.job is not None and (part.job.tag, part.job.code) == (job.tag, job.code)
    return part if is_same and part.status.name == "COMPLETE" else None


def names_of(job: Job) -> list[str]:
    return [name for name, *_ in job.stages]


def trains(job: Job) -> bool:
    return any(stage in TRAINING_STAGES for stage in names_of(job))


def was_reported(run: Run, part: Part) -> bool:
    """Return whether the part failed and the user has seen that."""
    return not part.status.is_active and homecoming.read_record(run).reported == part.slug


def start_part(kernels: Kernels, run: Run, job: Job, last: Part | None) -> Part:
    """Start the session after `last`, with the outputs of the last one that has any."""
    number = last.number + 1 if last else 1
    source = next((one for one in earlier_slugs(kernels, run, number) if has_outputs(kernels, one)), None)
    left = homecoming.read_outputs(kernels, run, source, kernels.outputs(source)).files if source else {}
    homecoming.check_nothing_made_here(run, main_stage(job.stages), left)
    if "train" not in names_of(job) and not any(name.endswith("best.pt") for name in left):
        what = f"No session of {run.name} on Kaggle has trained a network"
        raise Problem(f"{what}; run `make train ON=kaggle RUN={run.name}` first.")
    if job.gpu != NO_GPU:
        check_quota(kernels)
    slug = slug_of(run, number, kernels.client.competition)
    title = slug.replace("-", " ")  # Kaggle makes the slug of it
    homecoming.note(run, started=slug)
    kernels.push(slug, title, pack(title, job), source, job.gpu, internet=bool(job.packages))
    print(f"Started {kernels.page(slug)}; it runs {'; '.join(map(shlex.join, job.stages))}.", flush=True)
    return Part(number, slug, Status("QUEUED", ""), job)


def earlier_slugs(kernels: Kernels, run: Run, number: int) -> list[str]:
    return [slug_of(run, earlier, kernels.client.competition) for earlier in range(number - 1, 0, -1)]


def has_outputs(kernels: Kernels, slug: str) -> bool:
    return (status := kernels.status(slug)) is not None and status.name == "COMPLETE"


def check_quota(kernels: Kernels) -> None:
    """Print how many GPU hours are left this week; raise Problem if there are none."""
    try:
        quota = kernels.quota()
    except ClientTooOld as problem:  # which can start a session all the same
        print(f"How many GPU hours are left is unknown: {problem}")
        return
    if quota is None:
        return
    resets = f", which begins again at {quota.resets:%Y-%m-%d %H:%M} UTC" if quota.resets else ""
    if quota.left_h <= 0:
        raise Problem(f"No GPU hour is left of this week's {quota.total_h:.0f}{resets}; wait, or take GPU={NO_GPU}.")
    print(f"GPU hours left: {quota.left_h:.1f} of this week's {quota.total_h:.0f}{resets}.")


# --- its log ---------------------------------------------------------------------------------------------------------


class LogPrinter:
    """Print a log that starts again at each connection: each character once, whatever pieces it comes in."""

    def __init__(self) -> None:
        self.printed: collections.Counter[str] = collections.Counter()  # characters, by stream
        self.last_lines: collections.deque[str] = collections.deque(maxlen=50)

    def print_new(self, events: Iterable[tuple[str, str]]) -> None:
        seen: collections.Counter[str] = collections.Counter()
        for stream, text in events:
            new = text[max(0, self.printed[stream] - seen[stream]) :]
            seen[stream] += len(text)
            if new:
                self.printed[stream] += len(new)
                print(new, end="", file=sys.stderr if stream == "stderr" else sys.stdout, flush=True)
                self.last_lines.extend(new.splitlines())

    def reason(self) -> str:
        """Return the last line that is a sentence of ours, else the last lines."""
        lines = [line.strip() for line in self.last_lines if line.strip()]
        ours = [line for line in lines if OUR_LINE.match(line)]
        return ours[-1] if ours else " / ".join(lines[-LAST_LINES:])


def follow(kernels: Kernels, part: Part) -> Status:
    """Print the log of a session until it ends; return its status, with the reason in it if it failed."""
    printer, shown = LogPrinter(), ""
    for status in looks(kernels, part.slug, printer):
        if status.is_active and status.name != shown:
            print(f"{part.slug}: {status.name.lower()}.", flush=True)
            shown = status.name
        if status.name != "QUEUED":
            print_log(kernels, part.slug, printer)
        if not status.is_active:
            return Status(status.name, "; ".join(filter(None, [printer.reason(), status.failure])))
    raise AssertionError("looks never ends by itself")


def looks(kernels: Kernels, slug: str, printer: LogPrinter) -> Iterator[Status]:
    """Yield the status of a session now and then, more often while its log grows.

    A lost connection is made again; Problem only when the network is away for hours.
    """
    pause_s, lost_at, missing, client = FIRST_PAUSE_S, 0.0, 0, kernels.client
    while True:
        printed = printer.printed.total()
        try:
            status = kernels.status_once(slug)
        except NETWORK_ERRORS as error:
            lost_at = lost_at or time.monotonic()
            if not is_transient(error) or time.monotonic() - lost_at > OUTAGE_S:
                raise Problem(explain(error, f"following {slug}", client.secrets, 1, client.competition)) from None
        else:
            lost_at, missing = 0.0, 0 if status else missing + 1
            if status or missing == MISSING_LOOKS:
                yield status or Status("CANCEL_ACKNOWLEDGED", "its kernel was deleted")
        pause_s = FIRST_PAUSE_S if printer.printed.total() > printed else pause_s
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def print_log(kernels: Kernels, slug: str, printer: LogPrinter) -> None:
    """Print what is new in the log, in one connection; what breaks it does not matter, since the next one replays."""
    try:
        printer.print_new(kernels.read_log(slug))
    except NETWORK_ERRORS:
        pass


# --- its outputs -----------------------------------------------------------------------------------------------------


def bring_home(kernels: Kernels, run: Run, part: Part, status: Status) -> tuple[str, str]:
    """Bring home the outputs of a session that has ended; return the state of its job and why it failed."""
    if status.name == "CANCEL_ACKNOWLEDGED":
        why = f" ({status.failure})" if status.failure else ""
        return "failed", f"The session {part.slug} was cancelled{why}; the same command starts another."
    if status.name != "COMPLETE":
        advice = f"{kernels.page(part.slug)} shows all of its log, and the same command starts another"
        return "failed", f"The session {part.slug} failed: {status.failure.rstrip('.') or 'no reason given'}; {advice}."
    outputs = homecoming.bring_home(kernels, run, part.slug)
    message = f"The session {part.slug} failed: {outputs.message.rstrip('.')}; the same command starts another."
    return outputs.state, message


# --- commands --------------------------------------------------------------------------------------------------------


def show_status(run: Run, settings: Settings) -> None:
    """Print what Kaggle knows of the run's last session, and the week's quota."""
    kernels = Kernels(connect(competition_at_kaggle(settings)))
    if (part := newest_part(kernels, run)) is None:
        print(f"Kaggle has no session of {run.name}; `make train ON=kaggle RUN={run.name}` starts one.")
    else:
        command = "; ".join(map(shlex.join, part.job.stages)) if part.job else "another script"
        failure = f" ({part.status.failure})" if part.status.failure else ""
        print(f"{kernels.page(part.slug)}: {part.status.name.lower()}{failure}; it runs {command}.")
    check_quota(kernels)


def cancel(run: Run, settings: Settings, force: bool) -> None:
    """Stop the run's session, by deleting its kernel: Kaggle gives no session's number, by which it could be stopped.

    force: delete the kernels of all of its sessions, and with them what Kaggle keeps of the run.
    """
    kernels = Kernels(connect(competition_at_kaggle(settings)))
    part = newest_part(kernels, run)
    if part is None or not (part.status.is_active or force):
        advice = "" if part is None else "; FORCE=1 deletes what Kaggle keeps of it"
        print(f"No session of {run.name} is running{advice}.")
        return
    for slug in [part.slug, *(earlier_slugs(kernels, run, part.number) if force else [])]:
        kernels.delete(slug)
        homecoming.note(run, started="", reported="")
        print(f"Deleted {kernels.page(slug)}.")


def competition_at_kaggle(settings: Settings) -> Competition:
    if settings.data.kind not in COMPETITIONS:
        raise Problem(f"Kaggle's sessions read a competition, but data.kind is {settings.data.kind}; train here.")
    return competition_of(settings.data.kind)


def overview_page(kernels: Kernels) -> str:
    return f"https://www.kaggle.com/{kernels.client.user}/code"
