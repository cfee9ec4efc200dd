"""Running the command line in-process, and a toy method that is installed for one test."""

import io
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from memtoken_cli import methods
from memtoken_cli.cli import run

TOY = Path(__file__).parent / "toy_method"


@dataclass
class Ran:
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


Memtok = Callable[..., Ran]


@pytest.fixture
def memtok(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Memtok:
    """memtok(*argv, stdin=b"", tty=()): one command line, in an empty directory, streams as in a pipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMTOK_DEBUG", raising=False)

    def call(*argv: str, stdin: bytes | str = b"", tty: tuple[str, ...] = ()) -> Ran:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        streams = {
            name: io.BytesIO(data if name == "stdin" else b"") for name in ("stdin", "stdout", "stderr")
        }
        with monkeypatch.context() as patch:
            for name, stream in streams.items():
                kind = Terminal if name in tty else io.TextIOWrapper
                patch.setattr(sys, name, kind(stream, encoding="utf-8", write_through=True))
            code = run(argv)
            return Ran(code, streams["stdout"].getvalue(), streams["stderr"].getvalue().decode())

    return call


def install(site: Path) -> None:
    """What `pip install tests/toy_method` leaves behind for importlib.metadata."""
    project = tomllib.loads((TOY / "pyproject.toml").read_text())["project"]
    info = site / "memtok_toy-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [f"{name} = {value}" for name, value in project["entry-points"]["memtok.methods"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[memtok.methods]", *lines]) + "\n")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The toy method, installed while the test runs."""
    site = tmp_path_factory.mktemp("site")
    install(site)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(TOY))
    methods.discover.cache_clear()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "memtok_toy"]:
        del sys.modules[name]
    methods.discover.cache_clear()


SHOTS = """\
{"input": "where is my card", "output": "card"}
{"input": "my card is lost", "output": "card"}
{"input": "what is the exchange rate", "output": "rate"}
{"input": "rate for dollars", "output": "rate"}
"""


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text(SHOTS)
    return path
