"""Are wrong masks found? A copy of a competition folder with masks made wrong on purpose, and where they are ranked.

    python -m benchmarks.suspects plant --data data/demo --out data/planted
    make train validate CONFIG=configs/demo.yaml DATA=data/planted RUN=planted FOLD=0,1
    python -m benchmarks.suspects find --data data/demo --out data/planted --run planted

The networks learn from the wrong masks of other makes as well, as they would from real ones. The last line of `find`
is one JSON object of the figures.
"""
import argparse
import json
import pathlib

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import carvana
from pipeline.report.suspects import suspects_table
from pipeline.report.errors import upsample_stored
from pipeline.data import competition
from pipeline.runtime.files import write_json
from pipeline.inference.oof import OofStore, open_oof_store, read_oof_histograms
from pipeline.inference.loading import load_network
from pipeline.masks import rle
from pipeline.paths import Run
from pipeline.synthetic.write_competition import Row, write_table

SHAPE = (carvana.HEIGHT_PX, carvana.WIDTH_PX)
KINDS = ("neighbour", "filled", "missing")
PLANTED = "planted.json"  # image -> kind, pixels changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plant", "find"))
    parser.add_argument("--data", type=pathlib.Path, required=True, help="with the masks as they should be")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the copy")
    parser.add_argument("--run", help="find: what was trained and validated on the copy")
    parser.add_argument("--share", type=float, default=0.05, help="of the pictures, whose masks become wrong")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.what == "plant":
        plant(args.data, args.out, args.share, args.seed)
    else:
        find(args.data, args.out, Run(args.run))


def plant(folder: pathlib.Path, out: pathlib.Path, share: float, seed: int) -> None:
    """Link everything but the masks, and write these with a share of them made wrong, evenly of each kind."""
    out.mkdir(parents=True)
    for path in folder.iterdir():
        if not path.name.startswith("train_masks"):
            (out / path.name).symlink_to(path.resolve())
    masks = competition.open_masks(folder)
    names = masks.names
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(len(names))[: round(share * len(names))].tolist())
    kind_of = {names[index]: KINDS[place % len(KINDS)] for place, index in enumerate(chosen)}
    rows: list[Row] = [carvana.SUBMISSION_HEADER]
    planted: dict[str, dict[str, str | int]] = {}
    px = []
    for name in names:
        mask = masks.read(name)
        if kind := kind_of.get(name):
            wrong = masks.read(neighbour(name)) if kind == "neighbour" else spoilt(mask, kind, rng)
            px.append(int((wrong != mask).sum()))
            planted[name] = {"kind": kind, "px": px[-1]}
            mask = wrong
        rows.append((name, rle.encode(mask)))
    write_table(out / "train_masks.csv.zip", rows)
    write_json(out / PLANTED, planted)
    print(f"{out}: {len(planted)} of {len(names)} masks are wrong, by {min(px)} to {max(px)} pixels.")


def find(folder: pathlib.Path, copy: pathlib.Path, run: Run) -> None:
    """Where the wrong masks stand among the suspects, and what putting their place right makes of them."""
    kind_of = {name: one["kind"] for name, one in json.loads((copy / PLANTED).read_text()).items()}
    right, wrong = competition.open_masks(folder), competition.open_masks(copy)
    kept_of: dict[str, OofStore] = {}
    scale = 0
    for fold in run.trained_folds():
        judged = read_oof_histograms(run.oof(fold))
        kept_of |= dict.fromkeys(judged.names, open_oof_store(judged, run.oof_probabilities(fold)))
        scale = load_network(run.fold(fold).best, torch.device("cpu"))[1].data.scale
    table = suspects_table(
        kept_of, wrong.read, lambda name: [upsample_stored(kept_of[name].read(name), scale, *SHAPE)]
    )

    planted = [name for name in kept_of if name in kind_of]
    print(f"{len(planted)} of {len(kept_of)} held-out masks are wrong; {len(table)} suspects")
    print("rank  score    pixels  planted    Dice to the right mask: as it is, put right")
    ranks, gains = [], []
    for rank, row in enumerate(table.itertuples(), start=1):
        bounds = rle.bounds(right.read(row.img))
        before = rle.dice_score(rle.bounds(wrong.read(row.img)), bounds)
        after = rle.dice_score(rle.parse(row.rle_mask, SHAPE[0] * SHAPE[1]), bounds)
        if row.img in kind_of:
            ranks.append(rank)
            gains.append(after - before)
        print(f"{rank:4}  {row.score:.5f} {row.px:7}  {kind_of.get(row.img, ''):9}  {before:.5f} {after:.5f}")
    print(json.dumps({
        "planted": len(planted),
        "found": len(ranks),
        "found_among_as_many": sum(rank <= len(planted) for rank in ranks),
        "worst_rank": max(ranks, default=None),
        "mean_dice_gain": round(float(np.mean(gains)), 5) if gains else None,
    }))  # fmt: skip


def neighbour(name: str) -> str:
    """The next view of the same car."""
    view = int(name[13:15]) % carvana.ANGLES + 1
    return carvana.image_name(carvana.car_of(name), f"{view:02d}")


def spoilt(mask: NDArray[np.bool_], kind: str, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A rectangle of an eighth to a quarter of the car's box on its outline filled, or cut away."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height = round((rows[-1] - rows[0] + 1) * rng.uniform(0.125, 0.25))
    width = round((columns[-1] - columns[0] + 1) * rng.uniform(0.125, 0.25))
    column = int(rng.integers(columns[0], columns[-1] - width))
    edge = np.flatnonzero(mask[:, column + width // 2])  # where the outline passes the middle of the rectangle
    middle = int(edge[0] if rng.random() < 0.5 else edge[-1])
    top = max(0, middle - height // 2)
    wrong = mask.copy()
    wrong[top : top + height, column : column + width] = kind == "filled"
    return wrong


if __name__ == "__main__":
    main()
