"""The verbs of `autoseg.api` at a shell: parses, prints, sets the exit code, and nothing else.

The signatures in `autoseg.api` are the only list of options. A parameter that may be given by
position may be given by its option too (`train 1 3d_fullres 0`, `train -d 1 -c 3d_fullres -f 0`).
"""

import argparse
import difflib
import errno
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from autoseg import __version__, api
from autoseg.errors import AutosegError
from autoseg.files import explained

SHORT = {
    "dataset": "-d", "configuration": "-c", "fold": "-f", "input": "-i", "output": "-o",
    "reference": "-r",
}  # fmt: skip
KINDS: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float, "Path": Path}
MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
"""Errors of the operating system that a person can mend; any other is our bug and is shown whole."""
METAVARS = {"Path": "PATH", "int": "N", "float": "X"}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with the nearest right name."""

    def error(self, message: str) -> NoReturn:
        raise AutosegError(f"{message}; see `{self.prog} --help`")

    def known_options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def _add(parser: Parser, parameter: inspect.Parameter, help_text: str) -> None:
    """One parameter of an api function as options (and a position, where Python allows one)."""
    annotation = str(parameter.annotation).replace(" | None", "").strip()
    name = parameter.name
    flags = [*([SHORT[name]] if name in SHORT else []), "--" + name.replace("_", "-").rstrip("-")]
    if annotation == "bool":
        parser.add_argument(*flags, action="store_true", help=help_text, dest=name)
        return
    many = annotation.startswith("tuple[")
    kind = annotation[6:].split(",")[0] if many else annotation
    shared: dict[str, Any] = {"type": KINDS[kind], "help": help_text, "default": None}
    if many and name == "set":
        parser.add_argument(*flags, action="append", metavar="KEY=VALUE", dest=name, **shared)
        return
    if many:
        shared["nargs"] = "+"
    parser.add_argument(*flags, dest=name, metavar=METAVARS.get(kind, name.upper()), **shared)
    if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
        shared["nargs"] = "*" if many else "?"
        shared["help"] = argparse.SUPPRESS
        parser.add_argument(f"{name} by position", metavar=name.upper(), **shared)


def _explanations(call: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """A docstring's prose, and what its lines of the form `name: meaning` say of the parameters."""
    names = inspect.signature(call).parameters
    prose: list[str] = []
    meanings: dict[str, str] = {}
    last = ""
    for line in (inspect.getdoc(call) or "").splitlines():
        name, colon, meaning = line.partition(": ")
        if colon and name in names:
            meanings[name], last = meaning, name
        elif last and line.startswith(" "):
            meanings[last] += " " + line.strip()
        else:
            prose.append(line)
    return "\n".join(prose).strip(), meanings


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command line and those of its verbs."""
    top = Parser(
        prog="autoseg",
        description="From a folder of labelled scans to label maps, decided by measuring.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"autoseg {__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB", dest="verb", parser_class=Parser)
    parsers = {}
    for name, call in api.VERBS.items():
        prose, meanings = _explanations(call)
        sub = verbs.add_parser(
            name,
            help=prose.splitlines()[0],
            description=prose,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for parameter in inspect.signature(call).parameters.values():
            _add(sub, parameter, meanings.get(parameter.name, "").replace("%", "%%"))
        parsers[name] = sub
    return top, parsers


def _options(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The verb and its arguments. Raises AutosegError for unknown names, with the nearest one."""
    top, parsers = build_parser()
    if argv and not argv[0].startswith("-") and argv[0] not in parsers:
        near = difflib.get_close_matches(argv[0], list(parsers), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(parsers)}"
        raise AutosegError(f"there is no verb {argv[0]!r}; {hint}")
    values, unknown = top.parse_known_args(argv)
    given = vars(values)
    verb = given.pop("verb")
    if unknown:
        option = unknown[0].split("=")[0]
        near = difflib.get_close_matches(option, parsers[verb].known_options(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"see `autoseg {verb} --help`"
        raise AutosegError(f"`autoseg {verb}` has no option {option!r}; {hint}")
    for key in [k for k in given if k.endswith(" by position")]:
        placed, name = given.pop(key), key.split(" ")[0]
        if placed in (None, []):
            continue
        if given.get(name) is not None:
            raise AutosegError(f"{name} is given twice: {placed} and {given[name]}")
        given[name] = placed
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}
    for parameter in inspect.signature(api.VERBS[verb]).parameters.values():
        if parameter.default is parameter.empty and parameter.name not in options:
            flag = SHORT.get(parameter.name, "--" + parameter.name)
            raise AutosegError(f"`autoseg {verb}` needs {parameter.name} ({flag})")
    return verb, options


class _Lines(logging.Handler):
    """Log records as plain lines on stderr, above a progress bar if one is running."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + record.getMessage(), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 2 a mistake that the user can mend, 130 stopped."""
    log = logging.getLogger("autoseg")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(_Lines())
    try:
        verb, options = _options(list(sys.argv[1:] if argv is None else argv))
        result = api.VERBS[verb](**options)
        if options.get("json"):
            from autoseg.report.text import as_json

            sys.stdout.write(as_json(result))
        else:
            from autoseg.report.text import as_text

            text = as_text(result)
            if text:
                print(text)
    except AutosegError as error:
        print(f"autoseg: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("autoseg: stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        place = Path(str(error.filename or "a file"))
        print(f"autoseg: {explained(error, place, 'write')}", file=sys.stderr)
        return 2
    return 0
