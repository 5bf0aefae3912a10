"""A run's settings: YAML in, frozen and typed out.

`load` starts from the defaults below, lays the YAML file over them and then the `--set a.b=1` words. An
unknown key, a value of another type or out of range is a `Problem` that names the key. Only stages see
the whole `Settings`; parts take plain named arguments.
"""
import contextlib
import difflib
import json
import pathlib
import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.problem import Problem

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    folder: str = "data/carvana"  # what Kaggle serves; --data wins over it
    hq: bool = False  # read train_hq and test_hq
    scale: Literal[1, 2, 4, 8] = 2  # pictures are read at 1/scale
    folds: Annotated[int, Field(ge=2)] = 5
    workers: Annotated[int, Field(ge=0)] = 8  # processes that read and augment; 0: none but the trainer
    cache: bool = False  # keep decoded pictures in memory: 0.5 GB at 1/8, 2 GB at 1/4, of 3,400 pictures
    exclude: str | None = None  # a table such as runs/RUN/report/suspects.csv: training leaves its pictures out
    relabel: str | None = None  # such a table: training takes its masks instead of the competition's


class Augment(Section):
    """Each is drawn anew for each picture and epoch, evenly from -limit to +limit."""

    flip: Share = 0.5  # chance of a left-right mirror
    shift: Share = 0.05  # of the picture's side
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.1  # 0.1: between 0.9 and 1.1 times the size
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 5.0
    brightness: Share = 0.15  # of the full range
    contrast: Share = 0.15
    hue_deg: Annotated[float, Field(ge=0, le=180)] = 10.0
    saturation: Share = 0.15


class Model(Section):
    arch: str = "unet"  # our own, or a class of segmentation-models-pytorch: smp.Unet, smp.FPN, ...
    width: Count = 64  # unet: channels at the finest level
    depth: Annotated[int, Field(ge=1, le=7)] = 4  # unet: levels below it
    patch: Literal[1, 2, 4] = 1  # unet: pixels folded into channels
    encoder: str = "resnet34"  # smp
    encoder_weights: str | None = None  # smp: null (from scratch), a name such as imagenet, or a file


class Loss(Section):
    """Weights of the terms whose sum training makes small; a term of weight 0 is left out. See model/losses.py."""

    bce: Weight = 1.0
    dice: Weight = 1.0
    jaccard: Weight = 0.0
    focal: Weight = 0.0
    lovasz: Weight = 0.0
    edge_weight: Weight = 0.0  # bce counts cells near an edge 1 + edge_weight times, the others once
    edge_px: Count = 2  # so many cells of the network's grid are near

    @model_validator(mode="after")
    def has_a_term(self) -> "Loss":
        if not (self.bce or self.dice or self.jaccard or self.focal or self.lovasz):
            raise ValueError("nothing is left to learn from: set bce, dice, jaccard, focal or lovasz above 0")
        if self.edge_weight and not self.bce:
            raise ValueError("edge_weight weights the cells of bce, which is 0: set bce above 0, or edge_weight to 0")
        return self


class Train(Section):
    seed: Annotated[int, Field(ge=0)] = 0
    epochs: Count = 5
    batch_size: Count = 8
    accumulate: Count = 1  # parts of a batch that go through the network one after another
    checkpoint_activations: bool = False  # compute them again on the way back: slower, for a small memory
    optimiser: Literal["adamw", "sgd", "muon"] = "adamw"  # sgd wants a larger learning rate
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup_share: Share = 0.1  # of all steps, from 0 up to the learning rate; then the schedule
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # the first two go down to 0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of adamw its first beta; muon's authors take 0.95
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0  # longest gradient that a step follows
    ema_decay: Share = 0.998  # of the averaged weights that are judged and kept; 0: the plain weights
    compile: bool = False  # torch.compile: half a minute at the start, then faster steps on a GPU
    validate_every_epochs: Count = 1  # the last epoch is always validated
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    checkpoint_steps: Count | None = None  # save last.pt after so many steps too


class Predict(Section):
    batch_size: Count = 8  # lowered to what fits when the memory is too small
    tta: Literal["none", "hflip", "hflip+scales", "shifts"] = "hflip"  # what is averaged: inference/views.py
    compile: bool = False  # torch.compile: half a minute at the start, then faster on a GPU
    rows_per_part: Count = 2048  # of a submission; what a kill may cost. A multiple of batch_size wastes nothing
    prove_every_rows: Count = 1  # 1: each row is decoded again and compared with its mask, 10: each tenth


