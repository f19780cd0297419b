"""The report: what is counted, what is written, what a person reads."""

import json
import math
import random
import statistics
from typing import get_args

import numpy as np
import pytest

from autoseg.documents.report import (
    OUTCOMES,
    CaseScores,
    LabelScores,
    Outcome,
    Report,
    build_report,
    label_scores,
    summarise,
    table,
)
from autoseg.errors import AutosegError
from autoseg.image import metrics

DICE = {
    "case_a": {"head": 0.9, "body": 0.6},
    "case_b": {"head": 0.7, "body": math.nan},
    "case_c": {"head": 0.0, "body": math.nan},
}


def scored(dice, outcome="both"):
    if math.isnan(dice):
        return label_scores("absent", {"dice": dice}, {"dice": "absent"})
    return label_scores(outcome, {"dice": dice}, {})


def cases(dice=DICE):
    return [
        CaseScores(case=case, labels={name: scored(v) for name, v in by_label.items()})
        for case, by_label in dice.items()
    ]


def measured_report():
    """A report from real masks: one structure fits, one is missed, one spurious, one absent."""
    shape, spacing = (8, 9, 10), (2.0, 1.0, 1.0)
    reference, predicted = np.zeros((2, *shape), np.uint8)
    reference[2:6, 2:6, 2:6], predicted[2:6, 3:7, 2:6] = 1, 1
    reference[0, 0, 0], predicted[7, 8, 9] = 2, 3
    labels = {"liver": (1,), "cyst": (2,), "stone": (3,), "stent": (4,)}

    def case(name, guess):
        scores = metrics.measure_labels(guess, reference, labels, spacing)
        return CaseScores(
            case=name,
            labels={k: label_scores(s.outcome, s.values, s.undefined) for k, s in scores.items()},
        )

    return build_report(
        [case("two", predicted), case("one", reference)],
        dataset="Dataset900_Abdomen",
        plan="default",
        configuration="3d_fullres",
        fold=0,
        tolerance_mm=1.0,
    )


# ---- the summary


def test_mean_dice_is_the_mean_over_structures_of_the_mean_over_cases():
    """nnU-Net's foreground mean; a mean over all values at once would give 0.55."""
    report = build_report(cases(), dataset="d", tolerance_mm=1.0)
    assert report.mean_dice == pytest.approx(((0.9 + 0.7 + 0.0) / 3 + 0.6) / 2)
    body = report.summary.labels["body"]
    assert (body.metrics["dice"].n, body.cases) == (1, 3)
    assert body.metrics["dice"].undefined == {"absent": 2}
    assert body.outcomes == {"both": 1, "absent": 2, "missed": 0, "spurious": 0}
    assert body.dice_absent_as_one == pytest.approx((0.6 + 1 + 1) / 3)


def test_mean_dice_equals_nanmean():
    values = np.random.default_rng(0).random((20, 4))
    values[np.random.default_rng(1).random((20, 4)) < 0.3] = math.nan
    dice = {f"case_{i}": dict(zip("abcd", row.tolist())) for i, row in enumerate(values)}
    summary = summarise(cases(dice))
    assert summary.mean_dice == pytest.approx(np.nanmean(values, axis=0).mean())
    for name, column in zip("abcd", values.T):
        spread = summary.labels[name].metrics["dice"]
        defined = column[~np.isnan(column)].tolist()
        assert spread.mean == pytest.approx(statistics.mean(defined))
        assert spread.std == pytest.approx(statistics.pstdev(defined))
        assert spread.median == pytest.approx(statistics.median(defined))
        assert spread.n == len(defined)


def test_neither_background_nor_a_structure_without_dice_competes():
    dice = {"x": {"background": 0.99, "head": 0.5, "rare": math.nan}}
    summary = summarise(cases(dice))
    assert summary.mean_dice == 0.5
    assert summary.labels["rare"].metrics["dice"].mean is None
    assert cases(dice)[0].mean_dice == 0.5


def test_nothing_to_average():
    report = build_report([], dataset="d", tolerance_mm=1.0)
    assert (report.mean_dice, dict(report.summary.labels)) == (None, {})
    absent = build_report(cases({"x": {"a": math.nan}}), dataset="d", tolerance_mm=1.0)
    assert absent.mean_dice is None
    assert absent.summary.labels["a"].dice_absent_as_one == 1.0
    assert "mean foreground Dice -" in table(absent)


