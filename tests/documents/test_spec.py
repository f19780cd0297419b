"""Specifications of public datasets: complete, true to the data, and true to their schema."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from autoseg.documents.dataset import read_dataset, suffix_of
from autoseg.documents.labels import parse_labels
from autoseg.documents.spec import DatasetSpec, Files, SourceLayout, list_specs, read_spec, schema
from autoseg.errors import AutosegError, PlanError

MEASURED = (
    "Dataset004_Hippocampus",
    "Dataset005_LungNodule",
    "Dataset006_Nuclei",
    "Dataset007_LowerGradeGlioma",
)
ALL = list_specs()


def changed(wanted: str, **values: object) -> dict[str, Any]:
    return read_spec(wanted).dump() | values


def test_every_specification_is_listed_and_parses() -> None:
    assert ALL[:4] == MEASURED
    assert len(ALL) == 30
    assert tuple(read_spec(name).name for name in ALL) == ALL


def test_schema_json_is_the_schema_of_the_documents(repository: Path) -> None:
    """After a change of the document: `files.write_json(path, spec.schema())`."""
    stored = json.loads((repository / "datasets_spec" / "schema.json").read_text("utf-8"))
    assert stored == json.loads(json.dumps(schema()))


@pytest.mark.parametrize("name", ALL)
def test_specification_is_stored_as_it_is_dumped(name: str, repository: Path) -> None:
    stored = json.loads((repository / "datasets_spec" / f"{name}.json").read_text("utf-8"))
    assert stored == read_spec(name).dump()
    assert DatasetSpec.parse(stored, name) == read_spec(name)


def test_numbers_words_and_aliases_are_given_once() -> None:
    specs = [read_spec(name) for name in ALL]
    assert len({spec.number for spec in specs}) == len(specs)
    said = [name.split("_")[1].lower() for name in ALL]
    said += [alias.lower() for spec in specs for alias in spec.aliases]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize("name", ALL)
def test_numbers_follow_the_rule(name: str) -> None:
    """docs/datasets.md: parts for tests, the ten of the decathlon, other volumes, pictures."""
    spec = read_spec(name)
    if spec.number < 100:
        assert name in MEASURED
    elif spec.number <= 110:
        assert spec.aliases[0].startswith(f"Task{spec.number - 100:02d}_")
    elif spec.dimensions == 3:
        assert 111 <= spec.number <= 149
    else:
        assert 151 <= spec.number <= 189


@pytest.mark.parametrize("name", ALL)
def test_labels_are_what_a_dataset_could_declare(name: str) -> None:
    spec = read_spec(name)
    document = json.loads(json.dumps(spec.dump()))
    labels = parse_labels(document["labels"], document.get("regions_class_order"))
    assert labels == spec.label_set
    assert set(labels.structures) | {"background"} >= set(spec.labels) - {"ignore"}


@pytest.mark.parametrize("name", ALL)
def test_what_is_claimed_names_its_source(name: str) -> None:
    spec = read_spec(name)
    if name not in MEASURED:
        assert spec.facts_from
    for score in spec.reference:
        assert re.search(r"arXiv:|README|Auto-nnU-Net study", score.source)
    for archive in spec.archives:
        assert all(url.startswith("https://") for url in archive.urls)
    assert (spec.geometry_is == "measured") == (name in MEASURED)


@pytest.mark.parametrize("name", ALL)
def test_a_reference_is_the_mean_of_its_classes(name: str) -> None:
    for score in read_spec(name).reference:
        if score.per_class:
            mean = sum(score.per_class.values()) / len(score.per_class)
            assert score.value == pytest.approx(mean, abs=6e-5)


@pytest.mark.parametrize("name", ALL)
def test_the_layout_has_a_file_for_every_channel_unless_one_holds_three(name: str) -> None:
    spec = read_spec(name)
    images = [entry for entry in spec.layout if entry.startswith("imagesTr/")]
    assert len(images) == (1 if spec.dimensions == 2 else len(spec.channels))
    for number, entry in enumerate(images):
        assert entry.startswith(f"imagesTr/CASE_{number:04d}")
        assert suffix_of(entry)
    assert spec.layout[-1] == f"labelsTr/CASE{spec.file_ending}"


@pytest.mark.parametrize("name", MEASURED)
def test_specification_agrees_with_the_real_dataset(name: str, real_data: Path) -> None:
    dataset, problems = read_dataset(real_data / name)
    spec = read_spec(name)
    assert problems == []
    assert spec.channels == dataset.channels
    assert spec.label_set == dataset.labels
    assert spec.cases == len(dataset.cases)
    assert spec.file_ending == dataset.file_ending
    for pattern in spec.layout[1:]:
        place, _, ending = pattern.partition("CASE")
        assert len(list((real_data / name / place).glob(f"*{ending}"))) >= spec.cases


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("4", "Dataset004_Hippocampus"),
        ("004", "Dataset004_Hippocampus"),
        ("Hippocampus", "Dataset004_Hippocampus"),
        (" 4 ", "Dataset004_Hippocampus"),
        ("Dataset004_Hippocampus", "Dataset004_Hippocampus"),
        ("104", "Dataset104_HippocampusFull"),
        ("task04_hippocampus", "Dataset104_HippocampusFull"),
        ("kits23", "Dataset112_KiTS23"),
        ("Synapse", "Dataset114_BTCV"),
    ],
)
def test_a_specification_is_found_by_number_word_and_alias(wanted: str, found: str) -> None:
    assert read_spec(wanted).name == found


@pytest.mark.parametrize("wanted", ["", "0", "40", "../schema", "Dataset004_Hipocampus"])
def test_an_unknown_name_is_explained(wanted: str) -> None:
    with pytest.raises(AutosegError, match="no specification of a dataset"):
        read_spec(wanted)


def test_a_misspelt_name_gets_the_nearest_one_or_the_list() -> None:
    with pytest.raises(AutosegError, match="did you mean 'Dataset006_Nuclei'"):
        read_spec("Dataset006_Nucleus")
    with pytest.raises(AutosegError, match="did you mean 'KiTS23'"):
        read_spec("KiTTS23")
    with pytest.raises(AutosegError, match="`autoseg datasets` lists them"):
        read_spec("zzz")


# Paths as they lie in the unpacked sources, as public conversions tell them.
SOURCE_FILES = [
    ("101", "images", "Task01_BrainTumour/imagesTr/BRATS_001.nii.gz", ("BRATS_001", 0)),
    ("101", "labels", "imagesTr/BRATS_001.nii.gz", None),
    ("101", "images", "Task01_BrainTumour/imagesTr/._BRATS_001.nii.gz", None),
    ("111", "images", "train/BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz", ("BraTS2021_00000", 1)),
    ("111", "images", "train/BraTS2021_00000/BraTS2021_00000_seg.nii.gz", None),
    ("111", "images", "BraTS2021_00000/BraTS2021_00002_t1.nii.gz", None),
    ("111", "labels", "BraTS2021_00000/BraTS2021_00000_seg.nii.gz", ("BraTS2021_00000", 0)),
    ("112", "images", "dataset/case_00000/imaging.nii.gz", ("case_00000", 0)),
    ("113", "images", "__MACOSX/amos22/imagesTr/amos_0001.nii.gz", None),
    ("113", "labels", "amos22/labelsVa/amos_0008.nii.gz", ("amos_0008", 0)),
    ("114", "images", "RawData/Training/img/img0001.nii.gz", ("btcv_0001", 0)),
    ("114", "labels", "RawData/Training/label/label0001.nii.gz", ("btcv_0001", 0)),
    ("114", "test_images", "RawData/Testing/img/img0061.nii.gz", ("btcv_0061", 0)),
    ("115", "images", "ACDC/database/training/patient001/patient001_frame01.nii.gz",
     ("patient001_frame01", 0)),
    ("115", "images", "training/patient001/patient001_frame01_gt.nii.gz", None),
    ("115", "images", "training/patient001/patient001_4d.nii.gz", None),
    ("115", "labels", "training/patient001/patient001_frame01_gt.nii.gz",
     ("patient001_frame01", 0)),
    ("116", "images", "Train_Sets/CT/21/DICOM_anon/i0000,0000b.dcm", ("ct_21", 0)),
    ("117", "images", "Train_Sets/MR/34/T1DUAL/DICOM_anon/InPhase/IMG-0004-00002.dcm",
     ("T1in_34", 0)),
    ("117", "labels", "Train_Sets/MR/34/T2SPIR/Ground/IMG-0002-00001.png", ("T2_34", 0)),
    ("118", "images", "Training Batch 1/volume-0.nii", ("liver_0", 0)),
    ("118", "images", "LITS-Challenge-Test-Data/test-volume-0.nii", None),
    ("118", "test_images", "LITS-Challenge-Test-Data/test-volume-0.nii", ("test_0", 0)),
    ("151", "images", "ISIC-2017_Training_Data/ISIC_0000000.jpg", ("ISIC_0000000", 0)),
    ("151", "images", "ISIC-2017_Training_Data/ISIC_0000000_superpixels.png", None),
    ("152", "labels", "ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png",
     ("ISIC_0000000", 0)),
    ("153", "images", "PH2 Dataset images/IMD003/IMD003_Dermoscopic_Image/IMD003.bmp",
     ("IMD003", 0)),
    ("154", "images", "DRIVE/training/images/21_training.tif", ("drive_21", 0)),
    ("154", "field_of_view", "training/mask/21_training_mask.gif", ("drive_21", 0)),
    ("155", "images", "Warwick QU Dataset (Released 2016_07_08)/train_1.bmp", ("train_1", 0)),
    ("155", "images", "train_1_anno.bmp", None),
    ("155", "test_labels", "testB_20_anno.bmp", ("testB_20", 0)),
    ("156", "labels", "stage1_train/00ae65c1/masks/07a9bf1d.png", ("00ae65c1", 0)),
    ("157", "labels", "Kvasir-SEG/masks/cju0qkwl35piu0993l0dewei2.jpg",
     ("cju0qkwl35piu0993l0dewei2", 0)),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "role", "path", "claim"), SOURCE_FILES)
def test_files_of_the_source_find_their_case(
    wanted: str, role: str, path: str, claim: tuple[str, int] | None
) -> None:
    layout = read_spec(wanted).source_layout
    assert layout is not None
    claims = [files.claim(path) for files in getattr(layout, role)]
    assert [c for c in claims if c] == ([claim] if claim else [])


def test_one_label_map_serves_two_images_of_a_patient() -> None:
    layout = read_spec("CHAOSMR").source_layout
    assert layout is not None
    path = "Train_Sets/MR/34/T1DUAL/Ground/IMG-0004-00002.png"
    claims = [files.claim(path) for files in layout.labels]
    assert claims == [("T1in_34", 0), ("T1out_34", 0), None]


def test_values_of_the_source_become_ours() -> None:
    brats, kvasir = read_spec("BraTS2021").source_layout, read_spec("157").source_layout
    assert brats is not None and kvasir is not None
    assert brats.ranges == ((0, 0, 0), (1, 1, 2), (2, 2, 1), (4, 4, 3))
    assert kvasir.ranges == ((0, 127, 0), (128, 255, 1))


@pytest.mark.parametrize("wanted", ["ACDC", "CHAOSMR", "LIDC"])
def test_patients_are_told_where_they_have_several_cases(wanted: str) -> None:
    pattern = read_spec(wanted).patient_pattern
    assert pattern is not None
    cases = {
        "ACDC": ("patient001_frame12", "patient001"),
        "CHAOSMR": ("T1out_34", "34"),
        "LIDC": ("LIDC-IDRI-0132b", "LIDC-IDRI-0132"),
    }
    case, patient = cases[wanted]
    found = re.search(pattern, case)
    assert found is not None
    assert found[1] == patient


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"labels": {"anterior": 1}}, "background must be declared as 0"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "a value of its own"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}}, "regions_class_order"),
        ({"cases": 261}, "more cases than were published"),
        ({"file_ending": ".dcm"}, "file_ending '.dcm'"),
        ({"labels": {"background": 0, "head": 1}}, "anterior, posterior, no label"),
        ({"landing_page": "medicaldecathlon.com"}, "landing_page"),
        ({"chanels": ["MRI"]}, "did you mean 'channels'"),
        ({"modality": ["Xray"]}, "modality"),
        ({"access": "paid"}, "access"),
        ({"schema_version": 1}, "schema_version"),
        ({"access": "registration"}, "archives may be fetched by nobody"),
        ({"archives": [{"urls": ["ftp://a/b.zip"]}]}, "urls"),
        ({"archives": [{"urls": ["https://a/b"], "md5": "12"}]}, "md5"),
        ({"archives": [{"urls": ["https://a/b"], "md5": "0" * 32}]}, "who states it"),
        ({"patient_pattern": "patient"}, "has no group"),
    ],
)
def test_a_faulty_specification_is_refused(values: dict[str, object], fault: str) -> None:
    with pytest.raises(PlanError, match=fault):
        DatasetSpec.parse(changed("104", **values), "a specification")


@pytest.mark.parametrize(
    ("layout", "fault"),
    [
        ({"values": {"0": 0, "255": 3}}, r"\[3\] are no values"),
        ({"field_of_view": [{"pattern": "m/{case}.png"}]}, "a label called ignore"),
        ({"values": {"0-5": 0, "5": 1}}, "overlaps"),
        ({"values": {"5-0": 0}}, "upside down"),
        ({"values": {"white": 1}}, "neither a value nor a range"),
        ({"images": [{"pattern": "a/*.png"}]}, "no word of"),
        ({"images": [{"pattern": "a/{case}_{channel:w}.png"}]}, "belong together"),
        ({"images": [{"pattern": "{case}_{channel}.gz", "channels": {"a": 1}}]}, "are not 1"),
        ({"images": []}, "images"),
    ],
)
def test_a_faulty_conversion_is_refused(layout: dict[str, Any], fault: str) -> None:
    whole = changed("104")["source_layout"] | layout
    with pytest.raises(PlanError, match=fault):
        DatasetSpec.parse(changed("104", source_layout=whole), "a specification")


def test_patterns_mean_what_they_say() -> None:
    files = Files(pattern="**/{case:w}/x*.{n:d}.png", case="{case}-{n}")
    assert files.claim("a/b/c1/x.7.png") == ("c1-7", 0)
    assert files.claim("c1/xyz.7.png") == ("c1-7", 0)
    assert files.claim("c_1/x.7.png") is None
    assert files.claim("c1/x/y.7.png") is None
    assert files.claim("c1/x.7xpng") is None
    assert files.claim("x.7.png") is None
    assert files.claim(".hidden/c1/x.7.png") is None


def test_defaults_are_not_written() -> None:
    layout = SourceLayout(
        images=(Files(pattern="i/{case}.png"),), labels=(Files(pattern="l/{case}.png"),)
    )
    assert layout.dump() == {
        "images": [{"pattern": "i/{case}.png"}], "labels": [{"pattern": "l/{case}.png"}]
    }  # fmt: skip
    unknown = DatasetSpec.parse({**read_spec("BTCV").dump(), "test_cases": None}, "x").dump()
    assert (unknown["licence"], unknown["may_be_passed_on"], unknown["test_cases"]) == (None,) * 3


def test_hippocampus_reference_is_that_of_the_whole_dataset() -> None:
    (part,) = read_spec("4").reference
    whole = read_spec("104").reference[0]
    assert part.value == whole.value == 0.8904
    assert part.per_class == whole.per_class
