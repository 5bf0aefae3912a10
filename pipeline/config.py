"""The settings of a run: YAML in, frozen and typed settings out.

`load` merges the YAML file into the defaults below, and then the overrides `a.b=1` of SET. An unknown key, or a value
of another type or out of range, is a `Problem` that names the key. Only stages see the whole `Settings`; parts take
plain named arguments.

A choice (optimiser, loss, architecture, ...) is a name in a table beside its code: `in_table` and `Loss` say where.
Importing those tables imports torch, so a command that uses no choice passes `check_choices=False` to skip the check.
"""
import contextlib
import importlib
import json
import pathlib
import re
import reprlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, create_model,
    model_validator,
)  # fmt: skip
from pydantic_core import PydanticCustomError

from pipeline.data.augment import AUGMENTATIONS, Fraction, parameters
from pipeline.data.dataset import COMPETITIONS
from pipeline.runtime.problem import Problem
from pipeline.runtime.validation import explain, suggest
from pipeline.runtime.yaml_text import NOT_YAML, Yaml, read_tree

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

# Beginnings of keys that change how fast a run goes and what is done with it later, but not what it learns.
NOT_LEARNED = (
    *("data.folder", "data.workers", "data.cache", "predict.", "train.compile", "train.gpu_gib"),
    *("train.checkpoint_activations", "train.checkpoint_minutes", "train.checkpoint_steps"),
)


def keys_of(module: str, *tables: str) -> list[str]:
    """Return the keys of tables; importing their module may take seconds."""
    return [key for name in tables for key in getattr(importlib.import_module(module), name)]


def in_table(module: str, *tables: str) -> AfterValidator:
    """Accept a key of these tables, or, behind a key that ends in a dot, any name of that family."""

    def check(value: str, info: ValidationInfo) -> str:
        names = keys_of(module, *tables) if checks_choices(info) else [value]
        if value not in names and value.partition(".")[0] + "." not in names:
            listed = ", ".join(key + "NAME" if key.endswith(".") else key for key in names)
            raise PydanticCustomError("choice", f"it must be one of {listed}")
        return value

    return AfterValidator(check)


def checks_choices(info: ValidationInfo) -> bool:
    return info.context is None or info.context["check_choices"]


def check_names(value: Any) -> Any:
    """Refuse what is neither a list of texts nor a number of classes; YAML reads [no, on, 7, null] as other things."""
    if isinstance(value, list):
        if others := [name for name in value if not isinstance(name, str)]:
            what = f"a name in it is read as {reprlib.repr(others[0])}, not as text"
            raise PydanticCustomError("names", f'{what}; put names in quotes, as in ["no","on","7"]')
    elif isinstance(value, bool) or not isinstance(value, int) or value < 2:
        raise PydanticCustomError("names", "it must be a list of names such as [cat,dog], or their number, 2 or more")
    return value


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    kind: Annotated[str, in_table("pipeline.data.dataset", "COMPETITIONS", "DATASETS")] = "carvana"  # what folder holds
    folder: str = "data/carvana"  # what Kaggle serves, or the data of another kind; --data wins over it
    hq: bool = False  # read train_hq and test_hq
    scale: Literal[1, 2, 4, 8] = 2  # images are read at 1/scale
    height: Count | None = None  # folder: resize images to this; null: all have the size of the first
    width: Count | None = None
    inputs: Literal["rgb", "rgbd"] = "rgb"  # nyuv2: rgbd has depth as a fourth channel
    folds: Annotated[int, Field(ge=2)] = 5
    workers: Annotated[int, Field(ge=0)] = 8  # processes that read and augment; 0: the trainer does it
    cache: bool = False  # keep decoded images in memory: 0.5 GB at 1/8, 2 GB at 1/4, 8 GB at 1/2, for 3,400 images
    exclude: str | None = None  # a table such as runs/RUN/report/suspects.csv: do not train on its images
    relabel: str | None = None  # such a table: train on its masks instead of the competition's
    # A submission: train on the test images with its masks, too (pseudo-labels). folder: a folder of more images
    pseudo: str | None = None
    pseudo_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # of its masks, the surest first
    pseudo_weight: Annotated[float, Field(gt=0, le=1)] = 1.0  # the fraction of them that each epoch visits

    @property
    def channels(self) -> int:
        """Return the channels of the images that a network sees."""
        return 4 if self.inputs == "rgbd" else 3


