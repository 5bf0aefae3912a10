"""Fine-tuning: where a new training starts, `train.init_from`, `refine.init_from` or a file in `model.encoder_weights`.

The file's sha256 goes into the settings of the run when its training starts, and so into its checkpoints and the
ledger; a resume reads it there and needs the file no more. No network may start from weights that were trained on the
images that are held out from it: its score would be too good.
"""
import contextlib
import dataclasses
import pathlib
from typing import Any, NamedTuple

from torch import nn

from pipeline import config
from pipeline.config import Settings
from pipeline.data import grouping
from pipeline.data.dataset import COMPETITIONS
from pipeline.model import checkpoint
from pipeline.model.factory import file_of
from pipeline.runtime.files import sha256
from pipeline.runtime.problem import Problem
from pipeline.training.fold_data import FoldData

# Of a U-Net and of a network of smp: what depends on the number of classes.
HEADS = ("network.head.", "network.segmentation_head.")


class Source(NamedTuple):
    """A file of weights that a training starts from."""

    path: pathlib.Path
    section: str  # of the settings that name it
    key: str
    sha256_key: str  # of the setting for its hash

    @property
    def setting(self) -> str:
        return f"{self.section}.{self.key}"


def source_of(settings: Settings, section: str) -> Source | None:
    """Return the file that the network of this section, `train` or `refine`, starts from; None if it names none."""
    hyper = settings.refine if section == "refine" else settings.train
    assert hyper is not None
    if hyper.init_from is not None:
        return Source(pathlib.Path(hyper.init_from), section, "init_from", "init_sha256")
    if section == "train" and (file := file_of(settings.model.encoder_weights)):
        return Source(file, "model", "encoder_weights", "encoder_sha256")
    return None


def note_sha256(settings: Settings, section: str, last: dict[str, Any]) -> Settings:
    """Return the settings with the sha256 of the file that this training starts from, or started from.

    last: the contents of its `last.pt`, or {}. Raise Problem if there is no such file, or another one than they name.
    """
    if (source := source_of(settings, section)) is None:
        return settings
    part = getattr(settings, source.section)
    if last:
        digest = getattr(getattr(config.parse(last["settings"], "last.pt"), source.section), source.sha256_key)
    else:
        if not source.path.is_file():
            raise Problem(f"{source.setting} names {source.path}, but there is no such file.")
        digest, expected = sha256(source.path), getattr(part, source.sha256_key)
        if expected not in (None, digest):
            name = f"{source.section}.{source.sha256_key}"
            raise Problem(f"{source.path} has the sha256 {digest}, but {name} is {expected}; put that file back.")
    return settings.model_copy(update={source.section: part.model_copy(update={source.sha256_key: digest})})


def load_initial_weights(network: nn.Module, path: pathlib.Path, noted_sha256: str | None, setting: str) -> None:
    """Load the weights of a `best.pt` or `refiner.pt`; those of a head for other classes stay random.

    Raise Problem if it is of another network, or was replaced after its sha256 was noted. setting: that names the file,
    for messages.
    """
    with checkpoint.unchanged([path]) as digest_of:
        state = checkpoint.load(path, keys=("settings", "network"))
    if noted_sha256 not in (None, digest_of[str(path)]):
        raise Problem(f"{path} was replaced before it was loaded, perhaps by its training; start this again.")
    weights, mine = state["network"], network.state_dict()
    if not isinstance(weights, dict):
        raise Problem(f"{setting} names {path}, which holds no weights by name.")
    shapes = {name: tuple(tensor.shape) for name, tensor in mine.items()}
    theirs = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in weights.items()}
    misfits = sorted(name for name in shapes.keys() | theirs.keys() if shapes.get(name) != theirs.get(name))
    if others := [name for name in misfits if not str(name).startswith(HEADS)]:
        what = f"{setting} names {path}, which is of another network: {len(others)} weights differ, such as {others[0]}"
        raise Problem(f"{what[:300]}; set model, refine and data.inputs as that run had them.")
    try:
        network.load_state_dict({name: weights[name] for name in mine if name not in misfits}, strict=False)
    except Exception as error:  # the values of a stranger's file may raise anything
        reason = " ".join(str(error).split())[:120]
        raise Problem(f"{setting} names {path}, whose weights cannot be loaded ({reason}).") from None


