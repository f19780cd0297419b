"""The verbs of `autoseg.api` at a shell: parses, prints, sets the exit code, and nothing else.

The signatures in `autoseg.api` are the only list of options. A parameter that may be given by
position may be given by its option too (`train 1 3d_fullres 0`, `train -d 1 -c 3d_fullres -f 0`,
`train 1 -c 3d_fullres 0`).
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


def _places(call: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters that Python allows by position, and so does a shell."""
    parameters = inspect.signature(call).parameters.values()
    return [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def _kind(parameter: inspect.Parameter) -> tuple[str, bool]:
    """The name of its type without None, and whether it takes several."""
    annotation = str(parameter.annotation).replace(" | None", "").strip()
    many = annotation.startswith("tuple[")
    return (annotation[6:].split(",")[0] if many else annotation), many


def _usage(prog: str, call: Callable[..., Any]) -> str:
    """The usage line: what goes by position, brackets around what may be left out."""
    words, closing = [prog], ""
    for place in _places(call):
        word = place.name.upper()
        word += f" [{word} ...]" if _kind(place)[1] else ""
        if place.default is not place.empty:
            word, closing = "[" + word, closing + "]"
        words.append(word)
    return " ".join(words).replace("%", "%%") + closing + " [options]"


def _help(parameter: inspect.Parameter, meaning: str) -> str:
    """What the docstring says of a parameter, and the default where it does not say it."""
    default = parameter.default
    if default in (None, "", ()) or isinstance(default, bool) or default is parameter.empty:
        return meaning
    return meaning if "default:" in meaning else f"{meaning} (default: {default})"


def _add(
    place: argparse._ActionsContainer, parameter: inspect.Parameter, meaning: str, metavar: str
) -> None:
    """One parameter of an api function as an option."""
    name, (kind, many) = parameter.name, _kind(parameter)
    flags = [*([SHORT[name]] if name in SHORT else []), "--" + name.replace("_", "-").rstrip("-")]
    help_text = _help(parameter, meaning).replace("%", "%%")
    if kind == "bool":
        place.add_argument(*flags, action="store_true", help=help_text, dest=name)
        return
    shared: dict[str, Any] = {"type": KINDS[kind], "help": help_text, "default": None}
    if many and name == "set":
        place.add_argument(*flags, action="append", metavar="KEY=VALUE", dest=name, **shared)
        return
    # said twice, lists go on: -f 0 -f 1 is -f 0 1
    taking: dict[str, Any] = {"nargs": "+", "action": "extend"} if many else {}
    place.add_argument(*flags, dest=name, metavar=metavar, **taking, **shared)


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
    """The parser of the whole command line and those of its verbs; they know options alone.

    What is given by position is left over and finds its place in `_put_in_place`: argparse would
    take such words only where they stand together.
    """
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
            usage=_usage(f"autoseg {name}", call),
            description=prose,
            allow_abbrev=False,
            add_help=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        places = [parameter.name for parameter in _places(call)]
        placed = sub.add_argument_group("by position, or as options")
        others = sub.add_argument_group("options")
        for parameter in inspect.signature(call).parameters.values():
            upper, meaning = parameter.name.upper(), meanings.get(parameter.name, "")
            if parameter.name in places:
                _add(placed, parameter, meaning, upper)
            else:
                _add(others, parameter, meaning, METAVARS.get(_kind(parameter)[0], upper))
        others.add_argument("-h", "--help", action="help", help="show this help and exit")
        parsers[name] = sub
    return top, parsers


def _put_in_place(verb: str, words: list[str], given: dict[str, Any]) -> None:
    """Give the words without an option to the places that no option filled, in their order.

    Several go where several are taken, all but what the later places need. Raises AutosegError for
    a word too many.
    """
    places = _places(api.VERBS[verb])
    free = [place for place in places if given.get(place.name) is None]
    rest = list(words)
    for index, place in enumerate(free):
        if not rest:
            break
        kind, many = _kind(place)
        count = max(1, len(rest) - len(free[index + 1 :])) if many else 1
        values = [KINDS[kind](word) for word in rest[:count]]
        given[place.name], rest = (values if many else values[0]), rest[count:]
    if rest:
        for place, word in zip(places, words, strict=False):
            if place not in free:
                raise AutosegError(f"{place.name} is given twice: {word} and {given[place.name]}")
        raise AutosegError(
            f"`autoseg {verb}` has no place for {rest[0]!r}; see `autoseg {verb} --help`"
        )


def _options(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The verb and its arguments. Raises AutosegError for unknown names, with the nearest one."""
    top, parsers = build_parser()
    if argv and not argv[0].startswith("-") and argv[0] not in parsers:
        near = difflib.get_close_matches(argv[0], list(parsers), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(parsers)}"
        raise AutosegError(f"there is no verb {argv[0]!r}; {hint}")
    cut = list(argv).index("--") if "--" in argv else len(argv)
    values, left = top.parse_known_args(argv[:cut])
    given = vars(values)
    verb = given.pop("verb")
    unknown = [word.split("=")[0] for word in left if _is_option(word)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], parsers[verb].known_options(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"see `autoseg {verb} --help`"
        raise AutosegError(f"`autoseg {verb}` has no option {unknown[0]!r}; {hint}")
    _put_in_place(verb, [*left, *argv[cut + 1 :]], given)
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}
    for parameter in inspect.signature(api.VERBS[verb]).parameters.values():
        if parameter.default is parameter.empty and parameter.name not in options:
            flag = SHORT.get(parameter.name, "--" + parameter.name)
            raise AutosegError(f"`autoseg {verb}` needs {parameter.name} ({flag})")
    return verb, options


def _is_option(word: str) -> bool:
    """Whether it was meant as one: `-1` and `-` are values."""
    return word.startswith("-") and word.strip("-") != "" and not word[1:].isdecimal()


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
