"""Settings: strict, typed, frozen, validated against the tables of choices, and errors that name the key."""
import pathlib
import re
import subprocess
import sys

import pydantic
import pytest
import yaml

from pipeline import config
from pipeline.runtime.problem import Problem

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "run.yaml"
    path.write_text("train: {epochs: 3, learning_rate: 3e-3}\n")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_of_the_project_is_valid(path: pathlib.Path) -> None:
    assert config.load(path).train.epochs >= 1


def test_there_are_configs() -> None:
    assert {"cpu.yaml", "demo.yaml"} <= {path.name for path in CONFIGS}


def test_a_file_overrides_the_defaults(file: pathlib.Path) -> None:
    settings = config.load(file)
    assert settings.train.epochs == 3
    assert settings.train.batch_size == config.Settings().train.batch_size
    assert settings.data == config.Settings().data


def test_an_empty_file_is_all_defaults(file: pathlib.Path) -> None:
    file.write_text("# nothing\n")
    assert config.load(file) == config.Settings()


@pytest.mark.parametrize(
    "text, number",
    [("1e-3", 1e-3), ("3E-4", 3e-4), ("+2.5e+1", 25.0), (".5e-1", 0.05), ("0.001", 0.001), ("1", 1.0)],
)
def test_a_number_may_be_written_as_people_write_it(file: pathlib.Path, text: str, number: float) -> None:
    assert config.load(file, [f"train.learning_rate={text}"]).train.learning_rate == number
    file.write_text(f"train:\n  learning_rate: {text}\n")
    assert config.load(file).train.learning_rate == number


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typo, remedy",
    [
        ("train: {epoch: 3}", "the nearest is train.epochs"),
        ("train: {learning-rate: 1}", "the nearest is train.learning_rate"),
        ("model: {dept: 3}", "the nearest is model.depth"),
        ("trian: {epochs: 3}", "the nearest is train"),
        ("epochs: 3", "there are data, task, "),  # that resembles no section
        ("loss: {wing: 3}", "there are loss.bce, loss.dice, "),
    ],
)
def test_an_unknown_key_is_a_problem_that_names_the_nearest_or_all(file: pathlib.Path, typo: str, remedy: str) -> None:
    file.write_text(typo)
    with pytest.raises(Problem, match=rf"run\.yaml: .* is no setting; {re.escape(remedy)}"):
        config.load(file)


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs=three",
        "train.epochs=3.5",
        "train.epochs=true",
        "train.epochs='3'",
        "train.epochs=",
        "train.epochs=[3]",
        "train.epochs=0",
        "train.batch_size=-1",
        "train.learning_rate=0",
        "train.learning_rate=fast",
        "train.learning_rate=.nan",
        "train.learning_rate=.inf",
        "train.ema_decay=1.5",
        "train.seed=-1",
        "train.optimizer=adam",
        "train.schedule=step",
        "train.momentum=1",
        "train.accumulate=0",
        "train.checkpoint_steps=0",
        "loss.bce=-1",
        "loss.jaccard=-1",
        "loss.edge_px=0",
        "data.scale=3",
        "data.folds=1",
        "data.workers=-1",
        "data.hq=1",
        "data.folder=5",
        "augment.flip=2",
        "augment.rotate_deg=181",
        "model.depth=8",
        "model.patch=3",
        "model.arch=u-net",
        "model.arch=smpUnet",
        "predict.tta=vflip",
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_a_problem_that_names_key_and_value(
    file: pathlib.Path, override: str
) -> None:
    key, _, value = override.partition("=")
    shown = repr(yaml.safe_load(value)) if value else "None"
    with pytest.raises(Problem, match=rf"In SET: {re.escape(key)} is {re.escape(shown)}"):
        config.load(file, [override])


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["loss.bce=0", "loss.dice=0"], "loss: all weights are 0, so there is nothing to learn"),
        (["loss.bce=0", "loss.edge_weight=2"], "loss: edge_weight weights the cells of bce, which is 0: set bce"),
    ],
)
def test_a_loss_that_makes_no_sense_is_a_problem(file: pathlib.Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(Problem, match=rf"In SET: {re.escape(sentence)}.*[^.]\.$"):
        config.load(file, overrides)


@pytest.mark.parametrize(
    "written, value",
    [
        ("no", "False"), ("off", "False"), ("on", "True"), ("7", "7"), ("1.5", "1.5"), ("null", "None"), ("~", "None"),
        ("2024-01-01", "datetime.date(2024, 1, 1)"), ("1:30", "90"), ("a: b", "{'a': 'b'}"), ("[a]", "['a']"),
    ],
)  # fmt: skip
def test_a_name_that_yaml_does_not_read_as_text_is_a_problem_that_says_to_quote_it(
    file: pathlib.Path, written: str, value: str
) -> None:
    sentence = rf"task\.classes is .*: a name in it is read as {re.escape(value)}, not as text; put names in quotes"
    classes = f"task.classes=[{written},b,c]"
    with pytest.raises(Problem, match=f"^In SET: {sentence}"):
        config.load(file, ["data.kind=folder", "task.kind=multiclass", classes])
    file.write_text(f"data: {{kind: folder}}\ntask:\n  kind: multiclass\n  classes:\n  - b\n  - {written}\n")
    with pytest.raises(Problem, match=rf"^In .*run\.yaml: {sentence}"):
        config.load(file)
    file.write_text("")
    for quote in ('"', "'"):
        quoted = f"task.classes=[{quote}{written}{quote},b,c]"
        task = config.load(file, ["data.kind=folder", "task.kind=multiclass", quoted]).task
        assert task.names == (written, "b", "c")


@pytest.mark.parametrize("written", ["no", "1", "2.0", "a,b", "null", "{a: 1}", "true"])
def test_classes_are_a_list_of_names_or_their_number(file: pathlib.Path, written: str) -> None:
    with pytest.raises(Problem, match=r"task\.classes is .*: it must be a list of names .* or their number, 2 or more"):
        config.load(file, ["data.kind=folder", "task.kind=multiclass", f"task.classes={written}"])


@pytest.mark.parametrize(
    "written, shown", [("no", "False"), ("2024", "2024"), ("2024-01-01", "datetime.date"), ("null", "None")]
)
def test_any_other_text_that_yaml_reads_otherwise_is_to_be_quoted_too(
    file: pathlib.Path, written: str, shown: str
) -> None:
    with pytest.raises(Problem, match=rf"^In SET: data.folder is {shown}.*: it is not read as text; put it in quotes"):
        config.load(file, [f"data.folder={written}"])
    assert config.load(file, [f"data.folder='{written}'"]).data.folder == written


@pytest.mark.parametrize(
    "text, section", [("yes: 1", "it"), ("1: 2", "it"), ("null: 1", "it"), ("train: {no: 1}", "train")]
)
def test_a_key_that_yaml_does_not_read_as_text_is_a_problem(file: pathlib.Path, text: str, section: str) -> None:
    file.write_text(text)
    with pytest.raises(Problem, match=rf"run\.yaml: {section} has a key that is read as (True|False|1|None); a key"):
        config.load(file)


CLASSES = ["task.kind=multiclass", "task.classes=[a,b,c]", "data.kind=folder"]


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["task.kind=multiclass"], "task: multiclass needs classes: at least two names"),
        (["task.kind=multiclass", "task.classes=[a]"], "task: multiclass needs classes: at least two names"),
        (["task.classes=[a,b]"], "task: classes and class_weights are for task.kind multiclass, but it is binary"),
        (["task.class_weights=[1,2]"], "task: classes and class_weights are for task.kind multiclass"),
        ([*CLASSES, "task.classes=[a,b,a]"], "task: two classes have the same name"),
        ([*CLASSES, "task.classes=[a,b,'']"], "task: two classes have the same name, or one has none"),
        ([*CLASSES, "task.class_weights=[1,2]"], "task: there are 2 class_weights for 3 classes"),
        ([*CLASSES, "task.class_weights=[0,0,0]"], "task: class_weights are all 0"),
        ([*CLASSES, "data.kind=carvana"], "task.kind is multiclass, but data.kind carvana is binary"),
        ([*CLASSES, "loss.lovasz=1"], "loss.lovasz is not for task.kind multiclass, which has bce, dice"),
        ([*CLASSES, "loss.edge_weight=1"], "loss.edge_weight is for task.kind binary"),
        (["data.kind=nyuv2"], "data.kind nyuv2 has classes: set task.kind multiclass"),
        (["data.inputs=rgbd"], "data.inputs rgbd is for data.kind nyuv2, but it is carvana"),
        ([*CLASSES, "data.height=480"], "data.height and data.width need each other"),
        (["data.height=480", "data.width=640"], "data.height and data.width are for data.kind folder"),
        ([*CLASSES, "task.class_weights=[1,2,3]", "loss.bce=0"], "task.class_weights weights the cross-entropy"),
        ([*CLASSES, "data.hq=true"], "data.hq is for competitions, but data.kind is folder"),
        (["data.kind=folder", "data.exclude=a.csv"], "data.exclude is for competitions, but data.kind is folder"),
        ([*CLASSES, "data.kind=nyuv2", "data.relabel=a.csv"], "data.relabel is for competitions, but"),
        ([*CLASSES, "data.kind=nyuv2", "data.pseudo=a.csv"], "data.pseudo is for competitions, but data.kind is nyuv2"),
        (["task.ignore_index=0"], "task.ignore_index is for task.kind multiclass with"),
        (["data.kind=folder", "task.ignore_index=9"], "task.ignore_index is for task.kind multiclass with"),
        ([*CLASSES, "data.kind=nyuv2", "task.ignore_index=0"], "task.ignore_index is for task.kind multiclass with"),
    ],
)
def test_inconsistent_settings_are_one_sentence(file: pathlib.Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(Problem, match=rf"In SET: {re.escape(sentence)}([^.]|\.\w)*\.$"):
        config.load(file, overrides)


def test_a_network_has_an_output_for_each_class_or_one_for_an_object(file: pathlib.Path) -> None:
    assert config.load(file).task.outputs == 1
    named, counted = (config.load(file, [*CLASSES, *overrides]).task for overrides in ([], ["task.classes=40"]))
    assert (named.outputs, named.count, named.names) == (3, 3, ("a", "b", "c"))
    assert (counted.outputs, counted.count, counted.names[-1]) == (40, 40, "39")


def test_missing_keys_take_their_defaults(file: pathlib.Path) -> None:
    tree = config.load(file).model_dump()
    del tree["task"], tree["data"]["kind"], tree["data"]["height"], tree["data"]["inputs"]
    assert config.parse(tree, "last.pt") == config.load(file)


@pytest.mark.parametrize("term", ["bce", "dice", "jaccard", "focal", "lovasz"])
def test_any_one_term_is_a_loss(file: pathlib.Path, term: str) -> None:
    loss = config.load(file, ["loss.bce=0", "loss.dice=0", f"loss.{term}=0.5"]).loss
    assert loss.weights == {term: 0.5}


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "train", "3"])
def test_a_file_that_is_not_a_mapping_is_a_problem(file: pathlib.Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(Problem, match=r"run\.yaml holds .*, but it must hold sections"):
        config.load(file)


@pytest.mark.parametrize("text", ["train: 3", "train:", "train: [1]"])
def test_a_section_that_is_not_a_mapping_is_a_problem(file: pathlib.Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(Problem, match=r"run\.yaml: train is"):
        config.load(file)


@pytest.mark.parametrize("text", ["train: {epochs: 3", "train: !!python/object:os.system {}", "a: b: c", "\t"])
def test_what_is_not_plain_yaml_is_a_problem(file: pathlib.Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(Problem, match=r"run\.yaml is not YAML"):
        config.load(file)


def test_bytes_that_are_not_text_are_a_problem(file: pathlib.Path) -> None:
    file.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(Problem, match=r"run\.yaml cannot be read"):
        config.load(file)


def test_a_missing_file_is_a_problem(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"no config .*none\.yaml"):
        config.load(tmp_path / "none.yaml")


# --- choices: names in a table beside the code ----------------------------------------------------


def test_the_default_choices_are_in_their_tables() -> None:
    tree = config.Settings().model_dump()
    assert config.parse(tree, "the defaults").model_dump() == tree


@pytest.mark.parametrize("weight", [0, 1])
def test_an_unknown_loss_names_the_nearest(file: pathlib.Path, weight: int) -> None:
    with pytest.raises(Problem, match="In SET: loss.jacard is no setting; the nearest is loss.jaccard"):
        config.load(file, [f"loss.jacard={weight}"])


def test_a_new_loss_optimizer_schedule_or_tta_set_is_one_line_in_its_table(
    file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.inference import tta
    from pipeline.model import losses, optim

    overrides = ["loss.mine=0.5", "train.optimizer=mine", "train.schedule=mine", "predict.tta=mine"]
    for override in overrides:
        with pytest.raises(Problem):
            config.load(file, [override])
    for table in (losses.MASK_LOSSES, optim.OPTIMIZERS, optim.SCHEDULES, tta.TTA_SETS):
        monkeypatch.setitem(table, "mine", None)
    settings = config.load(file, overrides)
    assert settings.loss.weights == {"bce": 1, "dice": 1, "mine": 0.5}
    file.write_text(config.dump(settings))
    assert config.load(file) == settings
    with pytest.raises(Problem, match="loss.mine"):
        config.load(file, [*CLASSES, "loss.mine=1"])


def test_a_loss_of_weight_0_is_the_same_as_one_that_is_not_named(file: pathlib.Path) -> None:
    plain, jaccard = config.load(file), config.load(file, ["loss.jaccard=1"])
    assert config.load(file, ["loss.jaccard=1", "loss.jaccard=0"]) == plain
    assert config.changes(plain, jaccard) == [("loss.jaccard", 0, 1)]
    assert config.changes(jaccard, plain) == [("loss.jaccard", 1, 0)]
    file.write_text(config.dump(jaccard))
    assert config.load(file, config.overrides_between(jaccard, plain)) == config.parse(plain.model_dump(), "")


def test_settings_whose_choices_are_not_checked_are_the_same_without_torch(file: pathlib.Path) -> None:
    code = (
        "import pathlib, sys; from pipeline import config; "
        f"print(config.dump(config.load(pathlib.Path({str(file)!r}), ['loss.focal=1'], check_choices=False))); "
        f"config.check_binary(pathlib.Path({str(file)!r}), 'It'); "
        "assert not {'torch', 'albumentations'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert config.parse(yaml.safe_load(done.stdout), "") == config.load(file, ["loss.focal=1"])


def test_without_the_check_of_choices_keys_types_and_ranges_are_still_checked(file: pathlib.Path) -> None:
    assert config.load(file, ["predict.tta=mine", "loss.mine=1"], check_choices=False).predict.tta == "mine"
    for override in ("predict.ttta=none", "predict.tta=3", "loss.mine=-1", "loss.mine=x", "augment.flip=2"):
        with pytest.raises(Problem, match=override.partition("=")[0]):
            config.load(file, [override], check_choices=False)


# --- settings on the command line -----------------------------------------------------------------


def test_overrides_win_over_the_file_and_later_overrides_over_earlier_ones(file: pathlib.Path) -> None:
    settings = config.load(file, ["train.epochs=7", "data.scale=8", "train.epochs=9"])
    assert settings.train.epochs == 9 and settings.data.scale == 8


def test_overrides_are_read_as_yaml(file: pathlib.Path) -> None:
    settings = config.load(file, ["model.encoder_weights=null", "data.cache=true", 'data.folder="a b=c"'])
    assert settings.model.encoder_weights is None
    assert settings.data.cache is True
    assert settings.data.folder == "a b=c"


@pytest.mark.parametrize("override", ["epochs=3", "train.epochs", "train.a.b=1", "=", "", "train.epochs:3"])
def test_an_override_of_another_form_is_a_problem_that_shows_the_form(file: pathlib.Path, override: str) -> None:
    with pytest.raises(Problem, match="must look like section.key=value"):
        config.load(file, [override])


@pytest.mark.parametrize("override", ["train.epochs=[", "data.folder='a", "data.folder=a: b: c"])
def test_an_override_whose_value_is_not_yaml_is_a_problem_that_shows_it(file: pathlib.Path, override: str) -> None:
    with pytest.raises(Problem, match=re.escape(override)):
        config.load(file, [override])


def test_an_error_names_the_source_of_the_mistake(file: pathlib.Path) -> None:
    with pytest.raises(Problem, match="^In SET: train.epochs is 0"):
        config.load(file, ["train.epochs=0"])
    file.write_text("train: {epochs: 0}")
    with pytest.raises(Problem, match=f"^In {file}: train.epochs is 0"):
        config.load(file, ["train.seed=1"])


def test_an_override_with_a_typo_names_the_nearest_key(file: pathlib.Path) -> None:
    with pytest.raises(Problem, match="train.epoch is no setting; the nearest is train.epochs"):
        config.load(file, ["train.epoch=3"])


# --- saved settings -------------------------------------------------------------------------------


def test_settings_are_restored_from_their_own_yaml(file: pathlib.Path) -> None:
    settings = config.load(file, ["train.learning_rate=1e-5", "data.folder=null and void", "augment.flip=0"])
    file.write_text(config.dump(settings))
    assert config.load(file) == settings


def test_settings_cannot_be_changed() -> None:
    settings = config.Settings()
    with pytest.raises(pydantic.ValidationError):
        settings.train.epochs = 7
    with pytest.raises(pydantic.ValidationError):
        settings.train = config.Train(epochs=7)


def test_a_difference_is_listed_key_by_key(file: pathlib.Path) -> None:
    before, after = config.load(file), config.load(file, ["train.epochs=4", "data.scale=8"])
    assert config.difference(before, before) == []
    assert config.difference(before, after) == ["data.scale: 2 -> 8", "train.epochs: 3 -> 4"]


OVERRIDES = ["train.epochs=7", 'data.folder="my data"', "model.encoder_weights=null", "train.weight_decay=1e-05"]


def test_the_overrides_between_two_settings_turn_one_into_the_other(file: pathlib.Path) -> None:
    old = config.load(file, ["model.encoder_weights=imagenet"])
    new = config.load(file, OVERRIDES)
    overrides = config.overrides_between(old, new)
    assert sorted(overrides) == sorted(OVERRIDES)
    assert config.load(file, ["model.encoder_weights=imagenet", *overrides]) == new
    assert config.overrides_between(new, new) == []


def test_the_nearest_config_is_the_one_that_needs_the_fewest_overrides(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.nearest(config.Settings()) == ("", [])
    pathlib.Path("configs").mkdir()
    for name, text in {"a": "", "b": "train: {epochs: 9, seed: 1}", "broken": "{", "c": "data: {scale: 8}"}.items():
        pathlib.Path(f"configs/{name}.yaml").write_text(text)
    settings = config.load(pathlib.Path("configs/b.yaml"), ["train.batch_size=2"])
    assert config.nearest(settings) == ("configs/b.yaml", ["train.batch_size=2"])
    assert config.nearest(config.Settings()) == ("configs/a.yaml", [])


def test_a_later_stage_takes_only_overrides_that_still_matter(file: pathlib.Path) -> None:
    trained = config.load(file)
    overrides = ["train.epochs=99", "model.depth=1", "loss.dice=0", "predict.tta=none", "data.folder=elsewhere"]
    settings = config.for_later_stage(trained, overrides)
    assert (settings.train, settings.model, settings.loss) == (trained.train, trained.model, trained.loss)
    assert settings.predict.tta == "none" and settings.data.folder == "elsewhere"
