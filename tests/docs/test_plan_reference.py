"""docs/plan.md names every field of the plan, and nothing in its tables that is none."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from autoseg.documents.document import Document
from autoseg.documents.networks.network import Network
from autoseg.documents.networks.sentence import UNetSpec
from autoseg.documents.plan import Plan, Training, parse_plan
from autoseg.documents.settings import patched
from autoseg.rules.recipe import CORE_TRAINING
from autoseg.rules.world import GRID_PINS, RULE_PINS

HEADING = re.compile(r"^#{2,3} (.+)$", re.MULTILINE)
ROW = re.compile(r"^\| (`[^|]+`) \|", re.MULTILINE)


def models() -> dict[str, type[BaseModel]]:
    """The documents that a plan is made of, by name.

    Of the networks the U-Net's sentence stands for all; what other families' documents say is told
    in docs/networks.md.
    """
    found: dict[str, type[BaseModel]] = {}
    waiting: list[type[BaseModel]] = [Plan]
    while waiting:
        kind = waiting.pop()
        if kind.__name__ in found or (issubclass(kind, Network) and kind is not UNetSpec):
            continue
        found[kind.__name__] = kind
        for field in kind.model_fields.values():
            waiting += documents_in(field.annotation)
    assert {"LabelSet", "Configuration", "UNetSpec", "Part", "Word"} <= set(found)
    return found


def documents_in(annotation: object) -> list[type[BaseModel]]:
    """The documents inside tuples, unions and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, Document):
        return [annotation]
    return [kind for argument in get_args(annotation) for kind in documents_in(argument)]


def names_of(kind: type[BaseModel]) -> set[str]:
    """The keys of a document, as they stand in the JSON."""
    return {field.alias or name for name, field in kind.model_fields.items()}


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "plan.md").read_text(encoding="utf-8")


def sections(page: str) -> Iterator[tuple[str, str]]:
    """(heading, text below it) of every section."""
    parts = HEADING.split(page)
    yield from zip(parts[1::2], parts[2::2], strict=True)


@pytest.mark.parametrize("name", sorted(models()))
def test_every_field_stands_in_the_section_of_its_model(page: str, name: str) -> None:
    text = dict(sections(page))[name]
    missing = {field for field in names_of(models()[name]) if f"`{field}`" not in text}
    assert missing == set()


@pytest.mark.parametrize("name", sorted(set(models()) - {"DecoderLevel", "Word"}))
def test_the_tables_name_no_other_fields(page: str, name: str) -> None:
    text = dict(sections(page))[name]
    rows = {field for row in ROW.findall(text) for field in re.findall(r"`([^`]+)`", row)}
    assert rows == names_of(models()[name])


@pytest.mark.parametrize("name", ["Training", "Augmentation", "Preparation", "Prediction"])
def test_defaults_are_told_as_they_are(page: str, name: str) -> None:
    text = dict(sections(page))[name]
    for field, info in models()[name].model_fields.items():
        if info.is_required() or isinstance(info.default, (bool, tuple)) or info.default is None:
            continue
        (row,) = [line for line in text.splitlines() if re.match(rf"\| .*`{field}`.* \|", line)]
        said = row.split("|")[-2]
        shown = info.default if isinstance(info.default, str) else f"{info.default:g}"
        assert shown.replace("e-0", "e-") in said, f"{field}: {shown} in {said!r}"


@pytest.mark.parametrize("name", sorted(models()))
def test_every_choice_of_a_field_is_told(page: str, name: str) -> None:
    text = dict(sections(page))[name]
    for field, info in models()[name].model_fields.items():
        key = info.alias or field
        choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
        rows = [line for line in text.splitlines() if re.match(rf"\| .*`{key}`.* \|", line)]
        missing = {str(c) for c in choices if str(c) not in " ".join(rows)}
        assert missing == set(), key


def test_the_recipe_for_cores_is_told_as_it_is(page: str) -> None:
    text = dict(sections(page))["Training"]
    for field, value in CORE_TRAINING.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{field}` |")]
        said = row.split("|")[-2].split("cores: ")[1].strip(" `")
        assert said == (value if isinstance(value, str) else f"{value:g}"), field


def test_the_short_pins_are_those_that_rules_ask_for(page: str) -> None:
    text = dict(sections(page))["Pinning"]
    rows = {field for row in ROW.findall(text) for field in re.findall(r"`([^`]+)`", row)}
    assert rows == {*GRID_PINS, *RULE_PINS}


def test_the_python_example_makes_a_checked_copy(
    page: str, tiny_root: Path, tmp_path: Path
) -> None:
    (example,) = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "docs/plan.md", "exec"), names)
    folder = tiny_root / "preprocessed" / "Dataset001_Phantom" / "plans"
    plan = Plan.read(folder / "default" / "plan.json")
    (made,) = [call for name, call in names.items() if name.startswith("with_")]
    assert callable(made)
    changed = made(plan, tmp_path)
    assert changed.name == "slow"
    assert changed.configurations["3d_fullres"].train.lr == 0.001
    assert changed == Plan.read(tmp_path / "slow" / "plan.json")
    assert parse_plan(patched(changed.dump(), {"name": plan.name}), "back") != plan


def test_the_training_defaults_are_nnunets() -> None:
    fields = Training.model_fields
    found = {name: fields[name].default for name in ("lr", "momentum", "weight_decay", "clip_norm")}
    assert found == {"lr": 0.01, "momentum": 0.99, "weight_decay": 3e-5, "clip_norm": 12.0}