class Task(Section):
    """What a pixel is: object or not (binary), or one of several classes (multiclass)."""

    kind: Literal["binary", "multiclass"] = "binary"
    classes: Annotated[list[str] | int, BeforeValidator(check_names)] = []  # names by index, or their number
    class_weights: list[Weight] = []  # of the cross-entropy, one per class; only their ratios matter; empty: all equal
    ignore_index: Annotated[int, Field(ge=0, le=65535)] = 255  # folder: the value of ignored pixels

    @property
    def count(self) -> int:
        """Return the number of classes; 0 if binary."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the classes; their indices as text where the config has only their number."""
        return tuple(map(str, range(self.classes))) if isinstance(self.classes, int) else tuple(self.classes)

    @property
    def outputs(self) -> int:
        """Return the number of maps of logits that a network needs."""
        return self.count or 1

    @model_validator(mode="after")
    def is_one_task(self) -> "Task":
        if self.kind == "binary":
            if self.count or self.class_weights:
                raise ValueError("classes and class_weights are for task.kind multiclass, but it is binary")
            return self
        if self.count < 2:
            raise ValueError("multiclass needs classes: at least two names, or their number")
        if len(set(self.names)) < self.count or not all(self.names):
            raise ValueError("two classes have the same name, or one has none")
        if self.class_weights and len(self.class_weights) != self.count:
            raise ValueError(f"there are {len(self.class_weights)} class_weights for {self.count} classes")
        if self.class_weights and not any(self.class_weights):
            raise ValueError("class_weights are all 0, so there is nothing to learn")
        return self


if TYPE_CHECKING:

    class Augment(Section):
        """Limits of random transforms: the keyword parameters of `AUGMENTATIONS`, with ranges and defaults."""

else:
    fields = {key: field for function in AUGMENTATIONS for key, field in parameters(function).items()}
    Augment = create_model("Augment", __base__=Section, __module__=__name__, **fields)


class Model(Section):
    # our own unet, or a class of segmentation-models-pytorch: smp.Unet, smp.FPN, ...
    arch: Annotated[str, in_table("pipeline.model.factory", "ARCHITECTURES")] = "unet"
    width: Count = 64  # unet: channels at the finest level
    depth: Annotated[int, Field(ge=1, le=7)] = 4  # unet: levels below it
    patch: Literal[1, 2, 4] = 1  # unet: pixels folded into channels
    encoder: str = "resnet34"  # smp
    encoder_weights: str | None = None  # smp: null (from scratch), a name such as imagenet, or a file
    encoder_sha256: Sha256 | None = None  # of that file; checked if given, and noted when the training starts


class Loss(Section):
    """Weights of the loss terms by their names in `losses.MASK_LOSSES`, or for several classes `losses.CLASS_LOSSES`.

    The training loss is their weighted sum; a term of weight 0, or that is not named, is left out.
    """

    model_config = ConfigDict(extra="allow")  # `Settings` checks their names
    __pydantic_extra__: dict[str, Weight] = Field(init=False)
    bce: Weight = 1.0  # cross-entropy, for several classes too
    dice: Weight = 1.0
    edge_weight: Weight = 0.0  # bce counts cells near an edge 1 + edge_weight times, the others once
    edge_px: Count = 2  # cells of the network's grid up to this distance are near

    @property
    def weights(self) -> dict[str, float]:
        """Return the weights above 0, by name."""
        return {name: w for name, w in self.model_dump(exclude={"edge_weight", "edge_px"}).items() if w}

    @model_validator(mode="after")
    def has_a_term(self) -> "Loss":
        if not self.weights:
            raise ValueError("all weights are 0, so there is nothing to learn; set bce or dice above 0")
        if self.edge_weight and not self.bce:
            raise ValueError("edge_weight weights the cells of bce, which is 0: set bce above 0, or edge_weight to 0")
        return self