# --- what those weights were trained on -------------------------------------------------------------------------------


def inherit(data: FoldData, settings: Settings, section: str, last: dict[str, Any], wanted: bool) -> FoldData:
    """Return the data of a fold with what the weights it starts from were trained on.

    last: as for `note_sha256`; a resume has checked it before. wanted: print notes. Raise Problem if they were trained
    on images that are held out now; where that is not certain, it is a note.
    """
    if last:
        return dataclasses.replace(data, trained_before=tuple(map(str, last.get("trained_before", []))))
    if (source := source_of(settings, section)) is None or (state := read_parent(source)) is None:
        return data
    parent = config.parse(state["settings"], where=str(source.path))
    trained_on = read_trained_on(source.path, state)
    key, _, fold = data.folds.columns
    held_out = set(data.folds[key][data.folds[fold] == data.number])
    notes = []
    if both := sorted(held_out.intersection(trained_on or ())):
        images = f"{grouping.count_of(key, len(both))} of those that fold {data.number} of {data.run.folds} holds out"
        what = f"{source.setting} names {source.path}, which was trained on {images}, the first is {both[0][:60]}"
        if is_same_data(parent, settings):
            advice = f"start from the {source.path.name} of the fold that held them out"
            raise Problem(f"{what}; the score would be too good: {advice}, or set {source.setting}=null.")
        notes.append(f"{what}; if these are the same images, the score is too good.")
    if trained_on is None and parent.data.kind == settings.data.kind:
        what = f"There is no {source.path.parent.parent / data.run.folds.name} of the training of {source.path}"
        notes.append(f"{what}: if it has seen images that are held out here, the score is too good.")
    if section == "train" and source.key == "init_from" and parent.task.outputs != settings.task.outputs:
        outputs = f"{parent.task.outputs} outputs, but this run needs {settings.task.outputs}"
        notes.append(f"{source.path} has {outputs}: the last layer starts at random.")
    if wanted:
        print("\n".join([f"Starting from the weights in {source.path}.", *notes]))
    return dataclasses.replace(data, trained_before=tuple(trained_on or ()))


def read_parent(source: Source) -> dict[str, Any] | None:
    """Return the contents of a `best.pt` or `refiner.pt`; None for an encoder's file that is none of ours."""
    keys = ("settings", "network", "folds")
    if source.key == "init_from":
        return checkpoint.load(source.path, keys)
    with contextlib.suppress(Problem):
        return checkpoint.load(source.path, keys)
    return None


def read_trained_on(path: pathlib.Path, state: dict[str, Any]) -> list[str] | None:
    """Return the keys of the images that a checkpoint was trained on; None if that is unknown.

    A checkpoint of an earlier version does not hold them; then the folds.csv of its run does, if it is still the one.
    """
    if isinstance(trained_on := state.get("trained_on"), list):
        return list(map(str, trained_on))
    number = path.absolute().parent.name.removeprefix("fold")
    with contextlib.suppress(Problem):
        table = grouping.read_folds(path.parent.parent / "folds.csv")
        if number.isdecimal() and grouping.digest(table) == state["folds"]:
            return list(table.iloc[:, 0][table["fold"] != int(number)])
    return None


def is_same_data(parent: Settings, settings: Settings) -> bool:
    """Return whether equal keys are surely the same images."""
    kind = settings.data.kind
    same_folder = pathlib.Path(parent.data.folder).resolve() == pathlib.Path(settings.data.folder).resolve()
    return parent.data.kind == kind and (kind in COMPETITIONS or same_folder)
