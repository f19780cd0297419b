"""Stamps: equal ones mean that nothing is to be done, and damage only that it is done again."""

import json
import logging
from pathlib import Path

import pytest

from autoseg.errors import AutosegError
from autoseg.stage import Stamp, differences, read_stamp, stamp_of, standing

MADE = Stamp("train", 1, {"cases": "a" * 64}, {"lr": 0.01, "patch": (8, 8)})


def test_a_stamp_equals_itself_once_it_was_written(tmp_path: Path) -> None:
    MADE.write(tmp_path / "stamp.json")
    assert read_stamp(tmp_path / "stamp.json") == MADE
    assert standing(tmp_path / "stamp.json", MADE).state == "current"


@pytest.mark.parametrize(
    "text",
    [
        "", "\0" * 40, "{", "[]", "null", "3", '{"stage": "train"}',
        '{"stage": 1, "version": 1, "inputs": {}, "options": {}}',
        '{"stage": "x", "version": "1", "inputs": {}, "options": {}}',
        '{"stage": "x", "version": 1, "inputs": [], "options": {}}',
        '{"stage": "x", "version": 1, "inputs": {"a": 1}, "options": {}}',
        '{"stage": "x", "version": 1, "inputs": {}, "options": 7}',
        '{"stage": "x", "version": 1, "inputs": {}, "options": {"a": NaN}}',
        '{"stage": "x", "version": 1, "inputs": {}, "options": {}, "more": 1}',
    ],
)  # fmt: skip
def test_a_damaged_stamp_stands_for_nothing(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "stamp.json"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert read_stamp(path) is None
    assert "half done" in caplog.text and "\n" not in caplog.messages[0]
    assert standing(path, MADE).state == "half done"
    with pytest.raises((AutosegError, json.JSONDecodeError)):
        stamp_of(json.loads(text))


def test_what_changed_is_told() -> None:
    other = Stamp("train", 2, {"cases": "b" * 64}, {"lr": 0.02, "patch": [8, 8]})
    assert differences(MADE, other) == [
        "version 1 → 2", "inputs.cases aaaaaaaa → bbbbbbbb", "lr 0.01 → 0.02",
    ]  # fmt: skip
