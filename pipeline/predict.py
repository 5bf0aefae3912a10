"""Stage `predict`: checkpoints, the threshold and the test images in; `submissions/RUN.csv.gz` and its provenance out.

An image's probability is the mean over runs, folds and TTA transforms; no probability map touches the disk. Rows are
written in shards, so that a start after a kill continues and several processes share the work. The submission has the
same bytes in any case.
"""
import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data import pseudo
from pipeline.data.image_stream import Batch, ImagesAtScales, OnBadImage, stream
from pipeline.inference.evaluate import predict_ahead
from pipeline.inference.loading import batch_that_fits
from pipeline.inference.probability import unsure_fractions
from pipeline.masks import on_device, rle
from pipeline.paths import Run
from pipeline.runtime.device import describe
from pipeline.runtime.distributed import ProcessGroup, process_group
from pipeline.runtime.files import locked, sha256, write_text
from pipeline.runtime.memory import explain_out_of_memory, too_large_message
from pipeline.runtime.progress import batches, progress
from pipeline.submission import provenance
from pipeline.submission.plan import Plan, make_plan
from pipeline.submission.shards import Shards
from pipeline.submission.writer import Row, verified_rle


class PredictedRow(NamedTuple):
    """A row of the submission, and how unsure the networks are of its image."""

    row: Row  # name and run lengths
    unsure: float  # the fraction of the image's pixels that are


def main(
    run: Run, folds: list[int], overrides: list[str], runs: Sequence[Run] = (), on_bad_image: OnBadImage = "error"
) -> None:
    """Write the submission of `run`, or finish the one that an earlier start began.

    folds: their numbers, empty for all trained ones. runs: to average; `run` then names the result. on_bad_image:
    "empty" writes an empty row for an image that cannot be read, and lists it at the end; "error" raises Problem.
    """
    with process_group() as dist, contextlib.ExitStack() as until_done:
        with dist.main_first():
            plan = make_plan(run, runs or [run], folds, overrides, dist.device)
            shards = Shards(run.shards, plan.names, plan.settings.predict.rows_per_shard)
            state = plan.state(on_bad_image)
            # Shards of another batch size cannot be continued, whether more or less fits into memory by now.
            earlier_batch_size = (shards.find_state(state) or {}).get("batch_size_that_fits")
        batch_size = agree_on_batch_size(plan, earlier_batch_size, dist)
        with dist.main_first():
            if dist.is_main:
                busy = f"{run.submission} is being predicted by another process; wait until it is done."
                until_done.enter_context(locked(run.submission_lock, busy))
                shard_notes = shards.resume_or_start(state | {"batch_size_that_fits": batch_size})
        missing = dist.gather(shards.missing())[0]  # as the main process saw it before any process wrote a shard
        if dist.is_main:
            origin = plan.provenance()
            announce(plan, batch_size, shard_notes, dist)
        started = time.monotonic()
        rows = predict_shards(plan, shards, missing[dist.rank :: dist.world_size], batch_size, on_bad_image, dist)
        rows_written = sum(dist.gather(rows))  # this waits until all shards are written
        if dist.is_main:
            finish(plan, shards, origin)
            size_mb, images_per_s = run.submission.stat().st_size / 1e6, rows_written / (time.monotonic() - started)
            print(f"{run.submission}: {len(plan.names)} rows, {size_mb:.1f} MB, {images_per_s:.1f} images/s.")


def agree_on_batch_size(plan: Plan, earlier: object, dist: ProcessGroup) -> int:
    """Return the batch size that fits into the memory of every process, at most `predict.batch_size`.

    earlier: the batch size of shards that can be continued, if any, which is tried first. Problem if the processes
    have loaded different checkpoints.
    """
    if any(digests != plan.sha256_of_path for digests in dist.gather(plan.sha256_of_path)):
        raise dist.problem(f"The processes do not see the same {', '.join(plan.sha256_of_path)}; start this again.")
    wanted = plan.settings.predict.batch_size
    first_try = earlier if isinstance(earlier, int) and 1 <= earlier < wanted else wanted
    return min(dist.gather(batch_that_fits(plan.ensemble, first_try)))


def announce(plan: Plan, batch_size: int, shard_notes: list[str], dist: ProcessGroup) -> None:
    """Print what is predicted, with what, and what the user should know about it."""
    processes = f", {dist.world_size} processes" if dist.world_size > 1 else ""
    weights = ", ".join(plan.sha256_of_path)
    print(f"Predicting {len(plan.names)} images with {weights} on {describe(dist.device)}{processes}.")
    lowered = batch_size < plan.settings.predict.batch_size
    batch_notes = [f"Only {batch_size} images at once fit into memory; batches have that size."] if lowered else []
    print_lines(plan.notes + batch_notes + shard_notes)


