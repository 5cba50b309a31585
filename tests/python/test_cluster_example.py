# SPDX-License-Identifier: Apache-2.0
"""examples/cluster: its files are wired, its tables are computed, its commands run on a miniature."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import reco
from reco.cli import main
from reco.datasets import read_samples
from test_milvus_server import Server

yaml: Any = pytest.importorskip("yaml")
distributed: Any = pytest.importorskip("distributed")
pytest.importorskip("milvus_lite")

ROOT = Path(__file__).parents[2]
HERE = ROOT / "examples/cluster"
COMPOSE = sorted(HERE.glob("*.yaml"))
README = (HERE / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def lines() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines()]


def services(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["services"]
    return found


def variables(text: str) -> dict[str, bool]:
    """The names that a file takes from the environment, and whether one must be given."""
    return {name: mark == ":?" for name, mark in reversed(re.findall(r"\$\{(\w+)(:[-?])?", text))}


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.stem)
def test_compose_files_are_wired(path: Path) -> None:
    found, volumes = services(path), yaml.safe_load(path.read_text()).get("volumes", {})
    for name, service in found.items():
        assert service.get("image"), name
        for other in service.get("depends_on", []):
            assert other in found and set(found[other].get("profiles", [])) == set(service.get("profiles", []))
            if isinstance(service["depends_on"], dict):
                assert service["depends_on"][other] == {"condition": "service_healthy"} and found[other]["healthcheck"]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in volumes or source.startswith("${SHARE")
    if len(set(map(str, (s.get("network_mode") for s in found.values())))) == 1 and "network_mode" in str(found):
        ports = [s["environment"]["METRICS_PORT"] for s in found.values() if "METRICS_PORT" in s.get("environment", {})]
        assert len(ports) == len(set(ports))  # one machine may run all of them


@pytest.mark.parametrize("name", ["milvus-standalone", "milvus-cluster"])
def test_milvus_finds_what_it_stands_on(name: str) -> None:
    found = services(HERE / f"{name}.yaml")
    etcd, minio = found.pop("etcd"), found.pop("minio")
    host = {"milvus-standalone": ("etcd", "minio"), "milvus-cluster": ("${CONTROL}", "${CONTROL}")}[name]
    assert ":2379" in etcd["command"] and f"http://{host[0]}:2379" in etcd["command"]
    roles = set()
    for service in found.values():
        environment = service["environment"]
        assert re.sub(r":\?[^}]*", "", environment["ETCD_ENDPOINTS"]) == f"{host[0]}:2379"
        assert environment["MINIO_ADDRESS"] == f"{host[1]}:9000"
        assert environment["MINIO_ACCESS_KEY_ID"] == minio["environment"]["MINIO_ROOT_USER"]
        assert environment["MINIO_SECRET_ACCESS_KEY"] == minio["environment"]["MINIO_ROOT_PASSWORD"]
        assert environment["MQ_TYPE"] == "woodpecker"
        assert service["command"][:2] == ["milvus", "run"]
        roles.add(service["command"][2])
    cluster = {"mixcoord", "proxy", "querynode", "streamingnode", "datanode"}
    assert roles == ({"standalone"} if name == "milvus-standalone" else cluster)


def test_the_image_has_what_the_build_needs() -> None:
    setup = re.search(r"packages=\((.*?)\)", (ROOT / "setup.sh").read_text(), re.DOTALL)
    assert setup
    libraries = {name for name in setup[1].split() if name.endswith("-dev")} - {"libgtest-dev"}
    assert len(libraries) > 5 and libraries <= set((HERE / "worker.Dockerfile").read_text().split())


def test_the_image_is_not_sent_what_git_ignores() -> None:
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line]
    left_out = (HERE / "worker.Dockerfile.dockerignore").read_text().splitlines()[1:]
    assert {".git", *ignored} <= {line.removeprefix("**/") for line in left_out} and len(ignored) > 5
    for needed in ("CMakeLists.txt", "cmake", "include", "src", "python", "pyproject.toml", "README.md", "LICENSE"):
        assert (ROOT / needed).exists() and needed not in left_out


def test_compose_commands_fit_the_files() -> None:
    commands = [shlex.split(line) for line in lines() if "docker compose" in line]
    assert len(commands) == 6
    for words in commands:
        given = {word.split("=")[0] for word in words[: words.index("docker")]}
        path = ROOT / words[words.index("-f") + 1]
        wanted = variables(path.read_text())
        assert given <= set(wanted) and {name for name, needed in wanted.items() if needed} <= given
        profiles = {profile for service in services(path).values() for profile in service.get("profiles", [])}
        assert ("--profile" in words) == bool(profiles)
        if profiles:
            assert words[words.index("--profile") + 1] in profiles
    quoted = {
        (words[words.index("-f") + 1], words[words.index("--profile") + 1])
        for words in commands
        if "--profile" in words
    }
    assert quoted == {
        (f"examples/cluster/{path.name}", profile)
        for path in COMPOSE
        for service in services(path).values()
        for profile in service.get("profiles", [])
    }


def test_tables_are_what_the_script_computes() -> None:
    printed = subprocess.run([sys.executable, str(HERE / "sizing.py")], capture_output=True, text=True, check=True)
    tables = printed.stdout.strip().split("\n\n")
    assert len(tables) == 5 and all(table in README for table in tables)


def measured(section: str, column: str, **row: str) -> float:
    """A figure of a table in benchmarks/README.md: below a heading, of the one row that has some values."""
    text = re.split(r"^#+ ", (ROOT / "benchmarks/README.md").read_text(), flags=re.MULTILINE)
    (part,) = (part for part in text if part.startswith(section + "\n"))
    found: list[str] = []
    head: list[str] = []
    for line in part.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            head = []
        elif not head:
            head = cells
        elif column in head and row.items() <= dict(zip(head, cells, strict=True)).items():
            found.append(cells[head.index(column)])
    (value,) = set(found)
    return float(value.split(" (")[0].replace(",", ""))


def test_sizes_come_from_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every input that is not a choice."""
    monkeypatch.syspath_prepend(HERE)
    sizing = importlib.import_module("sizing")
    bfloat = {"model": "B/32", "precision": "bfloat16", "by": "reco"}
    for name, items in (("IMAGE_MS", "images"), ("TEXT_MS", "texts")):
        assert getattr(sizing, name) == measured("Encoder", "CPU ms an item", items=items, **bfloat)
    kinds = {"HNSW": ("HNSW32", "HNSW32"), "IVF_FLAT": ("IVF2190,Flat", "IVF")}
    assert set(sizing.INDEX_BYTES) == set(sizing.QUERY_MS) == set(sizing.INDEX_US) == set(kinds)
    for kind, (index, name) in kinds.items():
        memory = "300,000 pairs, and a million"
        assert sizing.INDEX_BYTES[kind] == measured(memory, "bytes a row", engine="reco", index=index)
        folder = {"system": f"folder, {name}"}
        assert sizing.INDEX_US[kind] == measured("Scale", "index, µs a pair", pairs="300,000", **folder)
        for rows, took in sizing.QUERY_MS[kind].items():
            assert took == measured("Scale", "one query, ms", pairs=f"{rows:,}", **folder)
    server = {"system": "Milvus server", "pairs": "100,000"}
    assert measured("Scale", "add, µs a pair", **server) == sizing.INGEST_US
    assert measured("Importing", "the importing process, CPU µs a pair", pairs="30,000") == sizing.IMPORT_US
    benchmarks = (ROOT / "benchmarks/README.md").read_text()
    assert f"{sizing.WORDS_BYTES - 25} more than its two float32 vectors" in benchmarks