def test_the_order_of_cases_does_not_matter():
    shuffled = cases()
    random.Random(1).shuffle(shuffled)
    one = build_report(cases(), dataset="d", tolerance_mm=1.0)
    other = build_report(shuffled[::-1], dataset="d", tolerance_mm=1.0)
    assert [c.case for c in other.cases] == ["case_a", "case_b", "case_c"]
    assert one == other


def test_a_missed_structure_makes_the_penalised_mean_worse_and_is_counted():
    cyst = measured_report().summary.labels["cyst"]
    diagonal = math.sqrt(16**2 + 9**2 + 10**2)
    assert cyst.metrics["hd95_mm"].n == 1
    assert cyst.metrics["hd95_mm"].mean == 0.0
    assert cyst.metrics["hd95_mm"].undefined == {"missed": 1}
    assert cyst.metrics["hd95_penalised_mm"].n == 2
    assert cyst.metrics["hd95_penalised_mm"].mean == pytest.approx(diagonal / 2)
    assert cyst.metrics["dice"].mean == 0.5
    assert cyst.outcomes["missed"] == 1


# ---- the document


def test_what_is_not_finite_is_null_with_its_reason():
    scores = label_scores("missed", {"dice": 0.0, "hd95_mm": math.inf}, {"hd95_mm": "missed"})
    assert scores.values == {"dice": 0.0, "hd95_mm": None}
    assert scores.undefined == {"hd95_mm": "missed"}


@pytest.mark.parametrize(
    ("values", "undefined", "odd"),
    [
        ({"dice": None}, {}, "dice"),
        ({"dice": 0.5}, {"dice": "absent"}, "dice"),
        ({"dice": 0.5}, {"iou": "absent"}, "iou"),
    ],
)
def test_nulls_and_reasons_belong_together(values, undefined, odd):
    with pytest.raises(ValueError, match=f"needs its reason in undefined: {odd}"):
        LabelScores(outcome="both", values=values, undefined=undefined)


def test_written_and_read_again(tmp_path):
    report = measured_report()
    report.write(tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert Report.read(tmp_path / "report.json") == report
    assert "NaN" not in text
    assert "Infinity" not in text
    document = json.loads(text)
    assert document["schema"] == 1
    assert document["cases"][1]["labels"]["cyst"]["values"]["hd95_mm"] is None
    assert document["cases"][1]["labels"]["cyst"]["undefined"]["hd95_mm"] == "missed"
    assert document["summary"]["mean_dice"] == pytest.approx(report.mean_dice)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema"),
        ({"datset": "x"}, "did you mean 'dataset'"),
        ({"tolerance_mm": None}, "tolerance_mm"),
    ],
)
def test_a_faulty_report_is_explained(tmp_path, change, message):
    document = measured_report().dump() | change
    (tmp_path / "report.json").write_text(json.dumps(document))
    with pytest.raises(AutosegError, match=message):
        Report.read(tmp_path / "report.json")


def test_a_case_scored_twice_is_refused():
    with pytest.raises(ValueError, match="scored twice: case_a"):
        build_report(cases() + cases()[:1], dataset="d", tolerance_mm=1.0)


def test_outcomes_are_those_that_are_measured():
    assert get_args(Outcome) == get_args(metrics.Outcome) == OUTCOMES


# ---- the table


def test_the_table_of_a_measured_report():
    lines = table(measured_report()).splitlines()
    assert lines[0] == "Dataset900_Abdomen, default, 3d_fullres, fold 0, 2 cases"
    rows = {line.split()[0]: line.split() for line in lines[2:7]}
    header = lines[2]
    for title in ("Dice", "IoU", "NSD", "HD95* mm", "ASSD* mm", "vol. diff.", "accuracy"):
        assert title in header
    assert rows["liver"][1:7] == ["2", "0", "0", "0", "0.8750", "0.1250"]
    assert rows["cyst"][1:5] == ["2", "1", "0", "0"]
    assert rows["stone"][1:5] == ["2", "0", "1", "1"]
    assert rows["stent"][1:8] == ["2", "0", "0", "2", "-", "-", "-"]
    assert len({len(line) for line in lines[2:7]}) == 1
    # liver .875, cyst .5, stone 0 where it is defined, stent never
    assert "mean foreground Dice 0.4583" in lines
    assert "lowest mean Dice: two 0.2500, one 1.0000" in lines
    assert any("counts as the diagonal" in line for line in lines)


def test_the_table_shows_only_what_was_measured():
    text = table(build_report(cases(), dataset="d", tolerance_mm=1.0))
    assert "HD95" not in text
    assert "NSD" not in text
    assert "head" in text