class Train(Section):
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    init_from: str | None = None  # start from the weights of this best.pt, or refiner.pt, instead of random ones
    init_sha256: Sha256 | None = None  # of that file; checked if given, and noted when the training starts
    epochs: Count = 5
    batch_size: Count = 8
    accumulate: Count = 1  # micro-batches that a batch is split into
    # Peak memory of a step on one GPU with accumulate 1, 2, 4, ..., GiB, as benchmarks/memory.py counts it
    gpu_gib: list[Annotated[float, Field(gt=0)]] = []
    checkpoint_activations: bool = False  # recompute them in the backward pass: slower, less memory
    # adamw, sgd or muon; sgd needs a larger learning rate
    optimizer: Annotated[str, in_table("pipeline.model.optim", "OPTIMIZERS")] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup_fraction: Fraction = 0.1  # of all steps: rise from 0 to the learning rate; then the schedule
    # cosine or linear, down to 0, or constant
    schedule: Annotated[str, in_table("pipeline.model.optim", "SCHEDULES")] = "cosine"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # for adamw its first beta; muon's authors use 0.95
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0  # largest norm of a step's gradient
    ema_decay: Fraction = 0.998  # of the averaged weights that are evaluated and saved; 0: the plain weights
    compile: bool = False  # torch.compile: half a minute at the start, then faster steps on a GPU
    validate_every_epochs: Count = 1  # the last epoch is always validated
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    checkpoint_steps: Count | None = None  # also save last.pt every so many steps


class Refine(Train):
    """The refiner: a second U-Net, on tiles along the edge of the object. It takes the keys of `train` as well."""

    epochs: Count = 10
    batch_size: Count = 64  # tiles, one of each of as many images
    optimizer: Annotated[str, in_table("pipeline.model.optim", "OPTIMIZERS")] = "muon"
    learning_rate: Annotated[float, Field(gt=0)] = 4e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    scale: Literal[1, 2] = 1  # tiles are cut out of images at 1/scale
    tile_px: Annotated[int, Field(ge=32, le=1024)] = 96  # side of a tile, in pixels of those images
    margin_px: Annotated[int, Field(ge=0)] = 8  # of a tile on each side, which is seen but not used
    tiles_per_image: Count = 8  # in each epoch
    # Learn from the predictions of a second network, which `train` trains for so many epochs. null: of the network
    # itself, which knows its training images too well to make the mistakes there that a refiner meets in other images
    short_epochs: Count | None = None
    width: Count = 16  # of the U-Net, as of model.arch unet
    depth: Annotated[int, Field(ge=1, le=7)] = 3
    patch: Literal[1, 2, 4] = 2

    @model_validator(mode="after")
    def tiles_have_a_middle(self) -> "Refine":
        if (core := self.tile_px - 2 * self.margin_px) <= 0 or core % 8:
            middle = f"tile_px less twice margin_px is {core}"
            raise ValueError(f"{middle}, but it must be a multiple of 8 above 0; 96 and 8 give 80")
        return self


TtaSet = Annotated[str, in_table("pipeline.inference.tta", "TTA_SETS")]


class Predict(Section):
    batch_size: Count = 8  # lowered to what fits if the memory is too small
    tta: TtaSet = "hflip"  # transforms to average over
    refiner_tta: TtaSet | None = None  # the same for the tiles of a refiner; null: those of tta
    compile: bool = False  # torch.compile, on a GPU only: half a minute at the start, then faster
    refine: bool = True  # use the refiner of each network that has one
    rows_per_shard: Count = 256  # of a submission; the most that a kill can lose. Best a multiple of batch_size
    verify_every_rows: Count = 1  # 1: decode each row again and compare it with its mask; 10: each tenth

    @property
    def tile_tta(self) -> str:
        """Return the TTA set of the tiles."""
        return self.refiner_tta or self.tta


