"""The contract of the command line: it offers what `autoseg.api` offers, and starts quickly."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoseg import __version__, api
from autoseg.cli import build_parser

HEAVY = {"torch", "numpy", "pydantic", "nibabel", "SimpleITK", "matplotlib", "scipy"}


def python(*words: str, cwd: Path, repository: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own that can import autoseg."""
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("verb", list(api.VERBS))
def test_options_are_the_parameters_of_the_api(verb: str) -> None:
    _, parsers = build_parser()
    offered = {
        option.removeprefix("--").replace("-", "_")
        for option in parsers[verb].known_options()
        if option.startswith("--") and option != "--help"
    }
    assert offered == set(inspect.signature(api.VERBS[verb]).parameters)


@pytest.mark.parametrize("verb", list(api.VERBS))
def test_every_parameter_is_typed_and_explained(verb: str) -> None:
    call = api.VERBS[verb]
    signature = inspect.signature(call)
    assert signature.return_annotation is not signature.empty
    _, parsers = build_parser()
    helped = {a.dest: a.help for a in parsers[verb]._actions if a.option_strings}
    for name, parameter in signature.parameters.items():
        assert parameter.annotation is not parameter.empty, name
        assert helped[name], f"--{name} of {verb} has no help"


@pytest.mark.parametrize("verb", list(api.VERBS))
def test_help_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    from autoseg.cli import main

    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    first = (api.VERBS[verb].__doc__ or "").splitlines()[0]
    assert first in shown
    # averaging folders needs no workspace
    assert ("--root PATH" in shown) == (verb != "ensemble")


def test_short_spellings_of_the_card() -> None:
    _, parsers = build_parser()
    spellings = {
        "plan_and_preprocess": {"-d", "-c", "--name", "--time", "--set", "--workers", "--device"},
        "train": {"-d", "-c", "-f", "--plan", "--run", "--time", "--steps", "--set", "--redo"},
        "predict": {"-i", "-o", "-d", "-c", "-f", "--plan", "--run", "--strict", "--json"},
        "evaluate": {"-i", "-r", "-d", "-o", "--json"},
        "plan": {"--planner", "--network", "--gpu-memory", "--fingerprint", "--dataset-json"},
        "fingerprint": {"--verify", "--json"},
        "status": {"-d", "--json", "--root"},
    }
    for verb, wanted in spellings.items():
        assert wanted <= set(parsers[verb].known_options()), verb


def test_help_imports_nothing_heavy(tmp_path: Path, repository: Path) -> None:
    ask = (
        "import sys; from autoseg.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "print(*sorted(set(m.split('.')[0] for m in sys.modules)), file=sys.stderr)"
    )
    said = python("-c", ask, cwd=tmp_path, repository=repository)
    assert said.returncode == 0
    assert all(verb in said.stdout for verb in api.VERBS)
    loaded = set(said.stderr.split())
    assert "argparse" in loaded
    assert not loaded & HEAVY


def test_python_m_autoseg(tmp_path: Path, repository: Path) -> None:
    said = python("-m", "autoseg", "--version", cwd=tmp_path, repository=repository)
    assert (said.returncode, said.stdout.strip()) == (0, f"autoseg {__version__}")
    wrong = python("-m", "autoseg", "trian", "1", cwd=tmp_path, repository=repository)
    assert wrong.returncode == 2
    assert wrong.stderr == "autoseg: there is no verb 'trian'; did you mean 'train'?\n"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("autoseg plan -d 1 --gpu-memroy 8", "did you mean --gpu-memory?"),
        ("autoseg train 1 3d_fullres 0 --stepps 4", "did you mean --steps?"),
        ("autoseg predct -i in -o out", "did you mean 'predict'?"),
        ("autoseg predict -i in --ouput out", "did you mean --output?"),
        ("autoseg train 1 3d_fullres", "needs fold (-f)"),
        ("autoseg train 1 3d_fullres 0 -f 1", "fold is given twice"),
        ("autoseg train 1 3d_fullres 0 --steps many", "invalid int value: 'many'"),
        ("autoseg train 1 3d_fullres 0 --time soon", "write 90s, 20min, 2h or 1h30min"),
        ("autoseg train 1 3d_fullres 0 --set train.lr=1", "add --run NAME"),
        ("autoseg train 1 3d_fullres 0 --run a --set train.lr", "is no key=value"),
        ("autoseg plan -d 1 --planner nnumet", "use autoseg or nnunet"),
        ("autoseg plan -d 1 --gpu-memory 0", "must be positive and finite"),
        ("autoseg plan -d 1 --gpu-memory inf", "must be positive and finite"),
        ("autoseg train 1 3d_fullres 0 --run ..", "cannot be the name of a run"),
        ("autoseg train 1 3d_fullres 0 --run a/b", "cannot be the name of a run"),
        ("autoseg train 1 3d_fullres 0 --plan ../b", "cannot be the name of a plan"),
        ("autoseg validate 1 3d_fullres 0 --run ''", "cannot be the name of a run"),
        ("autoseg train 1 3d_fullres 0 --workers -1", "--workers -1 must not be below 0"),
        ("autoseg evaluate a b --workers -2", "--workers -2 must not be below 0"),
        ("autoseg evaluate a b --tolerance-mm -1", "must be a length in mm"),
        ("autoseg status 1 2", "has no place for '2'"),
        ("autoseg predict in out more", "has no place for 'more'"),
        ("autoseg predict in out -i other", "input is given twice: in and other"),
        ("autoseg", "VERB"),
        ("autoseg fingerprint", "needs dataset (-d)"),
        ("autoseg predict -i in", "needs output (-o)"),
    ],
)
def test_mistyped_commands_are_told_in_one_line(shell, line: str, told: str) -> None:
    said = shell(line)
    assert said.code == 2
    assert told in said.err
    assert said.err.startswith("autoseg: ")
    assert said.err.count("\n") == 1


