"""The command line: `python -m benchmarks.gpu_proof`. The Makefile's `gpu-proof` passes its variables on."""
import argparse
import multiprocessing
import pathlib
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.gpu_proof import checks

ROOT = checks.ROOT
TRAINED = pathlib.Path("configs/unet_seed.yaml")
DATA = pathlib.Path("data/carvana")
# Of a rehearsal: it trains for some twenty seconds on two cores, so that it can be stopped and go on.
TINY = """# Written by `make gpu-proof REHEARSE=1`.
data: {scale: 4, folds: 2, workers: 2}
augment: {shift: 0.0, zoom: 0.0, rotate_deg: 0.0, hue_deg: 0.0, saturation: 0.0}
model: {width: 16, depth: 2, patch: 2}
train: {optimizer: muon, momentum: 0.95, epochs: 6, batch_size: 4, learning_rate: 5e-3, ema_decay: 0.9,
        validate_every_epochs: 6}
refine: {scale: 2, tile_px: 48, margin_px: 4, patch: 1, width: 8, depth: 1, tiles_per_image: 4, batch_size: 16,
         epochs: 1}
predict: {batch_size: 4}
"""
REHEARSED_PART_S = 14.0  # after which a training is stopped that goes on in the next piece


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_proof", description=__doc__)
    parser.add_argument("--piece", type=int, metavar="N", help="only this piece, nine minutes at most; default: all")
    parser.add_argument("--out", metavar="JSONL", help="file of rows; those that are there are not measured again")
    parser.add_argument("--data", metavar="DIR", help="competition folder, or a shrunk copy; default data/carvana")
    parser.add_argument("--config", type=pathlib.Path, default=TRAINED, help="trained whole; default unet_seed.yaml")
    parser.add_argument("--rehearse", type=int, default=0, metavar="1", help="all of it in small, on the CPU")
    parser.add_argument("--fill", type=pathlib.Path, metavar="JSONL", help="only write these rows into the docs")
    args = parser.parse_args()
    check = checks.packages()
    if check.is_needed and not check.is_good:
        print(f"gpu-proof: {check.text}", file=sys.stderr)
        return 1
    from pipeline.runtime.problem import Problem
    try:
        if args.fill:
            from benchmarks.gpu_proof import fill
            fill.main(args.fill, ROOT)
            return 0
        return prove(args)
    except Problem as problem:
        print(f"gpu-proof: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gpu-proof: interrupted; the same command goes on with what is left.", file=sys.stderr)
        return 1


def prove(args: argparse.Namespace) -> int:
    """Check the machine and measure what is left; return the exit code."""
    from benchmarks.gpu_proof import jobs, results
    from pipeline.runtime.problem import Problem
    begun = time.monotonic()
    out = pathlib.Path(args.out or f"gpu_{'rehearsal' if args.rehearse else 'proof'}.jsonl")
    proof = make_proof(args, out)
    rows = results.read(out)
    if any(row["rehearsal"] != proof.rehearsal for row in rows):
        what = "measurements, and this is a rehearsal" if proof.rehearsal else "rows of a rehearsal"
        raise Problem(f"{out} has {what}; name another file with OUT=.")
    split = jobs.pieces(jobs.all_jobs(proof))
    if args.piece is not None and not 1 <= args.piece <= len(split):
        raise Problem(f"PIECE is {args.piece}, but there are {len(split)} pieces, from 1.")
    if not out.exists():
        start_over(proof, out)
    facts = in_child(results.facts, proof.rehearsal)
    bad = check_machine(proof, out, facts)
    if bad and bad[-1].is_needed:
        return say_what_failed([check.text for check in bad])
    deadline = begun + jobs.PIECE_S - jobs.SAVING_S if args.piece is not None else None
    failed: list[str] = []
    for number in [args.piece] if args.piece is not None else range(1, len(split) + 1):
        names = ", ".join(job.key for job in split[number - 1])
        print(f"\nPiece {number} of {len(split)}: {names}.", flush=True)
        rest = {job.key for later in split[number:] for job in later}
        failed += run_piece(proof, split[number - 1], rest, out, facts, deadline)
    measured = results.measured(results.read(out))
    left = list(dict.fromkeys(job.key for piece in split for job in piece if job.key not in measured))
    print(f"\n{out}: {len(measured)} rows; " + (f"left: {', '.join(left)}." if left else "nothing is left."))
    say_what_failed([check.text for check in bad])  # of which no job may have needed anything
    return say_what_failed(failed) if failed else 0


