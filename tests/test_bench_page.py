"""The page of benchmarks says what was measured, against what was wanted, and what was not."""

import json

import pytest

from bench import page, places, reasons
from bench.pairs import OURS, RIVAL
from bench.parts import PARTS
from bench.plots import curves, power, short

MACHINE = {"date": "2026-01-01", "cores": "2", "processor": "P", "memory": "8 GiB",
           "python": "3", "load": "0.1", "load_before": "0.2"}  # fmt: skip


def row(name, wall, *, target=None, **rest):
    theirs = {"wall_s": 10.0, "cpu_s": 10.0, "peak_bytes": 2_000_000_000}
    return {
        "row": name, "what": f"what {name}", "runs": 3,
        "sides": {OURS: {"wall_s": wall, "cpu_s": wall, "peak_bytes": 1_000_000_000}, RIVAL: theirs},
        "ratios": {OURS: {"wall_s": wall / 10, "cpu_s": wall / 10, "peak_bytes": 0.5}},
        "targets": {OURS: {"wall_s": target}} if target else {}, "commands": {OURS: "do it"},
        "machine": MACHINE, "versions": {"autoseg": "abc"}, **rest,
    }  # fmt: skip


def test_targets_are_met_or_missed():
    parts = {"start": [row("a", 1.0, target=1 / 5), row("b", 5.0, target=1 / 4)], "resample": []}
    lines = page.glance({**parts, "gpu": []})
    assert "| what a | 1 s | 10 s | 1/10 | ≤ 1/5 | met |" in lines
    assert "| what b | 5 s | 10 s | 1/2 | ≤ 1/4 | **missed** |" in lines
    assert "| Resampling | | | | | not measured |" in lines
    assert "| On a card | | | | | not measured: no card |" in lines


def test_memory_and_failures_are_told():
    one = row("a", 1.0)
    one["targets"] = {OURS: {"wall_s": 0.5, "peak_bytes": 1 / 6}}
    one["sides"][RIVAL] = {"failed": "out of memory"}
    one["ratios"] = {OURS: {}}
    lines = page.glance({"export": [one]})
    assert "| what a | 1 s | out of memory |  | ≤ 1/2 | not compared |" in lines
    assert "| what a, memory | 1.00 GB | out of memory |  | ≤ 1/6 | not compared |" in lines


@pytest.mark.parametrize(
    ("ratio", "most", "said"),
    [(0.2, 0.25, "met"), (0.25, 0.25, "met"), (0.3, 0.25, "**missed**"), (0.3, None, "")],
)
def test_a_verdict(ratio, most, said):
    assert page.verdict(ratio, most) == said


def test_the_share_of_the_ceiling_is_the_slower_of_bytes_and_operations():
    ceilings = {"row": "all", "sides": {OURS: {
        "threads": 2, "copy_gb_s": 10.0, "product_gflops": 100.0, "convolution_gflops": 50.0,
    }}}  # fmt: skip
    moved = row("r", 1.0, least={"bytes": 5e9, "operations": 20e9})
    slow = row("e", 100.0, least={"bytes": 5e9, "operations": 20e9})
    step = row("s", 2.0)
    step["sides"][OURS] |= {"multiply_adds": 10e9, "values": 50e6, "parameters": 10e6}
    step["sides"]["half"] = {"wall_s": 1.0, "multiply_adds": 1e9, "variant": "bfloat16, contiguous"}
    old = row("o", 2.0)
    old["sides"][OURS]["multiply_adds"] = 10e9
    parts = {"ceilings": [ceilings], "resample": [moved], "export": [slow], "step": [step, old]}
    lines = page.limits(parts)
    # 5 GB at 10 GB/s take 0.5 s, 20 G at 100 G/s but 0.2 s
    assert "| what r | 5 GB | 20 G | 0.5 s | 1 s | 50.0 % |" in lines
    assert "| what e | 5 GB | 20 G | 0.5 s | 100 s | 0.5 % |" in lines
    # six operations a product at 50 G/s; five passes over values, seven over weights
    assert "| what s | 1.28 GB | 60 G | 1.2 s | 2 s | 60.0 % |" in lines
    assert "| what o | – | 60 G | 1.2 s | 2 s | 60.0 % |" in lines
    assert not any("half" in line for line in lines)


