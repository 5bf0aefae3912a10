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
import reprlib
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.runtime.problem import Problem

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
LARGEST_BYTES = 2**18  # of a config; PyYAML reads 100 kB a second
# What PyYAML raises for a text that it cannot read, and for one that it can whose values make no sense: a 13th month,
# a number of 5,000 digits, an empty !!int, brackets in brackets in brackets.
NOT_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    kind: Literal["carvana", "nyuv2", "folder"] = "carvana"  # who reads it: data/collection.py
    folder: str = "data/carvana"  # what Kaggle serves, or that kind's own; --data wins over it
    hq: bool = False  # read train_hq and test_hq
    scale: Literal[1, 2, 4, 8] = 2  # pictures are read at 1/scale
    height: Count | None = None  # folder: pictures are brought to this size; null: all have that of the first
    width: Count | None = None
    inputs: Literal["rgb", "rgbd"] = "rgb"  # nyuv2: rgbd has depth as a fourth channel
    folds: Annotated[int, Field(ge=2)] = 5
    workers: Annotated[int, Field(ge=0)] = 8  # processes that read and augment; 0: none but the trainer
    cache: bool = False  # keep decoded pictures in memory: 0.5 GB at 1/8, 2 GB at 1/4, of 3,400 pictures
    exclude: str | None = None  # a table such as runs/RUN/report/suspects.csv: training leaves its pictures out
    relabel: str | None = None  # such a table: training takes its masks instead of the competition's

    @property
    def channels(self) -> int:
        """Of the pictures that a network sees."""
        return 4 if self.inputs == "rgbd" else 3