class Settings(Section):
    data: Data = Data()
    task: Task = Task()
    augment: Augment = Augment()
    model: Model = Model()
    loss: Loss = Loss()
    train: Train = Train()
    refine: Refine | None = None  # null: no refiner
    predict: Predict = Predict()

    @model_validator(mode="after")
    def losses_exist(self, info: ValidationInfo) -> "Settings":
        extra = self.loss.__pydantic_extra__
        if checks_choices(info) and (extra or self.task.kind == "multiclass"):
            known = [*keys_of("pipeline.model.losses", "MASK_LOSSES", "CLASS_LOSSES"), *Loss.model_fields]
            if unknown := [name for name in extra if name not in known]:
                raise ValueError(f"loss.{unknown[0][:60]} is no setting; {suggest(unknown[0], known, 'loss.')}")
            names = keys_of("pipeline.model.losses", "MASK_LOSSES" if self.task.kind == "binary" else "CLASS_LOSSES")
            if unfit := [name for name in self.loss.weights if name not in names]:
                raise ValueError(f"loss.{unfit[0]} is not for task.kind {self.task.kind}, which has {', '.join(names)}")
        for name in [name for name, weight in extra.items() if not weight]:
            del extra[name]  # so that settings that mean the same are equal
        return self

    @model_validator(mode="after")
    def are_consistent(self) -> "Settings":
        kind, task = self.data.kind, self.task.kind
        is_competition = kind in COMPETITIONS
        if is_competition and task != "binary":
            raise ValueError(f"task.kind is multiclass, but data.kind {kind} is binary; set data.kind")
        if kind == "nyuv2" and task != "multiclass":
            raise ValueError("data.kind nyuv2 has classes: set task.kind multiclass and task.classes 13, 40 or 894")
        if self.data.inputs == "rgbd" and kind != "nyuv2":
            raise ValueError(f"data.inputs rgbd is for data.kind nyuv2, but it is {kind}; set it to rgb")
        if (self.data.height is None) != (self.data.width is None):
            raise ValueError("data.height and data.width need each other; set both, or neither")
        if self.data.height and kind != "folder":
            raise ValueError(f"data.height and data.width are for data.kind folder, but it is {kind}")
        if task == "multiclass" and self.loss.edge_weight:
            raise ValueError("loss.edge_weight is for task.kind binary, but it is multiclass; leave it out")
        if self.task.class_weights and not self.loss.bce:
            raise ValueError("task.class_weights weights the cross-entropy loss.bce, which is 0; set only one of them")
        if self.refine and task == "multiclass":
            raise ValueError("refine is for task.kind binary, but it is multiclass; leave that section out")
        if self.refine and self.data.scale <= self.refine.scale:
            raise ValueError(f"refine.scale {self.refine.scale} is not finer than data.scale {self.data.scale}")
        for key in ("hq", "exclude", "relabel", "pseudo"):
            if getattr(self.data, key) and not is_competition and (key, kind) != ("pseudo", "folder"):
                raise ValueError(f"data.{key} is for competitions, but data.kind is {kind}; leave it out")
        if self.task.ignore_index != Task().ignore_index and (kind != "folder" or task != "multiclass"):
            raise ValueError("task.ignore_index is for task.kind multiclass with data.kind folder; leave it out")
        return self


def load(path: pathlib.Path, overrides: list[str] = [], check_choices: bool = True) -> Settings:
    """Return the settings of a YAML file with `a.b=1` overrides. check_choices: see the top of this file."""
    tree = read_tree(path)
    settings = parse(tree, str(path), check_choices)
    return with_overrides(tree, overrides, check_choices) if overrides else settings


def with_overrides(tree: dict[str, Any], overrides: list[str], check_choices: bool = True) -> Settings:
    """Return the settings of valid nested dicts with `a.b=1` overrides."""
    for override in overrides:
        apply_override(tree, override)
    return parse(tree, "SET", check_choices)


def parse(tree: dict[str, Any], where: str, check_choices: bool = True) -> Settings:
    """Return the settings of nested dicts; `where` names their source in an error."""
    try:
        return Settings.model_validate(tree, context={"check_choices": check_choices})
    except ValidationError as error:
        raise Problem(f"In {where}: {explain(error, Settings)}") from None


def for_later_stage(trained: Settings, overrides: list[str], check_choices: bool = True) -> Settings:
    """Return the settings that trained a network, with the overrides of the sections `data` and `predict`.

    Overrides of other sections were for the stage `train`, which the same command line may have run; they are validated
    and then ignored.
    """
    tree = trained.model_dump() | {"refine": None}  # whether a refiner goes with these is checked when it is loaded
    overridden = with_overrides(tree, overrides, check_choices)
    return trained.model_copy(update={"data": overridden.data, "predict": overridden.predict})