def test_folds_by_position_and_by_option_are_the_same() -> None:
    from autoseg.cli import _options

    placed = _options(["train", "4", "3d_fullres", "0", "1", "2"])
    named = _options(["train", "-d", "4", "-c", "3d_fullres", "-f", "0", "1", "2"])
    assert placed == named
    assert placed[1]["fold"] == ("0", "1", "2")


@pytest.mark.parametrize(
    ("verb", "usage"),
    [
        ("train", "DATASET CONFIGURATION FOLD [FOLD ...] [options]"),
        ("predict", "[INPUT [OUTPUT]] [options]"),
        ("ensemble", "INPUT [INPUT ...] OUTPUT [options]"),
        ("datasets", "[ACTION [NAME [PATH]]] [options]"),
        ("models", "[options]"),
    ],
)
def test_usage_shows_what_goes_by_position(
    verb: str, usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, parsers = build_parser()
    parsers[verb].print_help()
    assert capsys.readouterr().out.splitlines()[0] == f"usage: autoseg {verb} {usage}"


def test_help_tells_defaults_that_the_words_leave_out() -> None:
    _, parsers = build_parser()
    helped = {verb: {a.dest: a.help or "" for a in p._actions} for verb, p in parsers.items()}
    assert helped["train"]["compile"].endswith("(default: auto)")
    assert helped["split"]["folds"] == "how many (default: 5)"
    assert helped["train"]["device"].count("default") == 1
    for verb, call in api.VERBS.items():
        for name, parameter in inspect.signature(call).parameters.items():
            if isinstance(parameter.default, (str, float)) and parameter.default:
                assert "default:" in helped[verb][name], (verb, name)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("train 1 3d_fullres --redo 0 1", {"dataset": "1", "fold": ("0", "1"), "redo": True}),
        ("train --time 5min 1 -c 2d 0", {"dataset": "1", "configuration": "2d", "fold": ("0",)}),
        ("train 1 3d_fullres -1", {"fold": ("-1",)}),
        ("predict in --fast out", {"input": Path("in"), "output": Path("out")}),
        ("predict out -i in", {"input": Path("in"), "output": Path("out")}),
        ("predict in -- -odd", {"input": Path("in"), "output": Path("-odd")}),
        ("ensemble a b out", {"input": (Path("a"), Path("b")), "output": Path("out")}),
        ("ensemble a b -o out", {"input": (Path("a"), Path("b")), "output": Path("out")}),
        ("ensemble -o out a", {"input": (Path("a"),), "output": Path("out")}),
        ("plan_and_preprocess 1 2 --name x", {"dataset": ("1", "2"), "name": "x"}),
        ("train 1 -c 2d -f 0 -f 1 2", {"configuration": "2d", "fold": ("0", "1", "2")}),
        ("predict -c 2d -c 3d_fullres", {"configuration": ("2d", "3d_fullres")}),
        ("datasets fetch --keep KiTS23", {"action": "fetch", "name": "KiTS23", "keep": True}),
    ],
)
def test_words_find_their_places_between_options(line: str, wanted: dict[str, object]) -> None:
    from autoseg.cli import _options

    _, options = _options(line.split())
    assert {key: options.get(key) for key in wanted} == wanted


def test_json_is_one_document_on_stdout(shell, tiny: Path) -> None:
    said = shell("autoseg status --json")
    assert said.code == 0
    (dataset,) = json.loads(said.out)
    assert dataset["dataset"] == "Dataset001_Phantom"
    assert {"artefact", "state", "why"} == set(dataset["rows"][0])
