# SPDX-License-Identifier: Apache-2.0
"""The wheel in an environment of its own: what it holds, beside which packages it works, what C++ finds in it."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import reco
from cpp_projects import BUILD, CLIP, ROOT, build, cached, drawings, run, write

pytestmark = pytest.mark.skipif(not (BUILD / "CMakeCache.txt").exists(), reason="setup.sh has not built here")

# Imports what is named, in this order, and lets each search the same rows.
SEARCH = """
import importlib, tempfile
import numpy as np
for name in {order}:
    globals()[name] = importlib.import_module(name)

rows = np.random.default_rng(0).standard_normal((500, 32), dtype=np.float32)
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
with tempfile.TemporaryDirectory() as folder, reco.Memory.create(folder + "/m", dim=32) as memory:
    memory.add(rows, rows, keys=[str(i) for i in range(500)])
    memory.optimize(index="HNSW16")  # linked by the FAISS inside reco
    found = [[int(key) for key in row] for row in memory.search(rows[:50], k=1).keys]
assert np.array_equal(found, np.arange(50)[:, None]), found
if "faiss" in {order}:
    index = faiss.index_factory(32, "HNSW16", faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = 64
    index.add(rows)
    assert np.array_equal(index.search(rows[:50], 1)[1], found)
if "torch" in {order}:
    assert (torch.from_numpy(rows) @ torch.from_numpy(rows).T).argmax(dim=1)[:50].tolist() == list(range(50))
if "transformers" in {order}:
    assert transformers.CLIPConfig().projection_dim == 512
reco.Fusion.create(reco.FusionConfig(dim=32, heads=4))
assert "{site}" in reco.__file__
"""

ORDERS = [
    ("reco", "torch", "faiss"),
    ("reco", "faiss", "torch"),
    ("torch", "reco", "faiss"),
    ("torch", "faiss", "reco"),
    ("faiss", "reco", "torch"),
    ("faiss", "torch", "reco"),
    ("reco", "transformers"),
    ("transformers", "reco"),
    ("reco", "ftfy", "huggingface_hub", "safetensors", "regex", "tqdm"),
    ("ftfy", "huggingface_hub", "safetensors", "regex", "tqdm", "reco"),
]


def packages_of(environment: Path) -> Path:
    """site-packages of a virtual environment."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree's wheel, of what setup.sh has compiled; the build folder keeps its settings."""
    folder = tmp_path_factory.mktemp("wheel")
    settings = {name: cached(name) for name in ("RECO_BUILD_TESTS", "RECO_BUILD_EXAMPLES")}
    options = ("--no-deps", "--no-build-isolation", "-C", f"build-dir={BUILD}", "-w", folder)
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", ROOT, *options, environment=settings)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds the wheel alone, and sees torch and the rest in another folder."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin/python")
    run(*pip, "install", "--no-deps", "--no-index", wheel)
    (packages_of(folder) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    return folder


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    libraries = [name for name in names if ".so" in name]
    assert len(libraries) == 2 and "reco/lib/libreco.so.0.1" in libraries  # no links, which a wheel would copy
    headers = {Path(name).name for name in names if name.startswith("reco/include/reco/")}
    assert headers == {path.name for path in (ROOT / "include/reco").iterdir()}
    assert "reco/lib/cmake/reco/recoConfig.cmake" in names
    assert not [name for name in names if not name.startswith(("reco/", "reco_clip-"))]
    licences = {Path(name).name for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "LICENSE-vocabulary.txt"}  # the second is of the merges within the library
    assert wheel.stat().st_size < 10e6


def test_source_distribution(tmp_path: Path) -> None:
    """Of the examples' model it has what the library is built from, and none of the rest."""
    code = "import os, sys; os.chdir(sys.argv[1]); from scikit_build_core.build import build_sdist as b; b(sys.argv[2])"
    run(sys.executable, "-c", code, ROOT, tmp_path)
    (file,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(file) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"LICENSE", "CMakeLists.txt", "cmake/clip_merges.py", "src/model_format.cpp"} <= names
    model = {name for name in names if name.startswith("examples/icons/clip/")}
    assert model == {f"examples/icons/clip/{name}" for name in ("merges.txt", "LICENSE-vocabulary.txt")}


def test_libraries_are_found_from_where_they_lie(environment: Path) -> None:
    """No folder of the machine that built the wheel."""
    packages = packages_of(environment)
    (core,) = (packages / "reco").glob("_core*.so")
    for library, expected in (
        (core, "[$ORIGIN/lib]"),
        (packages / "reco/lib/libreco.so.0.1", "[$ORIGIN/../../torch/lib]"),
    ):
        lines = run("readelf", "-d", library).splitlines()
        assert [line.split()[-1] for line in lines if "RUNPATH" in line or "RPATH" in line] == [expected]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_works_before_and_after_others(environment: Path, order: tuple[str, ...]) -> None:
    for name in order:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    code = SEARCH.format(order=order, site=environment)
    assert run(environment / "bin/python", "-I", "-c", code, environment={"OMP_NUM_THREADS": "2"}) == ""


def test_missing_torch_is_said(environment: Path) -> None:
    (packages_of(environment) / "others.pth").rename(environment / "others.pth")
    try:
        said = run(environment / "bin/python", "-I", "-c", "import reco; reco.threads()", status=1)
        assert said.splitlines()[-1] == "ImportError: reco needs torch 2.13.0, found none: pip install torch==2.13.0"
    finally:
        (environment / "others.pth").rename(packages_of(environment) / "others.pth")


def test_command(environment: Path) -> None:
    assert run(environment / "bin/reco", "--version").split()[-1] == reco.__version__
    assert "retrieval" not in run(environment / "bin/python", "-I", "-m", "reco", "info", CLIP, "--json")


def test_outside_project_finds_the_library_in_the_wheel(environment: Path, tmp_path: Path) -> None:
    """Where torch is beside reco, as pip puts it, and where it is elsewhere."""
    (samples, *_) = drawings("queries-00000.tar.gz", "known").values()
    (picture,) = write(tmp_path / "pictures", samples[:1])
    name = samples[0].metadata["concept"]
    folder = run(environment / "bin/python", "-I", "-m", "reco", "--cmake-dir").strip()
    assert folder == str(packages_of(environment) / "reco/lib/cmake/reco")
    torch = Path(sysconfig.get_path("platlib"), "torch")

    elsewhere = build(ROOT / "tests/install", tmp_path / "a", f"-Dreco_DIR={folder}", f"-DTORCH_INSTALL_PREFIX={torch}")
    assert run(elsewhere / "classify", CLIP, picture, name, "a stone").splitlines()[0] == name
    (packages_of(environment) / "torch").symlink_to(torch)
    try:
        beside = build(ROOT / "tests/install", tmp_path / "b", f"-Dreco_DIR={folder}")
        assert run(beside / "classify", CLIP, picture, name, "a stone").splitlines()[0] == name
    finally:
        (packages_of(environment) / "torch").unlink()


def test_folder_without_library_is_said(environment: Path) -> None:
    library = packages_of(environment) / "reco/lib"
    package = library / "cmake"
    package.rename(library / "elsewhere")
    try:
        said = run(environment / "bin/python", "-I", "-m", "reco", "--cmake-dir", status=1)
        assert said.startswith("Error: no C++ library in ") and "cmake --install" in said
    finally:
        (library / "elsewhere").rename(package)
