"""A statement of one's own, begun: its module, the page of its proof, and its entries in the registry and the documentation.

What is written holds and passes the tests as it is: an example of a claim, its false twin and its proof, to be replaced.
"""

import keyword
import logging
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from sim.output import write_whole
from theory import REGISTRY
from ufm._check import require, typed

LOG = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
"""The checkout that this package is in."""

EXAMPLE = "The tokens of the largest log-odds rise for ever"
"""The title of the example."""


@typed
def new_statement(name: str, *, title: str = "", root: Path = ROOT) -> list[Path]:
    """Begin a statement in a checkout, and find out what becomes of it without assumption 1.

    Where it fails, the checkout is left as it was.

    Args:
        name: its id: small letters, digits and hyphens; or N and the next number, for a result of the project.
        title: a few words, which name the module of a result of the project; elsewhere the example's if left out.
        root: the checkout.

    Returns:
        The files that were written or changed.

    Raises:
        ValueError: an id that is taken or has another form; a title that a module cannot hold; a folder that is no checkout,
            or has such a module or page.
    """
    module = _module(name, title)
    title = title or EXAMPLE
    fits = title.isprintable() and not set(title) & set('"\\')
    require(fits, "title", "one line without double quotation marks and backslashes", repr(title))
    files = _Files(root)
    numbered = name.startswith("N")
    heading = f"{name}: {title[0].lower()}{title[1:]}"
    words = {"id": name, "title": title, "source": name if numbered else "own", "heading": heading}
    changes = {
        files.module(module): _filled("new_statement.py.txt", words),
        files.proof(name): _filled("new_proof.md.txt", words),
        files.registry: _registered(files.registry.read_text(encoding="utf-8"), module),
        files.reference: _referred(files.reference.read_text(encoding="utf-8"), module),
        files.index: _indexed(files.index.read_text(encoding="utf-8"), name, module),
    }
    written = [*changes, files.assumption]
    with _restored_if_it_fails(written):
        for path, text in changes.items():
            write_whole(path, partial(_write, text))
        LOG.info("the statement is written; trying what becomes of its claim without assumption 1, for about a minute")
        # In a process of its own: the registry of this one does not know the statement.
        command = [sys.executable, "-m", "sim.cli", "assumption", "--statements", name, "--out", str(files.assumption)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        require(done.returncode == 0, "assumption 1", "the statement to be attacked without it", done.stderr.strip()[-500:])
    return written


def _module(name: str, title: str) -> str:
    """The name of a statement's module, if its id and title can have one."""
    numbered = re.fullmatch(r"N\d+", name) is not None
    fits = numbered or re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) is not None
    require(fits, "name", "small letters, digits and hyphens, such as my-statement, or N and a number", repr(name))
    taken = [known for known in REGISTRY if known == name or known.startswith(f"{name}.")]
    require(not taken, "name", "an id that no statement has", f"{name!r}, of {', '.join(taken)}")
    if not numbered:
        require(not keyword.iskeyword(name), "name", "an id that is not a keyword of Python", repr(name))
        return name.replace("-", "_")
    numbers = [int(match[1]) for known in REGISTRY if (match := re.match(r"N(\d+)", known))]
    following = f"N{max(numbers) + 1}"
    require(name == following, "name", f"the next number, {following}", repr(name))
    words = re.findall(r"[a-z0-9]+", title.lower())[:3]
    require(bool(words), "title", f"a few words, for {name} has its module named after them", repr(title))
    return "_".join([name.lower(), *words])


@contextmanager
def _restored_if_it_fails(paths: Iterable[Path]) -> Iterator[None]:
    """Files have their old contents again, and new ones are gone, if what is done in this context raises an error."""
    before = {path: path.read_bytes() if path.is_file() else None for path in paths}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
        raise


def _filled(template: str, words: dict[str, str]) -> str:
    """A template, which is no page: nothing in it is escaped."""
    environment = Environment(loader=PackageLoader("sim"), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(template).render(**words)


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


class _Files:
    """The files of a checkout that a statement is in; refuses a folder that is none, and files that are there."""

    def __init__(self, root: Path) -> None:
        self.registry = root / "theory" / "statements" / "__init__.py"
        self.reference = root / "docs" / "reference" / "theory.md"
        self.index = root / "docs" / "proofs" / "index.md"
        self.assumption = root / "docs" / "data" / "assumption-1.json"
        missing = [path for path in (self.registry, self.reference, self.index, self.assumption) if not path.is_file()]
        require(
            not missing, "root", "a checkout of the project, for an installation has no place for a statement", str(root)
        )

    def module(self, name: str) -> Path:
        """The module of a statement."""
        return self._new(self.registry.parent / f"{name}.py")

    def proof(self, name: str) -> Path:
        """The page of a proof."""
        return self._new(self.index.parent / f"{name}.md")

    def _new(self, path: Path) -> Path:
        require(not path.exists(), "name", "one of which there is no module or page", str(path))
        return path


def _registered(text: str, module: str) -> str:
    """The registry with a module: among the imports in their order, and at the end of `_MODULES`."""
    imports = re.search(r"from theory\.statements import \(\n((?:    \w+,\n)+)\)", text)
    modules = re.search(r"_MODULES = \(\n(?:    \w+,\n)+(?=\))", text)
    assert imports is not None
    assert modules is not None
    names = sorted([*re.findall(r"\w+", imports[1]), module], key=_natural)
    text = text[: modules.end()] + f"    {module},\n" + text[modules.end() :]
    return text.replace(imports[1], "".join(f"    {name},\n" for name in names), 1)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """The order of imports: numbers by their size."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", name)]


def _referred(text: str, module: str) -> str:
    """The reference with a section for the module, behind that of the last statement."""
    last = list(re.finditer(r"^\.\. automodule:: theory\.statements\.\w+\n(?:   :.*\n)*```\n", text, re.MULTILINE))[-1]
    section = f"\n## theory.statements.{module}\n\n```{{eval-rst}}\n.. automodule:: theory.statements.{module}\n```\n"
    return text[: last.end()] + section + text[last.end() :]


def _indexed(text: str, name: str, module: str) -> str:
    """The list of proofs with a row for the statement, and its page in the table of contents."""
    row = f"| {name} | {{doc}}`{name}` | {{py:mod}}`theory.statements.{module}` | |\n"
    table = re.search(r"^\| statement \|.*\n(?:\|.*\n)+", text, re.MULTILINE)
    assert table is not None
    text = text[: table.end()] + row + text[table.end() :]
    contents = re.search(r"^```\{toctree\}\n(?:.+\n|\n)*?(?=```)", text, re.MULTILINE)
    assert contents is not None
    return text[: contents.end()] + f"{name}\n" + text[contents.end() :]
