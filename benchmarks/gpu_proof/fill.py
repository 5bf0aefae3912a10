"""`make gpu-proof FILL=results.jsonl`: measured rows into the tables of docs/BENCHMARKS.md, and a line into README.md.

A table's row is found by its first cell, which must be there exactly once; its cells for what was measured, the
command, the machine and the date are replaced, so that a second FILL leaves nothing of the first. A figure without a
row in the docs is a Problem, and then no file is changed.
"""
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_proof import results
from benchmarks.gpu_proof.results import Row
from benchmarks.kernels import KINDS
from pipeline.runtime.files import write_text
from pipeline.runtime.problem import Problem

BENCHMARKS, README = "docs/BENCHMARKS.md", "README.md"
README_LINE = "The configs for GPUs"  # how the line begins that FILL writes anew
COLUMNS = ["figure", "asked for", "measured", "command", "machine", "date"]
SHOWN_COMMIT = 7  # letters


def main(path: pathlib.Path, root: pathlib.Path) -> None:
    """Fill the docs below `root` from a file of rows. Problem if it has rows of a rehearsal, or none."""
    rows = results.read(path)
    if not rows:
        raise Problem(f"{path} has no rows; `make gpu-proof` writes them.")
    if any(row["rehearsal"] for row in rows):
        raise Problem(f"{path} has rows of a rehearsal, which measured no GPU; name a file of gpu-proof itself.")
    measured = results.measured(rows)
    cells = list(cells_of(measured))
    benchmarks, readme = root / BENCHMARKS, root / README
    table_text, readme_text = benchmarks.read_text(), readme.read_text()
    for label, figure, row in cells:
        table_text = fill_row(table_text, label, figure, row)
    line = readme_line(measured)
    if line:
        readme_text = replace_line(readme_text, README_LINE, line, README)
    write_text(benchmarks, table_text)
    write_text(readme, readme_text)
    print(f"{BENCHMARKS}: {len(cells)} rows filled from {path}; {README}: {'one line' if line else 'nothing'}.")
    for row in (row for row in rows if "error" in row and row["key"] not in measured):
        print(f"Left as it was: {row['key']} failed ({row['error']}).")


# --- the figures as text ---------------------------------------------------------------------------------------------


def cells_of(measured: dict[str, Row]) -> Iterator[tuple[str, str, Row]]:
    """Yield the first cell of a row of the docs, the text for what was measured, and the row of results."""
    for key, row in measured.items():
        job, _, rest = key.partition(" ")
        texts = TEXTS.get(job)
        if texts is not None:
            for label, text in texts(rest, row["figures"]):
                yield label, text, row


def tests(_: str, figures: Row) -> Iterator[tuple[str, str]]:
    yield "tests that need a GPU", ", ".join(f"{count} {outcome}" for outcome, count in figures.items())


def training(name: str, figures: Row) -> Iterator[tuple[str, str]]:
    network, refiner = figures["network"], figures.get("refiner")
    if figures["images"] == "drawn":  # which say nothing about Dice
        return
    minutes = network["minutes"] + (refiner["minutes"] if refiner else 0)
    waited = f"waited {network['waited_fraction']:.1%} of the time for images"
    of = f"{network['images_per_s']:g} images/s after the first epoch, {waited}; {figures['images']}"
    yield f"`{name}.yaml`: training fold 0, reading and validation included", f"**{duration(minutes)}** ({of})"
    dice = f"network {network['val_dice']:.5f}, refined **{refiner['val_dice']:.5f}**" if refiner else ""
    yield f"`{name}.yaml`: held-out Dice, no flips", dice or f"**{network['val_dice']:.5f}**"


def validation(name: str, figures: Row) -> Iterator[tuple[str, str]]:
    if figures["of"] != "drawn":
        chosen = f"cross-fitted threshold {figures['threshold']:.3f}, {figures['images']} images"
        text = f"**{figures['oof_dice_cross_fitted']:.5f}** ({chosen})"
        yield f"`{name}.yaml`: held-out Dice, flips averaged", text


def scoring(name: str, figures: Row) -> Iterator[tuple[str, str]]:
    if "skipped" not in figures and figures["of"] != "drawn":
        public = "" if figures["public"] is None else f" (public {figures['public']:.5f})"
        yield f"`{name}.yaml`: private Dice of the test makes", f"**{figures['private']:.5f}**{public}"


def speed(name: str, figures: Row) -> Iterator[tuple[str, str]]:
    for network, noun in (("network", "images/s"), ("refiner", "tiles/s of its refiner")):
        compiled, eager = figures.get(f"{network}_compiled"), figures.get(f"{network}_eager")
        if compiled is None or eager is None:
            continue
        shown = [f"{label} {speed_text(each)}" for label, each in (("compiled", compiled), ("eager", eager))]
        peak = f"matrix peak {figures['matrix_tflops']:.0f} TFLOP/s; {figures['images']} images"
        yield f"`{name}.yaml`: {noun} trained", f"{'; '.join(shown)}. {peak}{kinds_text(compiled)}"


def speed_text(figures: dict[str, Any]) -> str:
    if "error" in figures:
        return f"failed ({cell(figures['error'][:120])})"
    waited = f", waited {figures['waited_fraction']:.0%}" if figures["waited_fraction"] >= 0.02 else ""
    memory = f"{figures['peak_memory_gb'] * 1e9 / 2**30:.1f} GiB"
    return f"**{figures['images_per_s']:.1f}**, {memory}, {figures['peak_fraction']:.0%} of the matrix peak{waited}"