def test_the_page_is_written_from_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "RESULTS", tmp_path / "results")
    sizes = [row(f"n{n}", n / 10, size={"voxels": n}) for n in (100, 10, 1000)]
    sizes[0] |= {"equal": {"largest difference / std": 2e-6}, "note": "a remark"}
    places.write("resample", {"part": "resample", "rows": sizes})
    places.write("start", {"part": "start", "rows": [{"what": "--help", "autoseg": {}}]})
    page.write_page(tmp_path / "docs" / "page.md")
    text = (tmp_path / "docs" / "page.md").read_text()
    assert "- what n100: largest difference / std 2e-06; a remark; 3 pairs of runs." in text
    assert (
        "autoseg `do it`; 2026-01-01, 2 cores of P, 8 GiB, Python 3; autoseg abc; load before 0.2."
        in text
    )
    assert "![cost of resample against size](pictures/bench_resample.png)" in text
    picture = tmp_path / "docs" / "pictures" / "bench_resample.png"
    assert 1000 < picture.stat().st_size < 60_000
    assert "## Start-up\n\nNot measured." in text


def grown(sizes, **rest):
    return [row(f"n{n}", n**1.5, size={"voxels": n}, **rest) for n in sizes]


def test_what_grows_is_told_smallest_first_and_with_its_power():
    (curve,) = curves(grown((400, 100, 900)))
    assert curve.of == "voxels" and curve.sizes == [100, 400, 900]
    assert curve.points[OURS] == [(100, 1000), (400, 8000), (900, 27000)]
    assert power(curve.points[OURS]) == pytest.approx(1.5)
    assert power(curve.points[RIVAL]) == pytest.approx(0)
    assert curves(grown((1, 2))) == []
    lines = page.growth({"resample": grown((1500, 100_000, 2_000_000)), "plan": []})
    assert "| Resampling | voxels | 3: 1.5 k … 2 M | 1.50 | 0.00 |" in lines
    assert page.growth({"resample": grown((1, 2))}) == []


def test_a_row_may_lie_on_two_curves_and_a_side_may_miss_some():
    rows = [
        row("a", 1.0, size={"voxels": 1, "labels": 5}), row("b", 2.0, size={"voxels": 2}),
        row("c", 3.0, size={"voxels": 3}), row("d", 2.0, size={"labels": 10}),
        row("e", 3.0, size={"labels": 15}),
    ]  # fmt: skip
    rows[1]["sides"][RIVAL] = {"failed": "out of memory"}
    voxels, labels = curves(rows)
    assert (voxels.of, labels.of) == ("voxels", "labels")
    assert list(voxels.points) == [OURS] and list(labels.points) == [OURS, RIVAL]


@pytest.mark.parametrize(("size", "said"), [(5, "5"), (64**3, "262 k"), (128**3, "2.1 M")])
def test_sizes_are_short(size, said):
    assert short(size) == said


def test_rows_that_only_show_growth_are_not_told_at_a_glance():
    lines = page.glance({"resample": [row("a", 1.0), row("b", 1.0, aside=True)]})
    assert any("what a" in line for line in lines) and not any("what b" in line for line in lines)


def test_the_spread_of_the_pairs_is_told():
    one = row("a", 1.0, target=1 / 5, spread={OURS: {"wall_s": [0.08, 0.2], "cpu_s": [0.1, 0.1]}})
    assert "| what a | 1 s | 10 s | 1/10 (1/12.5 – 1/5) | ≤ 1/5 | met |" in page.glance(
        {"start": [one]}
    )
    assert any(
        "| 1/10 (1/12.5 – 1/5) | 1/10 | 1/2 |" in x for x in page.section("start", [one], None)
    )


def test_a_missed_target_is_told_with_its_reason(monkeypatch):
    monkeypatch.setattr(reasons, "REASONS", {("step", "a", OURS, "wall_s"): "Physics."})
    rows = [row("a", 9.0, target=0.5), row("b", 9.0, target=0.5), row("c", 1.0, target=0.5)]
    lines = page.missed({"step": rows})
    assert lines[2:-1] == ["- what a: Physics.", "- what b: The reason is not known."]
    assert page.missed({"step": rows[2:]}) == []


def test_every_part_has_a_heading_and_every_script_a_rival():
    assert set(PARTS) == set(page.HEADS)
    names = {
        whose: {path.stem for path in (places.REPOSITORY / "bench" / whose).glob("*.py")}
        for whose in ("ours", "theirs")
    }
    assert names["theirs"] <= names["ours"]
    assert names["ours"] - names["theirs"] == {"ceilings", "surfaces"}


def test_kept_results_are_of_the_documented_form():
    for path in places.REPOSITORY.glob("bench/results/*.json"):
        document = json.loads(path.read_text())
        assert document["part"] == path.stem
        assert isinstance(document["rows"], list | dict)
