"""The model card says what is in the model's document, and nothing that is not."""

from pathlib import Path

import pytest
import torch

from autoseg.documents.model import ModelSpec
from autoseg.documents.postprocessing import (
    DenseCRF,
    FillHoles,
    KeepLargest,
    MinimumSize,
    Step,
)
from autoseg.nets.build import build
from autoseg.report.card import escaped, in_words, model_card
from tests.stages.tiny_model import FOLDERS, tiny_model


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return tiny_model(tmp_path_factory.mktemp("card"))


def changed(spec: ModelSpec, **values: object) -> ModelSpec:
    return ModelSpec.parse({**spec.dump(), **values}, "the model")


def row(card: str, start: str) -> list[str]:
    (line,) = [line for line in card.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_scores_are_those_of_the_cross_validation(spec: ModelSpec) -> None:
    card = model_card(spec)
    dice = torch.tensor([0.90, 0.91, 0.92, 0.93])
    wanted = f"{dice.mean():.4f} ± {dice.std(correction=0):.4f}"
    assert row(card, "| structure |") == [
        "structure",
        "cases",
        "missed",
        "spurious",
        "Dice",
        "HD95 mm",
    ]
    assert row(card, "| liver | 4") == ["liver", "4", "0", "0", wanted, "3.50 ± 1.12"]
    assert row(card, "| tumour_a | 4") == ["tumour_a", "4", "4", "0", "0.0000 ± 0.0000", "-"]
    assert "Mean Dice of the structures: **0.4575**" in card
    assert "4 labelled cases" in card


def test_a_model_without_cross_validation_says_so(spec: ModelSpec) -> None:
    card = model_card(changed(spec, cross_validation=None))
    assert "exported before it was cross-validated" in card
    assert "labelled cases" not in card


def test_the_card_says_what_goes_in_and_comes_out(spec: ModelSpec) -> None:
    card = model_card(spec)
    assert "Segments **liver, tumour_a** in 3D images of CT." in card
    assert row(card, "| 4 |") == ["4", "tumour_a"]
    assert "voxels of 0.7 to 5 × 0.5 to 1 × 0.5 to 1 mm" in card
    assert "CT: intensities of -1000 to 1500" in card
    assert "autoseg predict --model FILE -i IN -o OUT" in card
    assert "Not a medical device" in card
    assert "one file a case" in card


def test_the_networks_are_counted(spec: ModelSpec) -> None:
    card = model_card(spec)
    for member in spec.members:
        numbers = sum(p.numel() for p in build(member.configuration.network).parameters())
        line = next(x for x in card.splitlines() if x.startswith(f"- **{member.name}**"))
        assert f"{numbers / 1e6:.2f} million parameters" in line
        assert f"{len(member.weights)} fold" in line
        assert ("refines 3d_lowres" in line) == (member.name == "3d_cascade_fullres")
        assert "float32" in line
    assert "They refine what these found before:" in card


def test_regions_and_unlabelled_voxels_are_told(spec: ModelSpec) -> None:
    document = spec.dump()
    labels = {
        "names": ["background", "edema", "core"], "values": [0, 1, 4], "ignore": 9,
        "regions": [{"name": "whole", "classes": [1, 2], "paint": 1},
                    {"name": "core", "classes": [2], "paint": 2},
                    {"name": "rest", "classes": [1], "paint": 1}],
    }  # fmt: skip
    document["labels"] = labels
    for member in (*document["members"], *document["stages"]):
        member["configuration"]["preparation"]["labels"] = labels
    card = model_card(ModelSpec.parse(document, "the model"))
    assert "Segments **whole, core, rest**" in card
    assert "- whole is 1 + 4" in card
    assert "voxels of value 9 were not labelled" in card


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (KeepLargest(of="*"), "largest connected piece of all structures together"),
        (MinimumSize(of="liver", mm3=30.5), "pieces of liver of less than 30.5 mm³ are removed"),
        (FillHoles(of="a_b"), "Holes in a_b are filled."),
        (
            DenseCRF(iterations=3, radius_mm=5.0, smooth_mm=1.0, bilateral_mm=2.0),
            "conditional random field (3 iterations within 5 mm)",
        ),
    ],
)
def test_each_step_of_postprocessing_has_its_words(spec: ModelSpec, step: Step, words: str) -> None:
    assert words in in_words(step)
    card = model_card(changed(spec, postprocessing=[step.dump()]))
    assert f"1. {in_words(step)}" in card
    assert "None." in model_card(changed(spec, postprocessing=[]))


def test_a_name_cannot_break_the_table_or_bring_a_link() -> None:
    assert escaped("a|b <script> [x](y) *z* `q`") == r"a\|b \<script\> \[x\](y) \*z\* \`q\`"
    assert escaped("left_lung _x_") == r"left_lung \_x\_"
    assert escaped("two\nlines") == "two lines"


def test_the_card_names_no_case_and_no_place(spec: ModelSpec, tmp_path: Path) -> None:
    card = model_card(spec)
    for word in ("Meier", *FOLDERS.split("/"), str(tmp_path.parent)):
        assert word not in card