def kinds_text(figures: dict[str, Any]) -> str:
    """Return where the time of a step goes, by kind of kernel."""
    ms_of_kind = figures.get("ms_of_kind", {})
    total = sum(ms_of_kind.values())
    shown = [f"{kind} {ms_of_kind[kind] / total:.0%}" for kind in KINDS if total and ms_of_kind.get(kind)]
    return f"; of a compiled step {', '.join(shown)}" if shown else ""


def largest_batch(name: str, figures: Row) -> Iterator[tuple[str, str]]:
    fits = [f"{figures[noun]} {noun}" for noun in ("images", "tiles") if noun in figures]
    yield f"`{name}.yaml`: largest batch", " and ".join(fits) + (" or more" if figures["or_more"] else "")


def reference(_: str, figures: Row) -> Iterator[tuple[str, str]]:
    ours, theirs = figures["images_per_s"], figures["reference_images_per_s"]
    text = f"**{figures['train_ratio']:.2f}** ({ours:.1f} against {theirs:.1f} images/s)"
    yield "`make bench-train` on a GPU: ratio to the README's command (`--amp`)", text
    theirs = figures["reference_float32_images_per_s"]
    text = f"**{figures['train_ratio_float32']:.2f}** ({ours:.1f} against {theirs:.1f} images/s)"
    yield "`make bench-train` on a GPU: ratio to its float32 default", text


def prediction(rest: str, figures: Row) -> Iterator[tuple[str, str]]:
    size, _, name = rest.partition(" ")
    whole = figures["images"] / figures["seconds"]
    with_start = "" if figures["was_resumed"] else f", {whole:.1f} with start and compilation"
    of = f"{figures['images']} images, {figures['of']}"
    label = f"`{name}.yaml`: images/s predicted, flips averaged, {'full size' if size == 'full' else 'its own scale'}"
    yield label, f"**{figures['images_per_s']:.1f}**{with_start} ({of})"
    if size == "half" and figures["gpu_busy_fraction"] is not None:
        yield f"`{name}.yaml`: fraction of that time that the GPU is busy", f"**{figures['gpu_busy_fraction']:.0%}**"


TEXTS = {
    "tests": tests, "train": training, "validate": validation, "score": scoring, "speed": speed,
    "find-batch": largest_batch, "reference": reference, "predict": prediction,
}  # fmt: skip


# --- the docs --------------------------------------------------------------------------------------------------------


def fill_row(text: str, label: str, figure: str, row: Row) -> str:
    """Return the text with the row of this label filled. Problem unless it is there once, in a table of COLUMNS."""
    lines = text.split("\n")
    places = [number for number, line in enumerate(lines) if line.startswith(f"| {label} |")]
    if len(places) != 1:
        raise Problem(f"{BENCHMARKS} has {len(places)} rows that begin with {label}, but FILL needs one; add it there.")
    old = [each.strip() for each in lines[places[0]].strip().strip("|").split("|")]
    if len(old) != len(COLUMNS):
        raise Problem(f"The row {label} of {BENCHMARKS} has {len(old)} cells instead of {len(COLUMNS)}; mend it there.")
    at = f", at {row['commit'][:SHOWN_COMMIT]}" if row.get("commit") else ""
    versions = f"torch {row.get('torch')}, CUDA {row.get('cuda')}, driver {row.get('driver')}"
    new = [label, old[1], cell(figure), f"`{row['command']}`{at}", cell(f"{row['card']}, {versions}"), row["date"]]
    lines[places[0]] = "".join(f"| {each} " if each else "| " for each in new) + "|"
    return "\n".join(lines)


def cell(text: str) -> str:
    """Return a text that stays within one cell."""
    return " ".join(text.replace("|", "/").split())


def readme_line(measured: dict[str, Row]) -> str:
    """Return what README.md says of the trained baseline, in as many words as it has now; "" if it is not measured."""
    trained, validated = measured.get("train unet_seed"), measured.get("validate unet_seed")
    if trained is None or validated is None or validated["figures"]["of"] == "drawn":
        return ""
    dice, minutes = validated["figures"]["oof_dice_cross_fitted"], trained["figures"]["network"]["minutes"]
    where = f"{short_name(validated['card'])}, torch {validated.get('torch')}, {validated['date']}"
    config = "[`unet_seed.yaml`](configs/unet_seed.yaml)"
    return f"{README_LINE}: {config} **{dice:.4f}** in {minutes:.1f} minutes ({where})."


def short_name(card: str) -> str:
    """`"NVIDIA H100 80GB HBM3"` -> `"H100"`, one word."""
    common = re.compile(r"NVIDIA|Tesla|GeForce|HBM\w*|PCIe|\d+GB")
    return "-".join(word for word in card.split() if not common.fullmatch(word))


def replace_line(text: str, beginning: str, line: str, where: str) -> str:
    """Return the text with the one line that begins so replaced."""
    lines = text.split("\n")
    places = [number for number, each in enumerate(lines) if each.startswith(beginning)]
    if len(places) != 1:
        raise Problem(f"{where} has {len(places)} lines that begin with {beginning}, but FILL needs one; add it there.")
    lines[places[0]] = line
    return "\n".join(lines)


def duration(minutes: float) -> str:
    """`3.3` -> `"3 min 18 s"`."""
    whole, seconds = divmod(round(60 * minutes), 60)
    return f"{whole} min {seconds} s"