def test_readme_quotes_what_sizes_are_computed_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    sizing = importlib.import_module("sizing")
    listed = README[README.index("## Sizes") : README.index("What embedding takes")]
    figures = [sizing.IMAGE_MS, sizing.TEXT_MS, sizing.INGEST_US, sizing.IMPORT_US, sizing.WORDS_BYTES]
    figures += [*sizing.INDEX_BYTES.values(), *sizing.INDEX_US.values()]
    figures += [took for rows in sizing.QUERY_MS.values() for took in rows.values()]
    for figure in figures:
        assert re.search(rf"(?<![\d.,]){re.escape(str(figure))}(?!\d|\.\d)", listed), figure


def test_machines_differ_from_the_choice_by_graphs_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the text says that explains it."""
    monkeypatch.syspath_prepend(HERE)
    sizing = importlib.import_module("sizing")
    assert "5 and 43 machines of 64 GB" in README and "make 6 and 56 here" in README and "5 and 45." in README
    for pairs in (10**8, 10**9):
        choice = measured("Carried on", "machines of 64 GB", pairs=f"{pairs:,}")
        vectors = pairs * 4 * sizing.DIM
        assert choice == -(-vectors // (sizing.FILL * 64e9)) == {10**8: 5, 10**9: 43}[pairs]
        assert sizing.nodes(pairs, 2, "HNSW", 64) == {10**8: 6, 10**9: 56}[pairs]
        assert sizing.nodes(pairs, 2, "IVF_FLAT", 64) == {10**8: 5, 10**9: 45}[pairs]
    assert sizing.loaded_bytes(2, "HNSW") == 2048 + 552 + 72 and sizing.loaded_bytes(2, "IVF_FLAT") == 2152


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """What lies on the file system that all machines mount."""
    samples = list(read_samples(sorted((ROOT / "examples/icons/data").glob("queries-*"))[0]))[:60]
    (tmp_path / "pictures").mkdir()
    for i, sample in enumerate(samples):
        (tmp_path / f"pictures/{i:02}.webp").write_bytes(sample.image)
        (tmp_path / f"pictures/{i:02}.txt").write_text(sample.caption)
    (tmp_path / "clip").symlink_to(ROOT / "examples/icons/clip")
    return tmp_path


@pytest.fixture
def scheduler() -> Iterator[str]:
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(**options) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[str]:
    server = Server(tmp_path / "milvus")  # a file would be one process's
    yield server.uri
    server.kill()


def test_commands_run(share: Path, scheduler: str, milvus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(text: str) -> str:
        text = text.replace("/mnt/share", str(share)).replace("http://10.0.0.1:19530", milvus)
        return text.replace("tcp://10.0.0.1:8786", scheduler)

    embed, fill = (shlex.split(here(line)) for line in lines() if not line.rstrip().endswith(("-d", "--build")))
    result = CliRunner().invoke(main, [*embed[1:], "--quiet"])
    assert embed[0] == "reco" and result.exit_code == 0, result.output
    monkeypatch.syspath_prepend(HERE)
    module = importlib.import_module("fill")
    assert fill[:2] == ["python", "examples/cluster/fill.py"]
    for new in (60, 0):  # started again, it goes on
        result = CliRunner().invoke(module.main, fill[2:])
        assert result.exit_code == 0 and f"{new} pairs imported, 60 in all" in result.output
    wrong = CliRunner().invoke(module.main, [*fill[2:4], str(share / "embeddings"), "--model", str(share / "other")])
    assert wrong.exit_code != 0
    scope: dict[str, Any] = {}
    (block,) = blocks("python")
    exec(here(block), scope)
    image = sorted((share / "pictures").glob("*.webp"))[0]
    assert scope["model"].encode_images([image]).shape == (1, scope["clip"].dim)
    assert np.load(share / "neighbors/image_rows.npy").shape == (60, 10)
    assert isinstance(scope["memory"], reco.MilvusMemory) and len(scope["memory"]) == len(scope["pairs"]) == 60