def predict_shards(
    plan: Plan, shards: Shards, numbers: list[int], batch_size: int, on_bad_image: OnBadImage, dist: ProcessGroup
) -> int:
    """Predict and write the shards of these numbers; return how many rows they have."""
    name_batches = [batch for number in numbers for batch in batches(shards.names_of(number), batch_size)]
    ensemble = plan.ensemble
    dataset = ImagesAtScales(plan.images, ensemble.scales, (ensemble.height, ensemble.width), on_bad_image)
    on_gpu = dist.device.type == "cuda"
    loader = stream(dataset, name_batches, batch_size, plan.settings.data.workers, pin_memory=on_gpu)
    total = sum(len(shards.names_of(number)) for number in numbers)
    with explain_out_of_memory(lambda: too_large_message(batch_size, plan.settings.data.scale)):
        rows = iter(progress(predict_rows(plan, loader, shards), "test", wanted=dist.is_main, total=total))
        for number in numbers:
            shards.write_shard(number, rows_of_shard(number, rows, shards))
    return total


def rows_of_shard(number: int, predicted_rows: Iterator[PredictedRow], shards: Shards) -> Iterator[Row]:
    """Yield the rows of a shard; note how unsure they are before the shard is complete, so that a kill loses none."""
    unsure_of: dict[str, float] = {}
    for predicted in itertools.islice(predicted_rows, len(shards.names_of(number))):
        unsure_of[predicted.row[0]] = predicted.unsure
        yield predicted.row
    shards.note_unsure(number, unsure_of)


def predict_rows(plan: Plan, image_batches: Iterable[Batch], shards: Shards) -> Iterator[PredictedRow]:
    """Yield the row of each image, in order. An image that cannot be read has an empty row and is noted in `shards`.

    One row of `predict.verify_every_rows` is decoded again and compared with its mask.
    """
    row_numbers, verify_every_rows = itertools.count(), plan.settings.predict.verify_every_rows
    column_major = plan.images.competition.column_major

    def predict(batch: Batch) -> Tensor:
        prob_u8_NHW = plan.ensemble(batch.image_of_scale)
        return prob_u8_NHW.mT.contiguous() if column_major else prob_u8_NHW

    def encode(batch: Batch, probability_u8_NHW: Tensor) -> list[PredictedRow]:
        """Encode at once: masks that outlive their batch fragment memory, 1 MB an image with glibc 2.36."""
        shards.note_bad_images(batch.problems)
        verify = [next(row_numbers) % verify_every_rows == 0 for _ in batch.names]
        encoded = bounds_and_masks(probability_u8_NHW, plan.threshold_u8, verify)
        rows = []
        for name, unsure, (bounds, mask) in zip(batch.names, unsure_fractions(probability_u8_NHW), encoded):
            text = rle.text(bounds) if mask is None else verified_rle(mask, bounds)
            rows.append(PredictedRow((name, "" if name in batch.problems else text), unsure))
        return rows

    for rows in predict_ahead(predict, image_batches, encode):
        yield from rows


def bounds_and_masks(
    probability_u8_NHW: Tensor, threshold_u8: int, verify: list[bool]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_] | None]]:
    """Yield the bounds of each image's runs as `rle.bounds` gives them, and its mask, bool (height, width).

    verify: of each image of the batch, whether its mask is needed; else it is None.
    """
    probability_u8_NHW = probability_u8_NHW[: len(verify)]  # without those that fill up the batch
    if probability_u8_NHW.device.type == "cuda":
        yield from bounds_and_masks_on_device(probability_u8_NHW >= threshold_u8, verify)
        return
    for needed, probability_u8 in zip(verify, probability_u8_NHW.numpy()):
        mask = probability_u8 >= threshold_u8
        yield rle.bounds(mask), mask if needed else None


def bounds_and_masks_on_device(
    mask_NHW: Tensor, verify: list[bool]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_] | None]]:
    """`bounds_and_masks` of masks (bool, on any device), of which only those are read back that are needed."""
    masks = on_device.read_masks(mask_NHW[torch.tensor(verify)])
    for needed, bounds in zip(verify, on_device.bounds(mask_NHW)):
        yield bounds, next(masks) if needed else None


def finish(plan: Plan, shards: Shards, origin: dict[str, Any]) -> None:
    """Join the shards to the submission, write its provenance, remove the shards.

    origin: the fields of the provenance that do not depend on the result.
    """
    bad_images = shards.read_bad_images()
    print_lines(f"{name} has an empty row: {problem}" for name, problem in sorted(bad_images.items()))
    submission = plan.run.submission
    pseudo.unsure_table(submission).unlink(missing_ok=True)  # no kill may leave it beside another submission
    shards.join(submission, plan.images.competition.submission_header)
    write_text(pseudo.unsure_table(submission), shards.unsure_csv(plan.images.competition.submission_header[0]))
    origin = origin | {"sha256": sha256(submission), "bad_images": sorted(bad_images)}
    provenance.write(plan.run.provenance, provenance.Provenance(**origin))
    print_lines([shards.remove()])
    if others := ", ".join(map(str, shards.folders_set_aside())):
        print(f"Shards of other predictions are still in {others}; delete them if you do not need them.")


def print_lines(lines: Iterable[str]) -> None:
    """Print a line for each text that is not empty."""
    print("".join(line + "\n" for line in lines if line), end="")