def with_refine(trained: Settings, given: Settings) -> Settings:
    """Return the settings that trained a network, with `refine`, `predict`, and how to read images of others.

    Raise Problem if they do not go together.
    """
    tree = trained.model_dump() | given.model_dump(include={"refine", "predict"})
    tree["data"] |= given.data.model_dump(include={"folder", "workers", "cache"})
    return parse(tree, "the settings of the trained network, with the section refine of the config")


def with_epochs(settings: Settings, epochs: int) -> Settings:
    """Return the settings of a network that is trained for so many epochs, and evaluated once."""
    train = settings.train.model_copy(update={"epochs": epochs, "validate_every_epochs": epochs})
    return settings.model_copy(update={"train": train})


def check_binary(path: pathlib.Path, what: str) -> str:
    """Return `data.kind` of the run with this `config.yaml`, or its default; raise Problem if it has several classes.

    what: the subject of the sentence, such as "A threshold".
    """
    settings = load(path, check_choices=False) if path.is_file() else Settings()
    if settings.task.kind != "binary":
        raise Problem(f"{what} is for one object and its background, but {path.parent} was trained on several classes.")
    return settings.data.kind


def dump(settings: Settings) -> str:
    """Return the YAML of all settings, defaults included; `load` returns the same settings from it."""
    return yaml.safe_dump(settings.model_dump(), sort_keys=False)


def difference(old: Settings, new: Settings) -> list[str]:
    """Return the keys that differ, as `train.epochs: 5 -> 6`."""
    return [f"{key}: {before} -> {after}" for key, before, after in changes(old, new)]


def learn_alike(one: Settings, other: Settings) -> bool:
    """Return whether two settings lead to the same networks."""
    free = (*NOT_LEARNED, *(key.replace("train.", "refine.") for key in NOT_LEARNED))
    return all(key.startswith(free) for key, _, _ in changes(one, other))


def overrides_between(old: Settings, new: Settings) -> list[str]:
    """Return the `a.b=1` overrides that turn the old settings into the new ones; JSON is YAML too."""
    return [f"{key}={json.dumps(after)}" for key, _, after in changes(old, new)]


def changes(old: Settings, new: Settings) -> list[tuple[str, Any, Any]]:
    """Return (key, value before, value after) of the keys that differ; a loss that is not named has weight 0."""
    before, after = ({name: section or {} for name, section in each.model_dump().items()} for each in (old, new))
    keys = [(section, key) for section in before for key in before[section] | after[section]]

    def value(side: dict[str, Any], section: str, key: str) -> Any:
        return side[section].get(key, 0.0 if section == "loss" else None)

    both = [(f"{section}.{key}", value(before, section, key), value(after, section, key)) for section, key in keys]
    return [(name, old_value, new_value) for name, old_value, new_value in both if old_value != new_value]


def nearest(settings: Settings) -> tuple[str, list[str]]:
    """Return the file in configs/ that needs the fewest overrides to give these settings, and those; or ("", [])."""
    candidates = []
    for path in sorted(pathlib.Path("configs").glob("*.yaml")):
        with contextlib.suppress(Problem):  # the settings cannot come from a file that cannot be read
            if (candidate := load(path)).refine is None or settings.refine is not None:  # no override removes a section
                candidates.append((str(path), overrides_between(candidate, settings)))
    return min(candidates, key=lambda pair: len(pair[1]), default=("", []))


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `a.b=1` override in valid nested dicts; the value is read as YAML."""
    match = re.fullmatch(r"(\w+)\.(\w+)=(.*)", override, flags=re.DOTALL)
    if match is None:
        raise Problem(f"The setting {override!r} must look like section.key=value, as in train.epochs=3, no blanks.")
    section, key, value = match.groups()
    if tree.get(section) is None:
        tree[section] = {}
    try:
        tree[section][key] = yaml.load(value, Loader=Yaml)
    except NOT_YAML:
        raise Problem(f"The value of the setting {override[:60]!r} is not YAML; quote it.") from None