class Settings(Section):
    data: Data = Data()
    augment: Augment = Augment()
    model: Model = Model()
    loss: Loss = Loss()
    train: Train = Train()
    predict: Predict = Predict()


def load(path: pathlib.Path, overrides: list[str] = []) -> Settings:
    """Settings of a YAML file with `a.b=1` words laid over it."""
    try:
        tree = yaml.load(path.read_text(), Loader=Yaml)
    except FileNotFoundError:
        at_hand = ", ".join(sorted(map(str, pathlib.Path("configs").glob("*.yaml"))))
        raise Problem(f"There is no config {path}; the ones at hand are {at_hand or 'in configs/'}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"The config {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise Problem(f"The config {path} is not YAML: {' '.join(str(error).split())}.") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise Problem(f"The config {path} holds {type(tree).__name__}, but it must hold sections such as `train:`.")
    for word in overrides:
        apply_override(tree, word)
    return parse(tree, where=str(path))


def parse(tree: dict[str, Any], where: str) -> Settings:
    """Settings of nested dicts; `where` names their source in an error."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise Problem(f"In {where}: {explain(error)}") from None


def for_later_stage(trained: Settings, overrides: list[str], where: str) -> Settings:
    """The settings that trained a network, with the words that still matter after training laid over them.

    Words about other sections were for the stage `train`, which the same command line may have run.
    """
    tree = trained.model_dump()
    for word in overrides:
        apply_override(tree, word)
    given = parse(tree, where)  # a misspelt word is an error here too
    return trained.model_copy(update={"data": given.data, "predict": given.predict})


def dump(settings: Settings) -> str:
    """The YAML of all settings, defaults included; `load` gives the same settings back."""
    return yaml.safe_dump(settings.model_dump(), sort_keys=False)


def difference(old: Settings, new: Settings) -> list[str]:
    """The keys that differ, as `train.epochs: 5 -> 6`."""
    return [f"{key}: {before} -> {after}" for key, before, after in changes(old, new)]


def words_between(old: Settings, new: Settings) -> list[str]:
    """The `a.b=1` words that make the new settings of the old ones; JSON is YAML too."""
    return [f"{key}={json.dumps(after)}" for key, _, after in changes(old, new)]


def changes(old: Settings, new: Settings) -> list[tuple[str, Any, Any]]:
    """(key, value before, value after) of the keys that differ."""
    return [
        (f"{section}.{key}", before, after)
        for section, values in old.model_dump().items()
        for key, before in values.items()
        if (after := getattr(getattr(new, section), key)) != before
    ]


def nearest(settings: Settings) -> tuple[str, list[str]]:
    """The file in configs/ that needs the fewest words to give these settings, and the words; "" when there is none."""
    found = []
    for path in sorted(pathlib.Path("configs").glob("*.yaml")):
        with contextlib.suppress(Problem):  # one that cannot be read is not the one that they came from
            found.append((str(path), words_between(load(path), settings)))
    return min(found, key=lambda pair: len(pair[1]), default=("", []))


def apply_override(tree: dict[str, Any], word: str) -> None:
    """Set one `a.b=1` word in nested dicts; the value is read as YAML reads it."""
    match = re.fullmatch(r"(\w+)\.(\w+)=(.*)", word, flags=re.DOTALL)
    if match is None:
        raise Problem(f"The setting {word!r} must look like section.key=value, as in train.epochs=3.")
    section, key, value = match.groups()
    if not isinstance(tree.setdefault(section, {}), dict):
        raise Problem(f"The section {section} holds {tree[section]!r}, so that {word!r} cannot be set in it.")
    try:
        tree[section][key] = yaml.load(value, Loader=Yaml)
    except yaml.YAMLError:
        raise Problem(f"The value of the setting {word!r} is not YAML; quote it.") from None


def explain(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, as one sentence."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "value_error":  # a sentence of our own, about several keys of a section
        return f"{key}: {first['ctx']['error']}."
    if first["type"] != "extra_forbidden":
        return f"{key} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}."
    *parents, unknown = first["loc"]
    section: type[BaseModel] = Settings
    for name in parents:
        section = type(section.model_fields[str(name)].get_default())
    near = difflib.get_close_matches(str(unknown), section.model_fields, n=1, cutoff=0)
    return f"{key} is no setting; the nearest is {'.'.join([*map(str, parents), *near])}."


class Yaml(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 does and PyYAML does not."""


Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