def start_over(proof: Any, out: pathlib.Path) -> None:
    """Remove the run of an earlier rehearsal; Problem for a trained run, which a new file of rows would take over."""
    from pipeline.runtime.problem import Problem
    if proof.rehearsal:
        shutil.rmtree(proof.run.folder, ignore_errors=True)
    elif proof.run.folder.exists():
        what = f"{proof.run.folder} is there, but {out}, which says how it was measured, is not"
        raise Problem(f"{what}; put that file back, name another with OUT=, or delete the folder.")


def make_proof(args: argparse.Namespace, out: pathlib.Path) -> Any:
    """Return what is run, on what. A rehearsal has its own config and draws its cars. out: names the runs."""
    from benchmarks.gpu_proof.work import Proof
    from pipeline.runtime.files import write_text
    from pipeline.runtime.problem import Problem
    name = re.sub(r"[^\w-]", "_", out.stem)
    if args.rehearse:
        work = pathlib.Path("data/gpu_rehearsal")
        write_text(work / "tiny.yaml", TINY)
        return Proof(True, name, work, None, work / "tiny.yaml", [work / "tiny.yaml"])
    if args.data and not (pathlib.Path(args.data) / "train.zip").is_file():
        raise Problem(f"{args.data} has no train.zip; name a competition folder with DATA=, or leave it out.")
    data = pathlib.Path(args.data) if args.data else DATA
    work = pathlib.Path("data/gpu_proof")
    return Proof(False, name, work, data if (data / "train.zip").is_file() else None, args.config, gpu_configs())


def gpu_configs() -> list[pathlib.Path]:
    """Return the configs that are meant for a GPU: they state the memory that they need of one."""
    from pipeline import config
    return [path for path in sorted(pathlib.Path("configs").glob("*.yaml")) if config.load(path).train.gpu_gib]


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in another process, so that this one has no memory of the GPU."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def check_machine(proof: Any, out: pathlib.Path, facts: dict[str, Any]) -> list[checks.Check]:
    """Print the checks and write them as rows; return those that failed."""
    from benchmarks.gpu_proof import results
    bad = []
    for check in in_child(checks.list_all, proof.work, proof.configs, proof.rehearsal):
        print(f"{'ok' if check.is_good else 'NO':4}{check.name:12}{check.text}", flush=True)
        row = {"key": f"check {check.name}", "command": "make gpu-proof", **facts}
        results.append(out, row | {"figures": {"is_good": check.is_good, "text": check.text}})
        bad += [] if check.is_good else [check]
    return bad


def run_piece(
    proof: Any, piece: Any, later: set[str], out: pathlib.Path, facts: dict[str, Any], deadline: float | None
) -> list[str]:
    """Run the jobs of a piece that have no row yet; return a sentence for each that failed.

    later: keys of the jobs that go on in a later piece.
    """
    from benchmarks.gpu_proof import results
    from benchmarks.gpu_proof.work import Blocked, Clock, Failed, Stopped
    from pipeline.runtime.problem import Problem
    failed: list[str] = []
    has_run = False
    for job in piece:
        if job.key in results.measured(results.read(out)):
            print(f"\n{job.key}: there already.")
            continue
        clock = Clock(deadline)
        if proof.rehearsal and deadline is None and job.key in later:
            clock = Clock(time.monotonic() + REHEARSED_PART_S)
        left = clock.left()
        if left is not None and deadline is not None and has_run and left < job.least_s:
            print(f"\n{job.key}: too little time is left for it; run this piece again.")
            continue
        has_run = True
        begun = time.monotonic()
        row: dict[str, Any] = {"key": job.key, "command": job.command, **facts}
        try:
            row["figures"] = job.work(proof, clock)
        except Stopped:
            by = "a later piece" if job.key in later else "this piece, run again,"
            print(f"\n{job.key}: its time is over; {by} goes on.")
            continue
        except Blocked as why:
            failed.append(f"{job.key}: {why}.")
            continue
        except Exception as error:  # not even a fault of this program may lose the other measurements
            if not isinstance(error, (Failed, Problem)):
                traceback.print_exc()
            row["error"] = str(error) or type(error).__name__
            failed.append(f"{job.key}: {row['error'].rstrip('.')}.")
        results.append(out, row | {"seconds": round(time.monotonic() - begun, 1)})
        print(f"\n{job.key}: {row.get('figures') or row['error']}", flush=True)
    return failed


def say_what_failed(sentences: list[str]) -> int:
    """Print one sentence for each check or job that failed; return the exit code."""
    for sentence in sentences:
        print(f"gpu-proof: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
