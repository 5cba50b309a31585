# SPDX-License-Identifier: Apache-2.0
"""The Python package as a whole: its names, docstrings, type stubs, API reference, and how fast it starts."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import reco

ROOT = Path(__file__).parents[2]
MODULES = [
    "reco",
    "reco.datasets",
    "reco.duplicates",
    "reco.embedding",
    "reco.embedding_cluster",
    "reco.embedding_folder",
    "reco.embedding_source",
    "reco.evaluation",
    "reco.exchange",
    "reco.explanation",
    "reco.milvus",
    "reco.model",
    "reco.neighbors_cluster",
    "reco.plotting",
    "reco.progress",
    "reco.types",
]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_name_is_there() -> None:
    for name in reco.__all__:
        assert getattr(reco, name) is not None
    assert set(reco.__all__) <= set(dir(reco))
    assert reco.Memory.__module__ == reco.Clip.__module__ == "reco"
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = reco.absent


def unnamed_parameters(function: Any, doc: str) -> list[str]:
    """What the docstring of a function does not mention; of a class, what its constructor takes."""
    try:
        names = inspect.signature(function).parameters
    except ValueError:  # a class without a constructor
        return [] if inspect.isclass(function) else ["no signature"]
    return [n for n in names if n not in ("self", "args", "kwargs") and not re.search(rf"\b{re.escape(n)}\b", doc)]


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of our own."""
    own = {name for base in cls.__mro__ if base.__module__.startswith("reco") for name in vars(base)}
    for name, member in inspect.getmembers(cls):
        if name in own and (not name.startswith("_") or name == "__call__") and not inspect.isclass(member):
            yield name, member


def flaws(name: str, thing: Any) -> Iterator[str]:
    """What is missing from the docstring of a function or class, and of the members of the latter."""
    doc = inspect.getdoc(thing) if inspect.isclass(thing) or callable(thing) or isinstance(thing, property) else "-"
    if not doc or (inspect.isclass(thing) and "__doc__" not in vars(thing)):
        yield f"{name} has no docstring"
        return
    if not inspect.isclass(thing):
        yield from (f"{name}: {p}" for p in (unnamed_parameters(thing, doc) if callable(thing) else []))
        return
    if not issubclass(thing, Exception) and not getattr(thing, "_is_protocol", False):
        yield from (f"{name}: {parameter}" for parameter in unnamed_parameters(thing, doc))
    fields = getattr(thing, "__dataclass_fields__", {})
    yield from (f"{name}: {field}" for field in fields if not re.search(rf"\b{field}\b", doc))
    for key, member in members(thing):
        if key not in fields:
            yield from flaws(f"{name}.{key}", member)


def is_alias(thing: Any) -> bool:
    return not inspect.isclass(thing) and not callable(thing) or type(thing).__module__ == "typing"


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_is_documented(name: str) -> None:
    """A docstring each, which names every parameter and every field."""
    module = importlib.import_module(name)
    found = [] if module.__doc__ else [f"{name} has no docstring"]
    for key in module.__all__:
        thing = getattr(module, key)
        found += [] if is_alias(thing) else flaws(f"{name}.{key}", thing)
    assert found == []


def test_a_missing_docstring_would_be_noticed() -> None:
    class Bare:
        """Takes a thing."""

        def method(self, parameter: int) -> None:
            """Does something."""

        def silent(self) -> None: ...

    Bare.__module__ = "reco.somewhere"
    assert list(flaws("Bare", Bare)) == ["Bare.method: parameter", "Bare.silent has no docstring"]


def test_examples_in_docstrings_run() -> None:
    """Those that need nothing but the package; the others are marked +SKIP."""
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    for name in reco.__all__:
        thing = getattr(reco, name)
        members = vars(thing).items() if inspect.isclass(thing) else ()
        for key, part in [(name, thing), *((f"{name}.{key}", getattr(thing, key)) for key, _ in members)]:
            runner.run(parser.get_doctest(getattr(part, "__doc__", None) or "", {}, key, None, 0))
    assert runner.failures == 0 and runner.tries > 10


def test_signatures_of_the_core() -> None:
    assert str(inspect.signature(reco.Clip.load)) == "(path, device='cpu', dtype='float32', batch_size=64)"
    assert list(inspect.signature(reco.Memory.search).parameters)[:4] == ["self", "queries", "k", "modality"]
    for cls in (reco.Model, reco.Neighbors, reco.MemoryRow, reco.MemoryBase, reco.FusionConfig, reco.Preprocess):
        parameters = list(inspect.signature(cls).parameters.values())
        assert list(inspect.signature(cls.__init__).parameters.values())[1:] == parameters, cls
    assert not reco.Memory.search.__doc__.startswith("search(")


def test_stubs_fit_the_core() -> None:
    """Names, kinds and defaults of all parameters, properties, special methods: mypy's stubtest, without exceptions."""
    pytest.importorskip("mypy")
    result = python("-m", "mypy.stubtest", "reco._core", "--mypy-config-file", "pyproject.toml", "--concise")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_library_does_not_print() -> None:
    """Only the command line does; the rest tells the logger "reco"."""
    sources = [p for p in (ROOT / "python/reco").rglob("*.py") if "cli" not in p.parts]
    assert len(sources) > 20
    assert [p for p in sources if re.search(r"^\s*print\(", p.read_text(), re.MULTILINE)] == []
    for path in sources:
        loggers = re.findall(r"= logging\.getLogger\((.*?)\)", path.read_text())
        assert all(name == '"reco"' for name in loggers), path


def test_api_reference(tmp_path: Path) -> None:
    """pdoc renders it without a warning, with signatures and docstrings of what is compiled."""
    pytest.importorskip("pdoc")
    assert set(reference()) == set(MODULES) - {"reco.model"}
    result = python("-m", "pdoc", "-d", "numpy", "-o", str(tmp_path), *reference())
    assert result.returncode == 0 and "warn" not in result.stderr.lower(), result.stderr
    page = re.sub(r"<[^>]*>", "", (tmp_path / "reco.html").read_text())
    for text in ("Find the k most similar pairs of each query", "min_similarity", "A frozen CLIP model", "batch_size"):
        assert text in page, text
    for name in reco.__all__:
        assert f'id="{name}"' in (tmp_path / "reco.html").read_text(), name


def reference() -> list[str]:
    """The modules that `cmake --build ... --target docs` renders."""
    command = re.search(r"-m pdoc -d numpy -o \S+ ([^)]*?)\n +COMMENT", (ROOT / "cmake/RecoDocs.cmake").read_text())
    assert command
    return command[1].split()


def processor_seconds(*arguments: str) -> float:
    """The least of five runs, since the machine may be busy."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_start_is_quick() -> None:
    heavy = "{'numpy', 'torch', 'reco._core', 'matplotlib', 'PIL', 'pyarrow', 'pymilvus', 'tqdm'}"
    code = f"import sys; import reco.cli; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert processor_seconds("-m", "reco.cli", "--help") < 0.3
    assert processor_seconds("-c", "import reco") < 0.5