class Task(Section):
    """What a pixel is: object or not (binary), or one of several classes (multiclass)."""

    kind: Literal["binary", "multiclass"] = "binary"
    classes: list[str] | Annotated[int, Field(ge=2)] = []  # names by index; a number where the data know the names
    class_weights: list[Weight] = []  # of the cross-entropy, one a class; only how they compare matters; none: 1 each
    ignore_index: Annotated[int, Field(ge=0, le=65535)] = 255  # folder: the value of pixels that are not judged

    @property
    def count(self) -> int:
        """How many classes; 0 when binary."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """As far as the config knows them."""
        return tuple(map(str, range(self.classes))) if isinstance(self.classes, int) else tuple(self.classes)

    @property
    def outputs(self) -> int:
        """Maps of logits that a network has for it."""
        return self.count or 1

    @model_validator(mode="after")
    def is_one_task(self) -> "Task":
        if self.kind == "binary":
            if self.count or self.class_weights:
                raise ValueError("classes and class_weights are for task.kind multiclass, but it is binary")
            return self
        if self.count < 2:
            raise ValueError("multiclass needs classes: at least two names, or how many there are")
        if len(set(self.names)) < self.count or not all(self.names):
            raise ValueError("two classes have the same name, or one has none")
        if self.class_weights and len(self.class_weights) != self.count:
            raise ValueError(f"there are {len(self.class_weights)} class_weights for {self.count} classes")
        if self.class_weights and not any(self.class_weights):
            raise ValueError("class_weights are all 0, so that nothing is left to learn from")
        return self


class Augment(Section):
    """Each is drawn anew for each picture and epoch, evenly from -limit to +limit."""

    flip: Fraction = 0.5  # chance of a left-right mirror
    shift: Fraction = 0.05  # of the picture's side
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.1  # 0.1: between 0.9 and 1.1 times the size
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 5.0
    brightness: Fraction = 0.15  # of the full range
    contrast: Fraction = 0.15
    hue_deg: Annotated[float, Field(ge=0, le=180)] = 10.0
    saturation: Fraction = 0.15


class Model(Section):
    arch: str = "unet"  # our own, or a class of segmentation-models-pytorch: smp.Unet, smp.FPN, ...
    width: Count = 64  # unet: channels at the finest level
    depth: Annotated[int, Field(ge=1, le=7)] = 4  # unet: levels below it
    patch: Literal[1, 2, 4] = 1  # unet: pixels folded into channels
    encoder: str = "resnet34"  # smp
    encoder_weights: str | None = None  # smp: null (from scratch), a name such as imagenet, or a file


class Loss(Section):
    """Weights of the terms whose sum training makes small; a term of weight 0 is left out. See model/losses.py."""

    bce: Weight = 1.0  # cross-entropy, for several classes too
    dice: Weight = 1.0
    jaccard: Weight = 0.0
    focal: Weight = 0.0
    lovasz: Weight = 0.0
    edge_weight: Weight = 0.0  # bce counts cells near an edge 1 + edge_weight times, the others once
    edge_px: Count = 2  # so many cells of the network's grid are near

    @property
    def binary_terms(self) -> dict[str, float]:
        """Terms, and their weights, that several classes do not have."""
        names = ("jaccard", "focal", "lovasz", "edge_weight")
        return {name: getattr(self, name) for name in names}

    @model_validator(mode="after")
    def has_a_term(self) -> "Loss":
        if not (self.bce or self.dice or self.jaccard or self.focal or self.lovasz):
            raise ValueError("nothing is left to learn from: set bce, dice, jaccard, focal or lovasz above 0")
        if self.edge_weight and not self.bce:
            raise ValueError("edge_weight weights the cells of bce, which is 0: set bce above 0, or edge_weight to 0")
        return self


class Train(Section):
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    epochs: Count = 5
    batch_size: Count = 8
    accumulate: Count = 1  # parts of a batch that go through the network one after another
    checkpoint_activations: bool = False  # compute them again on the way back: slower, for a small memory
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"  # sgd wants a larger learning rate
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup_fraction: Fraction = 0.1  # of all steps, from 0 up to the learning rate; then the schedule
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # the first two go down to 0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of adamw its first beta; muon's authors take 0.95
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0  # longest gradient that a step follows
    ema_decay: Fraction = 0.998  # of the averaged weights that are judged and kept; 0: the plain weights
    compile: bool = False  # torch.compile: half a minute at the start, then faster steps on a GPU
    validate_every_epochs: Count = 1  # the last epoch is always validated
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    checkpoint_steps: Count | None = None  # save last.pt after so many steps too


class Predict(Section):
    batch_size: Count = 8  # lowered to what fits when the memory is too small
    tta: Literal["none", "hflip", "hflip+scales", "shifts"] = "hflip"  # what is averaged: inference/views.py
    compile: bool = False  # torch.compile: half a minute at the start, then faster on a GPU
    rows_per_shard: Count = 2048  # of a submission; what a kill may cost. A multiple of batch_size wastes nothing
    verify_every_rows: Count = 1  # 1: each row is decoded again and compared with its mask, 10: each tenth


class Settings(Section):
    data: Data = Data()
    task: Task = Task()
    augment: Augment = Augment()
    model: Model = Model()
    loss: Loss = Loss()
    train: Train = Train()
    predict: Predict = Predict()

    @model_validator(mode="after")
    def goes_together(self) -> "Settings":
        kind, task = self.data.kind, self.task.kind
        if kind == "carvana" and task != "binary":
            raise ValueError("task.kind is multiclass, but data.kind carvana is cars or not; set data.kind")
        if kind == "nyuv2" and task != "multiclass":
            raise ValueError("data.kind nyuv2 has classes: set task.kind multiclass and task.classes 13, 40 or 894")
        if self.data.inputs == "rgbd" and kind != "nyuv2":
            raise ValueError(f"data.inputs rgbd is for data.kind nyuv2, but it is {kind}; set it to rgb")
        if (self.data.height is None) != (self.data.width is None):
            raise ValueError("data.height and data.width go together; set both, or neither")
        if self.data.height and kind != "folder":
            raise ValueError(f"data.height and data.width are for data.kind folder, but it is {kind}")
        if task == "multiclass" and (unfit := [key for key, value in self.loss.binary_terms.items() if value]):
            raise ValueError(f"loss.{unfit[0]} is for task.kind binary; a multiclass loss has bce and dice")
        if self.task.class_weights and not self.loss.bce:
            raise ValueError("task.class_weights weights the cross-entropy loss.bce, which is 0; leave one of them out")
        for key in ("hq", "exclude", "relabel"):
            if getattr(self.data, key) and kind != "carvana":
                raise ValueError(f"data.{key} is for data.kind carvana, but it is {kind}; leave it out")
        if self.task.ignore_index != Task().ignore_index and (kind != "folder" or task != "multiclass"):
            raise ValueError("task.ignore_index is for task.kind multiclass with data.kind folder; leave it out")
        return self


def load(path: pathlib.Path, overrides: list[str] = []) -> Settings:
    """Settings of a YAML file with `a.b=1` words laid over it."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise Problem(f"The config {path} has {path.stat().st_size:,} bytes; is it another file?")
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=Yaml)
    except FileNotFoundError:
        at_hand = ", ".join(sorted(map(str, pathlib.Path("configs").glob("*.yaml"))))
        raise Problem(f"There is no config {path}; the ones at hand are {at_hand or 'in configs/'}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"The config {path} cannot be read: {error}.") from None
    except NOT_YAML as error:
        raise Problem(f"The config {path} is not YAML: {' '.join(str(error).split())[:200]}.") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise Problem(f"The config {path} holds {type(tree).__name__}, but it must hold sections such as `train:`.")
    settings = parse(tree, where=str(path))
    return with_overrides(tree, overrides) if overrides else settings


def with_overrides(tree: dict[str, Any], words: list[str]) -> Settings:
    """The settings of nested dicts that are sound themselves, with `a.b=1` words laid over them."""
    for word in words:
        apply_override(tree, word)
    return parse(tree, where="the words of SET")


def parse(tree: dict[str, Any], where: str) -> Settings:
    """Settings of nested dicts; `where` names their source in an error."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise Problem(f"In {where}: {explain(error)}") from None


def for_later_stage(trained: Settings, overrides: list[str]) -> Settings:
    """The settings that trained a network, with the words that still matter after training laid over them.

    Words about other sections were for the stage `train`, which the same command line may have run.
    """
    given = with_overrides(trained.model_dump(), overrides)  # a misspelt word is an error here too
    return trained.model_copy(update={"data": given.data, "predict": given.predict})


def check_binary(path: pathlib.Path, what: str, only_cars: bool = False) -> None:
    """Problem when the run that left this `config.yaml` is none for `what`; one that left none is not judged.

    what: as in "The stage threshold", which finds a cut, and several classes have none. only_cars: Kaggle's.
    """
    if not path.is_file():
        return
    settings = load(path)
    if settings.task.kind != "binary":
        raise Problem(f"{what} is for one object and its background, but {path.parent} was trained on several classes.")
    if only_cars and settings.data.kind != "carvana":
        raise Problem(f"{what} is for the competition's cars, but {path.parent} was trained on data.kind folder.")


def dump(settings: Settings) -> str:
    """The YAML of all settings, defaults included; `load` gives the same settings back."""
    return yaml.safe_dump(settings.model_dump(), sort_keys=False)


def difference(old: Settings, new: Settings) -> list[str]:
    """The keys that differ, as `train.epochs: 5 -> 6`."""
    return [f"{key}: {before} -> {after}" for key, before, after in changes(old, new)]


def overrides_between(old: Settings, new: Settings) -> list[str]:
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
            found.append((str(path), overrides_between(load(path), settings)))
    return min(found, key=lambda pair: len(pair[1]), default=("", []))


def apply_override(tree: dict[str, Any], word: str) -> None:
    """Set one `a.b=1` word in nested dicts that are sound; the value is read as YAML reads it."""
    match = re.fullmatch(r"(\w+)\.(\w+)=(.*)", word, flags=re.DOTALL)
    if match is None:
        raise Problem(f"The setting {word!r} must look like section.key=value, as in train.epochs=3, without blanks.")
    section, key, value = match.groups()
    try:
        tree.setdefault(section, {})[key] = yaml.load(value, Loader=Yaml)
    except NOT_YAML:
        raise Problem(f"The value of the setting {word[:60]!r} is not YAML; quote it.") from None


def explain(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, as one sentence."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))[:60]
    if first["type"] == "value_error":  # a sentence of our own, about several keys of a section
        return f"{key}: {first['ctx']['error']}." if key else f"{first['ctx']['error']}."
    if first["type"] != "extra_forbidden":
        found = reprlib.repr(first["input"])[:60]  # a value of a value of a value may be endless
        return f"{key or 'the whole'} is {found}: {first['msg'][0].lower()}{first['msg'][1:]}."
    *parents, unknown = first["loc"]
    section: type[BaseModel] = Settings
    for name in parents:
        section = type(section.model_fields[str(name)].get_default())
    near = difflib.get_close_matches(str(unknown), section.model_fields, n=1, cutoff=0)
    return f"{key} is no setting; the nearest is {'.'.join([*map(str, parents), *near])}."


class Yaml(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and allows a key once, as YAML 1.2 does and PyYAML does not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(f"the key {key.value[:40]!r} stands in line {key.start_mark.line + 1} once more")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
