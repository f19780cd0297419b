"""One case measured for the fingerprint by autoseg: read, checked, measured."""

from pathlib import Path

from autoseg.documents.dataset import read_dataset
from autoseg.pool import keep_freed_memory
from autoseg.stages.fingerprint import measure_case
from bench.clock import asked, measured, tell

given = asked()
keep_freed_memory()  # as every process of `autoseg fingerprint`
dataset, _ = read_dataset(Path(given["dataset"]))
(found, problems), cost = measured(lambda: measure_case(dataset.cases[0], dataset))
if found is None:
    raise SystemExit(f"not measured: {problems}")
tell(**cost, channels=len(found.channels))
