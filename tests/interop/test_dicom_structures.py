"""Label maps as DICOM-SEG and RTSTRUCT and back, structures as labels, and whole datasets.

Round trips are exact for DICOM-SEG, and for RTSTRUCT within half a voxel: exact by voxel centres.
Oracles: highdicom's own reader, matplotlib's polygons.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402
from skimage.draw import polygon2mask  # noqa: E402

from autoseg.documents.labels import parse_labels  # noqa: E402
from autoseg.errors import AutosegError, BadData  # noqa: E402
from autoseg.image.geometry import arrange  # noqa: E402
from autoseg.image.reading import read_image, read_labels  # noqa: E402
from autoseg.interop.dicom.choosing import Scan, choose  # noqa: E402
from autoseg.interop.dicom.contours import contours_of, filled, together  # noqa: E402
from autoseg.interop.dicom.convert import convert_dicom  # noqa: E402
from autoseg.interop.dicom.labels import read_structures  # noqa: E402
from autoseg.interop.dicom.pixels import read_scan  # noqa: E402
from autoseg.interop.dicom.results import ENDINGS, write_result  # noqa: E402
from autoseg.interop.dicom.rtstruct import write_rtstruct  # noqa: E402
from autoseg.interop.dicom.segmentation import write_segmentation  # noqa: E402
from autoseg.interop.dicom.series import drawn_on, find  # noqa: E402
from tests.interop.dicom_phantom import (  # noqa: E402
    PLANES,
    blobs,
    slice_dataset,
    structured,
    write_enhanced,
    write_series,
)

WRITERS = {"SEG": write_segmentation, "RTSTRUCT": write_rtstruct}
NAMES = {"organ": (1,), "tumour": (2,), "speckle": (3,)}
VALUES = {name: values[0] for name, values in NAMES.items()}


def scan_of(path: Path, wanted: tuple[str, ...] = ()) -> Scan:
    scans, _ = choose(find(path), wanted)
    (scan,) = scans
    return scan


def back(file: Path, scan: Scan, axes: str = "stored", values=VALUES, **how) -> np.ndarray:
    structures = find(file).structures
    series = scan.channels[0]
    assert drawn_on(structures, series) == list(structures)
    volume, _ = read_structures(structures, series, values, axes, "case", **how)
    assert volume.grid == series.grid
    return volume.array[0]


# ---- contours


@settings(max_examples=40)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_contours_filled_give_the_mask_back_under_every_reader(mask: np.ndarray) -> None:
    contours = contours_of(mask)
    by_rule, crossing = together(contours, mask.shape)
    united = np.zeros_like(mask)
    parity = np.zeros(mask.shape, int)
    for points in contours:
        united |= filled(points, mask.shape)
        parity += filled(points, mask.shape)
    np.testing.assert_array_equal(by_rule, mask)
    np.testing.assert_array_equal(united, mask)
    np.testing.assert_array_equal(parity % 2 == 1, mask)
    assert not crossing


def test_any_polygon_is_filled_by_its_pixel_centres() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.uniform(-5, 45, size=(11, 2))
        np.testing.assert_array_equal(filled(points, (40, 50)), polygon2mask((40, 50), points))


def test_contours_in_contours_are_holes_and_crossing_ones_are_united() -> None:
    def square(low: float, high: float) -> np.ndarray:
        return np.array([[low, low], [low, high], [high, high], [high, low]])

    ring, crossing = together([square(0.5, 9.5), square(2.5, 7.5), square(4.5, 5.5)], (11, 11))
    assert (np.count_nonzero(ring), crossing) == (81 - 25 + 1, False)
    both, crossing = together([square(0.5, 5.5), square(3.5, 8.5)], (11, 11))
    assert (np.count_nonzero(both), crossing) == (25 + 25 - 4, True)
    once, _ = together([square(0.5, 5.5), square(0.5, 5.5)], (11, 11))
    assert np.count_nonzero(once) == 25


# ---- round trips


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_label_map_comes_back_exactly(
    tmp_path: Path, kind: str, plane: str, reverse: bool
) -> None:
    write_series(tmp_path / "ct", plane=plane, reverse=reverse)
    scan = scan_of(tmp_path / "ct")
    labels = structured()
    problems = WRITERS[kind](tmp_path / "out.dcm", labels, "stored", scan.channels[0], NAMES)
    assert problems == []
    np.testing.assert_array_equal(back(tmp_path / "out.dcm", scan), labels)


@pytest.mark.parametrize("kind", WRITERS)
def test_maps_in_the_axes_of_a_plan_come_back_in_them(tmp_path: Path, kind: str) -> None:
    write_series(tmp_path / "ct", plane="sagittal")
    scan = scan_of(tmp_path / "ct")
    series = scan.channels[0]
    turned = arrange(structured().transpose(2, 1, 0)[None], series.grid.arrangement("SAR"))[0]
    WRITERS[kind](tmp_path / "out.dcm", turned, "SAR", series, NAMES)
    np.testing.assert_array_equal(back(tmp_path / "out.dcm", scan, "SAR"), turned)
    np.testing.assert_array_equal(back(tmp_path / "out.dcm", scan), structured())


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("odd", ["tilted", "uneven"])
def test_tilted_and_uneven_series_come_back_too(tmp_path: Path, kind: str, odd: str) -> None:
    how = {"shift": (0.0, 0.7, 0.0)} if odd == "tilted" else {"without": (4,)}
    write_series(tmp_path / "ct", blobs((7, 20, 24)), **how)
    scan = scan_of(tmp_path / "ct")
    labels = structured((7 if odd == "tilted" else 6, 20, 24))
    WRITERS[kind](tmp_path / "out.dcm", labels, "stored", scan.channels[0], NAMES)
    found = back(tmp_path / "out.dcm", scan, accept_uneven=True)
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("order", [[3, 0, 5, 1, 4, 2], [5, 4, 3, 2, 1, 0]])
def test_results_of_enhanced_files_come_back(tmp_path: Path, kind: str, order: list[int]) -> None:
    write_enhanced(tmp_path / "e.dcm", blobs(), order)
    scan = scan_of(tmp_path / "e.dcm")
    WRITERS[kind](tmp_path / "out.dcm", structured(), "stored", scan.channels[0], NAMES)
    np.testing.assert_array_equal(back(tmp_path / "out.dcm", scan), structured())


@pytest.mark.parametrize("kind", WRITERS)
def test_results_of_one_time_point_of_an_enhanced_file_come_back(tmp_path: Path, kind: str) -> None:
    write_enhanced(tmp_path / "e.dcm", blobs(), [3, 0, 0, 5, 1, 3, 4, 2, 1, 5, 4, 2])
    scan = scan_of(tmp_path / "e.dcm", ("time point 2",))
    assert len(scan.channels[0].frames) == 6
    WRITERS[kind](tmp_path / "out.dcm", structured(), "stored", scan.channels[0], NAMES)
    np.testing.assert_array_equal(back(tmp_path / "out.dcm", scan), structured())


def test_contours_of_the_file_lie_on_the_pixels_of_their_image(tmp_path: Path) -> None:
    """By the numbers of the files alone, and the polygons of scikit-image."""
    images = {d.SOPInstanceUID: d for d in write_series(tmp_path / "ct", reverse=True)}
    scan = scan_of(tmp_path / "ct")
    write_rtstruct(tmp_path / "o.dcm", structured(), "stored", scan.channels[0], NAMES)
    found = {uid: np.zeros((20, 24), int) for uid in images}
    for number, item in enumerate(pydicom.dcmread(tmp_path / "o.dcm").ROIContourSequence, start=1):
        for contour in item.ContourSequence:
            uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            offset = points - np.array(images[uid].ImagePositionPatient, float)
            assert np.abs(offset[:, 2]).max() < 1e-3
            pixels = np.stack([offset[:, 1] / 0.8, offset[:, 0] / 0.7], axis=1)
            found[uid][polygon2mask((20, 24), pixels)] = number
    by_place = sorted(images, key=lambda uid: float(images[uid].ImagePositionPatient[2]))
    np.testing.assert_array_equal(np.stack([found[uid] for uid in by_place]), structured())


def test_frames_of_a_segmentation_lie_in_the_order_of_their_position(tmp_path: Path) -> None:
    written = write_series(tmp_path / "ct", reverse=True)
    scan = scan_of(tmp_path / "ct")
    write_segmentation(tmp_path / "o.dcm", structured(), "stored", scan.channels[0], NAMES)
    seg = highdicom.seg.segread(tmp_path / "o.dcm")
    places = [
        (
            int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber),
            float(frame.PlanePositionSequence[0].ImagePositionPatient[2]),
        )
        for frame in seg.PerFrameFunctionalGroupsSequence
    ]
    # highdicom counts along the opposite normal, whatever the order of the source
    assert places == sorted(places, key=lambda place: (place[0], -place[1]))
    uids = [str(dataset.SOPInstanceUID) for dataset in written]
    pixels = seg.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(pixels, structured())
    assert [item.SegmentLabel for item in seg.SegmentSequence] == list(NAMES)
    assert {item.SegmentAlgorithmType for item in seg.SegmentSequence} == {"AUTOMATIC"}


def test_other_readers_find_every_voxel_of_a_tilted_oblique_series(tmp_path: Path) -> None:
    """highdicom by the image under each frame, GDCM (through SimpleITK) by the count of voxels."""
    write_series(tmp_path / "ct", plane="oblique", shift=(0.0, 0.4, 0.1), reverse=True)
    scan = scan_of(tmp_path / "ct")
    write_segmentation(tmp_path / "o.dcm", structured(), "stored", scan.channels[0], NAMES)
    instances = [frame.instance.uid for frame in scan.channels[0].frames]
    pixels = highdicom.seg.segread(tmp_path / "o.dcm").get_pixels_by_source_instance(
        instances, combine_segments=True, ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )  # fmt: skip
    np.testing.assert_array_equal(pixels, structured())
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "o.dcm")))
    assert np.count_nonzero(read) == np.count_nonzero(structured())


@pytest.mark.parametrize("form", ["dicom-seg", "rtstruct"])
def test_regions_that_overlap_are_structures_of_their_own(tmp_path: Path, form: str) -> None:
    write_series(tmp_path / "ct")
    scan = scan_of(tmp_path / "ct")
    regions = parse_labels({"background": 0, "whole": [1, 2, 3], "core": [2, 3]}, [1, 2])
    path, problems = write_result(tmp_path, structured(), "stored", scan, regions, form)
    assert (path, problems) == (tmp_path / f"ct{ENDINGS[form]}", [])
    whole = back(path, scan, values={"whole": 1})
    core = back(path, scan, values={"core": 1})
    np.testing.assert_array_equal(whole, structured() > 0)
    np.testing.assert_array_equal(core, structured() > 1)
    with pytest.raises(BadData, match=r"two structures overlap(.|\n)*whole and core share"):
        back(path, scan, values={"whole": 1, "core": 2})
    painted = back(path, scan, values={"whole": 1, "core": 2}, paint_over=True)
    np.testing.assert_array_equal(painted, np.minimum(structured(), 2))


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_belongs_to_patient_and_study_of_the_source(
    tmp_path: Path, kind: str
) -> None:
    (source, *_) = write_series(tmp_path / "ct")
    scan = scan_of(tmp_path / "ct")
    uids = set()
    for name in ("a.dcm", "b.dcm"):
        WRITERS[kind](
            tmp_path / name, structured(), "stored", scan.channels[0], NAMES, model="Organs v1"
        )
        written = pydicom.dcmread(tmp_path / name)
        uids |= {written.SOPInstanceUID, written.SeriesInstanceUID}
        for entry in (
            "PatientID",
            "PatientName",
            "PatientSex",
            "StudyInstanceUID",
            "StudyDate",
            "AccessionNumber",
            "FrameOfReferenceUID",
        ):
            assert written[entry].value == source[entry].value, entry
        assert written.Modality == kind
    assert len(uids) == 4
    assert source.SeriesInstanceUID not in uids


@pytest.mark.parametrize("kind", WRITERS)
def test_names_in_any_script_survive(tmp_path: Path, kind: str) -> None:
    write_series(tmp_path / "ct", SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Zoë")
    scan = scan_of(tmp_path / "ct")
    names = {"Bauchspeicheldrüse": (1,), "腫瘍": (2,)}
    WRITERS[kind](tmp_path / "o.dcm", structured(), "stored", scan.channels[0], names)
    assert find(tmp_path / "o.dcm").structures[0].names == tuple(names)
    assert str(pydicom.dcmread(tmp_path / "o.dcm").PatientName) == "Müller^Zoë"


def test_nothing_found_is_a_valid_result(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    scan = scan_of(tmp_path / "ct")
    nothing = np.zeros((6, 20, 24), np.int32)
    for kind, write in WRITERS.items():
        write(tmp_path / f"{kind}.dcm", nothing, "stored", scan.channels[0], NAMES)
        assert find(tmp_path / f"{kind}.dcm").structures[0].names == tuple(NAMES)
        assert not back(tmp_path / f"{kind}.dcm", scan).any()
    # a sequence without items is against the standard, one that is left out is not
    drawn = pydicom.dcmread(tmp_path / "RTSTRUCT.dcm").ROIContourSequence
    assert ["ContourSequence" in item for item in drawn] == [False] * 3


def test_images_without_identifiers_get_results_with_a_warning(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", StudyInstanceUID="", SeriesInstanceUID="", PatientID="")
    scan = scan_of(tmp_path / "ct")
    for kind, write in WRITERS.items():
        path = tmp_path / f"{kind}.dcm"
        (problem,) = write(path, structured(), "stored", scan.channels[0], NAMES)
        assert (problem.fatal, problem.found) == (False, "no StudyInstanceUID, SeriesInstanceUID")
        np.testing.assert_array_equal(back(path, scan), structured())


def test_a_scan_is_another_once_one_of_its_files_changed(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    before = scan_of(tmp_path / "ct").digest
    assert scan_of(tmp_path / "ct").digest == before
    path = tmp_path / "ct" / "s003.dcm"
    path.write_bytes(path.read_bytes() + b" ")
    assert scan_of(tmp_path / "ct").digest != before


def test_two_volumes_of_one_file_are_two_scans(tmp_path: Path) -> None:
    """Else the second would be taken for the first, which was segmented before."""
    write_enhanced(tmp_path / "e.dcm", blobs(), [0, 1, 2, 0, 1, 2])
    first, second = (scan_of(tmp_path, (number,)) for number in ("1", "2"))
    assert first.digest != second.digest
    assert first.digest == scan_of(tmp_path, ("time point 1",)).digest


def test_a_map_of_another_size_is_a_wrong_use(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    scan = scan_of(tmp_path / "ct")
    for write in WRITERS.values():
        with pytest.raises(ValueError, match="a label map of"):
            write(tmp_path / "o.dcm", structured()[1:], "stored", scan.channels[0], NAMES)
    assert not (tmp_path / "o.dcm").exists()


def test_a_picture_without_a_place_has_a_segmentation_but_no_contours(tmp_path: Path) -> None:
    slice_dataset(
        blobs()[0],
        SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1",
        Modality="DX",
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        FrameOfReferenceUID=None,
    ).save_as(tmp_path / "x.dcm", enforce_file_format=True)
    scan = scan_of(tmp_path / "x.dcm")
    labels = structured()[2:3]
    with pytest.raises(AutosegError, match="where in the patient"):
        write_rtstruct(tmp_path / "o.dcm", labels, "stored", scan.channels[0], NAMES)
    write_segmentation(tmp_path / "o.dcm", labels, "stored", scan.channels[0], NAMES)
    np.testing.assert_array_equal(back(tmp_path / "o.dcm", scan), labels)


# ---- structures of others


def test_a_segmentation_that_is_cropped_and_turned_is_laid_voxel_on_voxel(tmp_path: Path) -> None:
    written = write_series(tmp_path / "ct")
    scan = scan_of(tmp_path / "ct")
    labels = structured()
    source = written[2]
    position = np.array(source.ImagePositionPatient, float)
    # rows from the last to the first, and without the first two columns
    pixels = (labels[2, ::-1, 2:] == 1).astype(np.uint8)
    corner = position + np.array([2 * 0.7, 19 * 0.8, 0.0])
    dataset = highdicom.seg.Segmentation(
        [source], pixels[None], "BINARY",
        [
            highdicom.seg.SegmentDescription(
                1, "Organ", pydicom.sr.codedict.codes.SCT.Tissue,
                pydicom.sr.codedict.codes.SCT.Tissue, "MANUAL",
            )
        ],
        "1.2.7", 1, "1.2.8", 1, "m", "n", "1", "2",
        pixel_measures=highdicom.PixelMeasuresSequence([0.8, 0.7], 2.5),
        plane_orientation=highdicom.PlaneOrientationSequence("PATIENT", [1, 0, 0, 0, -1, 0]),
        plane_positions=[highdicom.PlanePositionSequence("PATIENT", corner)],
    )  # fmt: skip
    dataset.save_as(tmp_path / "o.dcm")
    found = back(tmp_path / "o.dcm", scan, values={"ORGAN": 5})
    expected = np.zeros_like(labels)
    expected[2, :, 2:] = 5 * (labels[2, :, 2:] == 1)
    np.testing.assert_array_equal(found, expected)
    moved = pydicom.dcmread(tmp_path / "o.dcm")
    frame = moved.PerFrameFunctionalGroupsSequence[0]
    frame.PlanePositionSequence[0].ImagePositionPatient = [0.3, 0.2, 0.1]
    moved.save_as(tmp_path / "o.dcm")
    with pytest.raises(BadData, match="not in the same place"):
        back(tmp_path / "o.dcm", scan, values={"organ": 5})


def test_contours_between_slices_and_beyond_them(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    scan = scan_of(tmp_path / "ct")
    write_rtstruct(tmp_path / "o.dcm", structured(), "stored", scan.channels[0], NAMES)

    def moved(by_mm: float) -> np.ndarray:
        dataset = pydicom.dcmread(tmp_path / "o.dcm")
        for item in dataset.ROIContourSequence:
            for contour in item.ContourSequence:
                points = np.array(contour.ContourData, float).reshape(-1, 3)
                contour.ContourData = [
                    f"{v:.3f}" for v in (points + np.array([0, 0, by_mm])).ravel()
                ]
        dataset.save_as(tmp_path / "moved.dcm")
        return back(tmp_path / "moved.dcm", scan)

    np.testing.assert_array_equal(moved(0.9), structured())
    np.testing.assert_array_equal(moved(2.5)[1:], structured()[:-1])
    with pytest.raises(BadData, match="outside the series"):
        moved(-9.0)


def test_structures_of_another_series_are_never_taken(tmp_path: Path) -> None:
    write_series(tmp_path / "a", SeriesInstanceUID="1.2.5")
    write_series(tmp_path / "b", SeriesInstanceUID="1.2.6")
    for name in "ab":
        scan = scan_of(tmp_path / name)
        for kind, write in WRITERS.items():
            write(tmp_path / f"{kind}_{name}", structured(), "stored", scan.channels[0], NAMES)
    found = find(tmp_path)
    assert len(found.structures) == 4
    for series in found.series:
        names = {file.name[-1] for file in drawn_on(found.structures, series)}
        assert names == {series.folder}


def test_a_structure_that_two_files_draw_or_none_is_told(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    scan = scan_of(tmp_path / "ct")
    (tmp_path / "o").mkdir()
    write_rtstruct(tmp_path / "o" / "1.dcm", structured(), "stored", scan.channels[0], NAMES)
    files = find(tmp_path / "o").structures
    volume, problems = read_structures(
        files, scan.channels[0], {"organ": 1, "spleen": 2}, "stored", "case"
    )
    np.testing.assert_array_equal(volume.array[0], structured() == 1)
    assert [(p.what, p.found) for p in problems] == [("a structure was not drawn", "spleen")]
    write_segmentation(tmp_path / "o" / "2.dcm", structured(), "stored", scan.channels[0], NAMES)
    files = find(tmp_path / "o").structures
    with pytest.raises(BadData, match="several files draw the same structure"):
        read_structures(files, scan.channels[0], VALUES, "stored", "case")


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_structures_are_explained(tmp_path: Path, kind: str) -> None:
    write_series(tmp_path / "ct")
    scan = scan_of(tmp_path / "ct")
    path = tmp_path / "o.dcm"
    WRITERS[kind](path, structured(), "stored", scan.channels[0], NAMES)
    if kind == "SEG":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        dataset = pydicom.dcmread(path)
        dataset.ROIContourSequence[0].ContourSequence[0].ContourData = ["1"] * 10
        dataset.save_as(path)
    with pytest.raises(BadData, match=r"o\.dcm"):
        back(path, scan)


def test_a_segmentation_of_senselessly_many_frames_is_explained(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    scan = scan_of(tmp_path / "ct")
    write_segmentation(tmp_path / "o.dcm", structured(), "stored", scan.channels[0], NAMES)
    dataset = pydicom.dcmread(tmp_path / "o.dcm")
    dataset.NumberOfFrames = 2000000000
    dataset.save_as(tmp_path / "o.dcm")
    with pytest.raises(BadData, match="frames in one file"):
        back(tmp_path / "o.dcm", scan)


# ---- datasets


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """Three patients: one with a DICOM-SEG, one with an RTSTRUCT, one without structures."""
    for number, name in enumerate(("anna", "bert", "carl")):
        folder = tmp_path / "dicom" / name
        own = {
            "PatientID": name,
            "StudyInstanceUID": f"1.2.{number}",
            "SeriesInstanceUID": f"1.2.{number}.1",
        }
        write_series(folder / "ct", blobs(seed=number), **own)
        write_series(
            folder / "other", blobs(seed=9), **{**own, "SeriesInstanceUID": f"1.2.{number}.2"}
        )
        (series, _) = find(folder).series
        if name != "carl":
            kind = "SEG" if name == "anna" else "RTSTRUCT"
            WRITERS[kind](folder / "drawn.dcm", structured(), "stored", series, NAMES)
    return tmp_path / "dicom"


def test_a_folder_of_patients_becomes_a_dataset(tmp_path: Path, patients: Path) -> None:
    for path in (patients / "carl" / "other").iterdir():
        path.unlink()
    target = tmp_path / "Dataset009_Organs"
    labels = {"organ": "ORG*", "disease": ["tumour", "speckle"]}
    made = convert_dicom(patients, target, labels=labels)
    assert (made.labelled, made.unlabelled, made.redone) == (("anna", "bert"), ("carl",), 3)
    document = json.loads((target / "dataset.json").read_text())
    assert document["labels"] == {"background": 0, "organ": 1, "disease": 2}
    assert (document["channel_names"], document["numTraining"]) == ({"0": "CT"}, 2)
    for number, case in enumerate(made.labelled):
        label, _ = read_labels(target / "labelsTr" / f"{case}.nii.gz", "stored")
        image, _ = read_image([target / "imagesTr" / f"{case}_0000.nii.gz"], "stored")
        np.testing.assert_array_equal(label.array[0], np.minimum(structured(), 2))
        np.testing.assert_array_equal(image.array[0], blobs(seed=number) - 1024.0)
        np.testing.assert_allclose(label.grid.affine, image.grid.affine, atol=1e-4)
    assert [path.name for path in (target / "imagesTs").iterdir()] == ["carl_0000.nii.gz"]


def test_a_conversion_goes_on_where_it_stopped(tmp_path: Path, patients: Path) -> None:
    target = tmp_path / "Dataset009_Organs"
    with pytest.raises(AutosegError, match="2 series of carl could be meant"):
        convert_dicom(patients, target)
    for path in (patients / "carl" / "other").iterdir():
        path.unlink()
    cut = patients / "bert" / "ct" / "s002.dcm"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-200])
    with pytest.raises(BadData, match=r"bert: .*s002\.dcm"):
        convert_dicom(patients, target)
    assert not (target / "dataset.json").exists()
    cut.write_bytes(whole)
    made = convert_dicom(patients, target)
    assert made.redone == 1
    assert made.labels == {"organ": 1, "speckle": 2, "tumour": 3}
    assert convert_dicom(patients, target).redone == 0
    assert convert_dicom(patients, target, labels={"tumour": "tumour"}).redone == 2
    (target / "labelsTr" / "anna.nii.gz").unlink()
    assert convert_dicom(patients, target, labels={"tumour": "tumour"}).redone == 1


def test_a_dataset_holds_what_the_source_holds_now(tmp_path: Path, patients: Path) -> None:
    target = tmp_path / "Dataset009_Organs"
    shutil.rmtree(patients / "carl")
    convert_dicom(patients, target)
    (patients / "bert" / "drawn.dcm").rename(tmp_path / "drawn.dcm")
    shutil.rmtree(patients / "bert" / "other")
    made = convert_dicom(patients, target)
    assert (made.labelled, made.unlabelled) == (("anna",), ("bert",))
    held = sorted(p.relative_to(target).as_posix() for p in target.rglob("*.nii.gz"))
    assert held == [
        "imagesTr/anna_0000.nii.gz",
        "imagesTs/bert_0000.nii.gz",
        "labelsTr/anna.nii.gz",
    ]
    (tmp_path / "drawn.dcm").rename(patients / "bert" / "drawn.dcm")
    convert_dicom(patients, target)
    assert not list((target / "imagesTs").iterdir())
    shutil.move(patients / "bert", tmp_path / "bert")
    with pytest.raises(AutosegError, match=r"holds cases that are not in .*: bert;"):
        convert_dicom(patients, target)
    assert (target / "labelsTr" / "bert.nii.gz").exists()


def test_what_cannot_be_a_dataset_is_explained(tmp_path: Path, patients: Path) -> None:
    target = tmp_path / "Dataset009_Organs"
    (patients / "carl").rename(tmp_path / "carl")
    with pytest.raises(AutosegError, match="no structure is called spleen"):
        convert_dicom(patients, target, labels={"spleen": "spleen"})
    with pytest.raises(AutosegError, match="would belong to two labels"):
        convert_dicom(patients, target, labels={"a": "organ", "b": "o*"})
    with pytest.raises(AutosegError, match="2 channel names for 1 channels"):
        convert_dicom(patients, target, channel_names=["CT", "PT"])
    with pytest.raises(AutosegError, match="no DICOM-SEG or RTSTRUCT refers"):
        convert_dicom(tmp_path / "carl", target, series=["1"])
    assert not (target / "dataset.json").exists()


def test_results_as_nifti_lie_on_the_scan(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", plane="oblique")
    scan = scan_of(tmp_path / "ct")
    labels = parse_labels({"background": 0, "organ": 1, "tumour": 2, "speckle": 3})
    path, _ = write_result(tmp_path, structured(), "stored", scan, labels)
    volume, _ = read_labels(path, "stored")
    image, _ = read_scan(scan, "stored")
    np.testing.assert_array_equal(volume.array[0], structured())
    np.testing.assert_allclose(volume.grid.affine, image.grid.affine, atol=1e-4)
    with pytest.raises(AutosegError, match="did you mean 'dicom-seg'"):
        write_result(tmp_path, structured(), "stored", scan, labels, "dicomseg")
