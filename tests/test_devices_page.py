"""Every function that touches a card is listed in a page of the decisions, with how it is tested.

What cannot run here is reviewed by name: a new line about CUDA in a function that the page does not
name fails, and so does a name without such a line.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "decisions" / "0022-devices.md"
TOUCHES = re.compile(
    r"""torch\.cuda|torch\.backends|"cuda"|'cuda'|\.is_cuda\b|\bis_card\(|\bdriver\.|pin_memory"""
    r"""|record_stream|Stream\(|GradScaler|\.autocast\(|_accelerator_|\bsynchronise\("""
    r"""|\bcard_facts\(|\bfree_card_bytes\(|\bmeasured_on_card\(|\brelease_card_memory\("""
    r"""|\bout_of_memory\(|OutOfMemoryError|set_float32_matmul_precision|device\.type"""
)
"""What only matters where there is a card, or asks whether there is one."""
ROW = re.compile(r"^\| `([\w/]+\.py)` \| (.+?) \| (.+?) \|$")


def touching(source: str) -> set[str]:
    """The functions (Class.method) of a file with such code; comments and docstrings do not count."""
    tree = ast.parse(source)
    lines = source.splitlines()
    spans: list[tuple[int, int, str]] = []
    texts: set[int] = set()

    def walk(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = outer
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{outer}.{child.name}" if outer else child.name
                spans.append((child.lineno, child.end_lineno or child.lineno, name))
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                texts.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
            walk(child, name)

    walk(tree, "")
    found = set()
    for number, line in enumerate(lines, 1):
        if number in texts or not TOUCHES.search(line.partition("#")[0]):
            continue
        around = [(start, name) for start, end, name in spans if start <= number <= end]
        found.add(max(around)[1] if around else "(module)")
    return found


def in_code() -> dict[str, set[str]]:
    found = {}
    for path in sorted((ROOT / "autoseg").rglob("*.py")):
        names = touching(path.read_text(encoding="utf-8"))
        if names:
            found[str(path.relative_to(ROOT / "autoseg"))] = names
    return found


def on_page() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if row := ROW.match(line):
            found.setdefault(row[1], set()).update(re.findall(r"`([^`]+)`", row[2]))
    return found


def test_what_touches_a_card_is_listed() -> None:
    code, page = in_code(), on_page()
    missing = {
        file: sorted(names - page.get(file, set()))
        for file, names in code.items()
        if names - page.get(file, set())
    }
    assert not missing, f"list them in {PAGE.name}, with how they are tested: {missing}"


def test_what_is_listed_is_there() -> None:
    code = in_code()
    gone = {
        file: sorted(names - code.get(file, set()))
        for file, names in on_page().items()
        if names - code.get(file, set())
    }
    assert not gone, f"no line there asks for a card any more: {gone}"


def test_the_tests_that_the_page_names_are_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in set(re.findall(r"`(tests/[\w/]+\.py)`", text)):
        assert (ROOT / name).exists(), name


def test_lines_are_found_in_functions_and_not_in_words() -> None:
    source = '''
class A:
    """torch.cuda is spoken of."""
    def f(self):
        return torch.cuda.is_available()  # driver.count
def g():
    """is_card(x)"""
    return 1
x = torch.backends.cudnn
'''
    assert touching(source) == {"A.f", "(module)"}
