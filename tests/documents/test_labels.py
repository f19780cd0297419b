"""Labels as dataset.json declares them: classes, regions, the ignore label, and every wrong way."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.documents.dataset import read_dataset
from autoseg.documents.labels import IGNORE, OUTSIDE, LabelSet, parse_labels
from autoseg.errors import AutosegError
from autoseg.files import sha256_json, write_json

BRATS = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing": 3}
PLAIN = LabelSet(names=("background", "organ", "lesion"), values=(0, 4, 7))


def brats(**more: Any) -> LabelSet:
    return parse_labels({**BRATS, **more}, [1, 2, 3])


def test_classes_are_in_the_order_of_their_values() -> None:
    found = parse_labels({"lesion": 7, "background": 0, "organ": 4})
    assert found == PLAIN
    assert (found.count, found.outputs, found.foreground) == (3, 3, ("organ", "lesion"))
    assert found.structures == {"organ": (4,), "lesion": (7,)}
    assert found.allowed == (0, 4, 7)
    assert found.members.shape == (0, 3)


def test_labels_without_regions_are_written_as_they_always_were() -> None:
    assert PLAIN.dump() == {"names": ["background", "organ", "lesion"], "values": [0, 4, 7]}
    assert sha256_json(PLAIN.dump()) == sha256_json(
        {"names": ["background", "organ", "lesion"], "values": [0, 4, 7]}
    )


@pytest.mark.parametrize("labels", [PLAIN, brats(), brats(ignore=4)])
def test_what_is_written_is_read_again(labels: LabelSet) -> None:
    assert LabelSet.parse(labels.dump(), "labels") == labels


def test_nnunets_regions_are_classes_and_sets_of_them() -> None:
    found = brats()
    assert found.names == ("background", "label 1", "label 2", "enhancing")
    assert found.values == (0, 1, 2, 3)
    assert (found.count, found.outputs) == (4, 3)
    assert found.structures == {
        "whole tumour": (1, 2, 3), "tumour core": (2, 3), "enhancing": (3,)
    }  # fmt: skip
    assert [region.paint for region in found.regions] == [1, 2, 3]
    assert found.members.astype(int).tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]


def test_values_of_regions_need_not_be_consecutive() -> None:
    found = parse_labels({"background": 0, "head": [5, 9, 2], "eye": [9]}, [5, 9])
    assert found.values == (0, 2, 5, 9)
    assert [(r.classes, r.paint) for r in found.regions] == [((1, 2, 3), 2), ((3,), 3)]
    assert found.structures == {"head": (2, 5, 9), "eye": (9,)}


def test_painting_in_listing_order_gives_back_every_class_that_a_region_paints() -> None:
    found = brats()
    truth = np.arange(4)
    painted = np.zeros(4, int)
    for inside, region in zip(found.members[:, truth], found.regions, strict=True):
        painted[inside] = region.paint
    assert painted.tolist() == [0, 1, 2, 3]


def test_a_list_of_one_value_is_a_class_as_in_nnunet() -> None:
    found = parse_labels({"background": [0], "organ": [4], "lesion": 7}, [1])
    assert found == PLAIN


def test_nnunets_first_version_spelled_it_the_other_way_round() -> None:
    assert parse_labels({"0": "background", "4": "organ", "7": "lesion"}) == PLAIN


@pytest.mark.parametrize("labels", [parse_labels({"air": 0, "a": 1, "ignore": 5}), brats(ignore=5)])
def test_the_ignore_label_is_no_class_and_no_structure(labels: LabelSet) -> None:
    assert labels.ignore == 5
    assert 5 not in labels.values
    assert "ignore" not in (*labels.names, *labels.structures)
    assert set(labels.allowed) == {*labels.values, 5}
    values = np.array([5, *labels.values, 5])
    classes = labels.to_classes(values)
    assert classes.tolist() == [IGNORE, *range(labels.count), IGNORE]
    assert labels.to_values(classes).tolist() == [0, *labels.values, 0]


def test_an_ignore_label_differs_from_a_class_of_its_value() -> None:
    ignored = parse_labels({"background": 0, "a": 1, "ignore": 2})
    drawn = parse_labels({"background": 0, "a": 1, "b": 2})
    assert set(ignored.allowed) == set(drawn.allowed)
    assert ignored.allowed != drawn.allowed


def test_outside_and_unlabelled_are_written_as_background() -> None:
    assert PLAIN.to_values(np.array([OUTSIDE, IGNORE, 0, 2])).tolist() == [0, 0, 0, 7]


def test_an_undeclared_value_has_no_class() -> None:
    with pytest.raises(ValueError, match=r"undeclared label values \[1, 5\]"):
        PLAIN.to_classes(np.array([0, 1, 4, 5]))


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "i4", "u4", "i8", "u8"])
def test_values_of_every_type_are_looked_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoseg.documents.labels.AT_ONCE", 7)
    drawn = np.random.default_rng(0).choice(np.array([0, 4, 7], kind), (3, 4, 5)).transpose(2, 0, 1)
    classes = PLAIN.to_classes(drawn)
    wanted = {value: index for index, value in enumerate(PLAIN.values)}
    assert classes.tolist() == np.vectorize(wanted.get)(drawn).tolist()
    for strange in (np.iinfo(kind).max, np.iinfo(kind).min or 9):
        with pytest.raises(ValueError, match=f"undeclared label values .{strange}."):
            PLAIN.to_classes(np.array([0, strange, 7], kind))


@given(st.sets(st.integers(1, 300), min_size=1, max_size=6), st.booleans())
def test_values_and_classes_are_each_others_inverse(values: set[int], ignored: bool) -> None:
    declared = {"background": 0, **{f"s{v}": v for v in values}}
    labels = parse_labels(declared | ({"ignore": 301} if ignored else {}))
    drawn = np.array([0, *values])
    assert labels.to_values(labels.to_classes(drawn)).tolist() == drawn.tolist()


WRONG: dict[str, tuple[Any, Any, str]] = {
    "no mapping": (["background"], None, "must map names to values"),
    "nothing": ({}, None, "must map names to values"),
    "no background": ({"a": 1, "b": 2}, None, "lowest label value is 1; background"),
    "a negative value": ({"background": 0, "a": -1}, None, "lowest label value is -1; background"),
    "ignore alone": ({"ignore": 1}, None, "lowest label value is None; background"),
    "background alone": ({"background": 0}, None, "at least one structure"),
    "two backgrounds": ({"background": 0, "air": 0, "a": 1}, None, "one name with the value 0"),
    "a value twice": ({"background": 0, "a": 1, "b": 1}, None, "a value of its own"),
    "a name twice": ({"0": "background", "1": "a", "2": "a"}, None, 'two labels are called "a"'),
    "a fraction": ({"background": 0, "a": 1.5}, None, "must be an integer"),
    "a truth": ({"background": 0, "a": True}, None, "must be an integer"),
    "an empty list": ({"background": 0, "a": []}, None, "must be an integer"),
    "ignore in between": ({"background": 0, "ignore": 1, "a": 2}, None, "above all others, as 3"),
    "ignore with a class": ({"background": 0, "a": 2, "ignore": 2}, None, "above all others, as 3"),
    "ignore as a region": ({"background": 0, "a": 1, "ignore": [2, 3]}, None, "one value above"),
    "a region with background": ({"background": 0, "a": [0, 1]}, [1], 'region "a" holds 0'),
    "no order": (BRATS, None, 'need "regions_class_order".*"whole tumour"'),
    "an order that is no list": (BRATS, 3, 'need "regions_class_order".*found 3'),
    "a short order": (BRATS, [1, 2], r'need "regions_class_order".*found \[1, 2\]'),
    "an unknown value": (BRATS, [1, 2, 4], 'paints "enhancing" with 4.*made of'),
    "a value of another": (BRATS, [3, 2, 1], 'paints "enhancing" with 1.*made of'),
    "small regions first": (
        {"background": 0, "enhancing": 3, "whole": [1, 2, 3]}, [3, 1],
        '"whole", listed after "enhancing", would be painted over all of it',
    ),
    "equal regions": ({"background": 0, "a": [1, 2], "b": [2, 1]}, [1, 2], "painted over all"),
    "a region called like a value": (
        {"background": 0, "a": [1, 2, 3], "label 2": 3}, [1, 3], '"label 2" is also the name'
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_each_wrong_declaration_is_explained_in_a_line(case: str) -> None:
    declared, order, message = WRONG[case]
    with pytest.raises(AutosegError, match=message) as caught:
        parse_labels(declared, order)
    assert str(caught.value).startswith("dataset.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"values": (0, 4)}, "one name and one value"),
        ({"values": (0, 4, 4)}, "one name and one value"),
        ({"values": (1, 4, 7)}, "background = 0"),
        ({"ignore": 7}, "value of a class, too"),
        ({"regions": [{"name": "r", "classes": [1, 3], "paint": 1}]}, "made of classes"),
        ({"regions": [{"name": "r", "classes": [], "paint": 1}]}, "made of classes"),
        ({"regions": [{"name": "r", "classes": [1], "paint": 0}]}, "made of classes"),
        ({"regions": [{"name": "r", "classes": [1], "paint": 1}] * 2}, "two regions have one name"),
    ],
)
def test_a_document_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AutosegError, match=message):
        LabelSet.parse(PLAIN.dump() | fields, "labels")


def test_dataset_json_brings_its_order_of_painting(tmp_path: Any) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "a_0000.nii.gz").touch()
    document = {"channel_names": {"0": "MRI"}, "labels": BRATS, "regions_class_order": [1, 2, 3]}
    write_json(tmp_path / "dataset.json", document)
    assert read_dataset(tmp_path)[0].labels == brats()


@pytest.mark.parametrize("name", ["Ignore", "IGNORE", "ignore"])
def test_ignore_in_any_letters(name: str) -> None:
    found = parse_labels({"background": 0, "a": 1, name: 2})
    assert (found.names, found.ignore) == (("background", "a"), 2)


@pytest.mark.parametrize("value", [2**31, [1, 2**40], -(2**33)])
def test_values_that_no_label_map_holds(value: object) -> None:
    with pytest.raises(AutosegError, match="which no label map can hold"):
        parse_labels({"background": 0, "a": value})
