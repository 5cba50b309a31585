# SPDX-License-Identifier: Apache-2.0
"""The C++ library as its users meet it: installed, found by CMake and pkg-config, linked, run."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import reco
from cpp_projects import BUILD, CLIP, ROOT, build, cached, drawings, run, write

pytestmark = pytest.mark.skipif(not (BUILD / "CMakeCache.txt").exists(), reason="setup.sh has not built here")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `cmake --install` put the library."""
    folder = tmp_path_factory.mktemp("install") / "a prefix"
    run("cmake", "--install", BUILD, "--component", "cpp", "--prefix", folder)
    return folder


@pytest.fixture(scope="module")
def classify(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of somebody else's that found the library there."""
    folder = tmp_path_factory.mktemp("outside")
    return build(ROOT / "tests/install", folder, f"-DCMAKE_PREFIX_PATH={prefix}") / "classify"


@pytest.fixture(scope="module")
def examples(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of examples/cpp, built outside of the tree."""
    return build(ROOT / "examples/cpp", tmp_path_factory.mktemp("examples"), f"-DCMAKE_PREFIX_PATH={prefix}")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A drawing of each of eight concepts that the bundled CLIP was trained on, by other hands."""
    concepts = list(drawings("queries-00000.tar.gz", "known").items())[:8]
    files = write(tmp_path_factory.mktemp("known"), [samples[0] for _, samples in concepts])
    return dict(zip([name for name, _ in concepts], files, strict=True))


def test_installed_files(prefix: Path) -> None:
    headers = {path.name for path in (prefix / "include/reco").iterdir()}
    assert headers == {path.name for path in (ROOT / "include/reco").iterdir()}
    licences = {path.name for path in (prefix / "share/licenses/reco").iterdir()}
    assert licences == {"LICENSE", "LICENSE-vocabulary.txt"}  # the second is of the merges within the library
    link = prefix / "lib/libreco.so"
    assert link.is_symlink() and link.resolve().name == "libreco.so.0.1"
    for package in [*(prefix / "lib/cmake/reco").glob("recoTargets*.cmake"), prefix / "lib/pkgconfig/reco.pc"]:
        text = package.read_text("utf-8")
        assert str(ROOT) not in text and str(prefix) not in text  # the folder may be moved to anywhere


def test_only_names_of_reco_are_exported(prefix: Path) -> None:
    """Neither FAISS, SQLite and LibTorch's inline functions nor the standard library's templates."""
    lines = run("nm", "-DC", "--defined-only", prefix / "lib/libreco.so").splitlines()
    names = [line.split(" ", 2)[2] for line in lines]
    assert [name for name in names if not re.match(r"((typeinfo|typeinfo name|vtable) for )?reco::", name)] == []
    private = re.compile(r"reco::(io|fusion|training|python|\(anonymous)::|::Impl\b")
    assert [name for name in names if private.search(name)] == []
    text = "\n".join(names)
    for wanted in ("reco::Clip::load(", "reco::Memory::search(", "reco::train(", "typeinfo for reco::Error"):
        assert wanted in text


def test_outside_project_classifies_as_python_does(classify: Path, known: dict[str, Path]) -> None:
    clip = reco.Clip.load(CLIP)
    names = list(known)
    texts = clip.encode_texts(names)
    for name, picture in known.items():
        best, *scores = run(classify, CLIP, picture, *names).splitlines()
        expected = (clip.encode_images([picture]) @ texts.T)[0]
        np.testing.assert_allclose(np.array(scores, dtype=np.float32), expected, atol=2e-6)
        assert best == names[int(expected.argmax())] == name


def test_errors_are_caught_outside(classify: Path, tmp_path: Path) -> None:
    """Thrown inside the library, and by the header's template inside the program."""
    assert run(classify, tmp_path, "x.webp", "a", status=1).startswith("Error: [file.read_file] cannot open")
    assert run(classify, CLIP, tmp_path / "absent.webp", "a", status=1).startswith("Error: [")
    assert run(classify, status=1) == "Error: [classify] expected MODEL IMAGE CLASS..., got 0 arguments\n"


def test_pkg_config_from_a_folder_that_was_moved(prefix: Path, known: dict[str, Path], tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(prefix, moved, symlinks=True)

    def ask(*options: str) -> list[str]:
        environment = {"PKG_CONFIG_PATH": str(moved / "lib/pkgconfig")}
        return shlex.split(run("pkg-config", *options, "reco", environment=environment))

    assert ask("--modversion") == [reco.__version__]
    (folder,) = ask("--variable=libdir")
    flags = ("-std=c++20", "-O2", "-Wall", "-Werror", f"-Wl,-rpath,{folder}")
    program = tmp_path / "classify"
    run("c++", ROOT / "tests/install/main.cpp", *flags, *ask("--cflags", "--libs"), "-o", program)
    name, picture = next(iter(known.items()))
    assert run(program, CLIP, picture, *known).splitlines()[0] == name


def test_missing_torch_is_said_when_reco_is_looked_for(prefix: Path, tmp_path: Path) -> None:
    """Not at the first start of a program. Another torch may be named."""
    moved = tmp_path / "moved"
    shutil.copytree(prefix, moved, symlinks=True)
    config = moved / "lib/cmake/reco/recoConfig.cmake"
    config.write_text(config.read_text("utf-8").replace(cached("RECO_TORCH_CPU").rpartition("/")[0], "/no/torch"))
    command = ("cmake", "-S", ROOT / "tests/install", "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={moved}")
    assert "expected LibTorch in /no/torch" in run(*command, status=1)
    torch = Path(cached("RECO_TORCH_CPU")).parents[1]
    run(*command, f"-DTORCH_INSTALL_PREFIX={torch}")
    run("cmake", "--build", tmp_path / "build")
    assert "libtorch_cpu.so" in run("readelf", "-d", tmp_path / "build/classify")


def test_program_with_its_own_faiss(prefix: Path, tmp_path: Path) -> None:
    """Its FAISS is visible to the whole process; both search and build in turn and find what they should."""
    if cached("RECO_FETCH_FAISS") == "ON":
        pytest.skip("FAISS was built for reco alone: there is none to link")
    folder = build(ROOT / "tests/install", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}", "-DOWN_FAISS=ON")
    symbols = run("nm", "-DC", "--defined-only", folder / "own_faiss")
    assert "faiss::IndexHNSW::add(" in symbols
    lines = run(folder / "own_faiss", tmp_path / "memory").splitlines()
    same = {name: int(count) for name, count in (line.rsplit(" ", 1) for line in lines)}
    assert list(same) == ["exact", "HNSW16", "IVF32,Flat", "IVF32,PQ16", "own graph"]
    assert same["exact"] >= 196  # of 200: rows are rounded to float16
    assert min(same.values()) >= 180  # indexes are tuned for 95 %


def test_subproject_leaves_developer_targets_out(tmp_path: Path) -> None:
    """Fetched or added as a folder, reco brings its library and nothing else, and no settings for other targets."""
    (tmp_path / "own.cpp").write_text("int own() { return 0; }\n")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\n"
        "project(own LANGUAGES C CXX)\n"
        "include(FetchContent)\n"
        f'FetchContent_Declare(reco SOURCE_DIR "{ROOT}")\n'
        "FetchContent_MakeAvailable(reco)\n"
        "add_library(own own.cpp)\n"
        "target_link_libraries(own PRIVATE reco::reco)\n"
    )
    folder = tmp_path / "build"
    run("cmake", "-S", tmp_path, "-B", folder, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}")
    targets = set(re.findall(r"^(?:.*/)?([^:/\s]+): ", run("ninja", "-C", folder, "-t", "targets", "all"), re.M))
    assert {"libreco.so", "libown.a"} <= targets
    assert not targets & {"_core", "docs", "memory_test", "clip_test", "zero_shot", "live_memory"}
    assert not re.search(
        r"^(BUILD_SHARED_LIBS|CMAKE_BUILD_TYPE:STRING=.)", (folder / "CMakeCache.txt").read_text(), re.M
    )


def test_zero_shot_example(examples: Path, tmp_path: Path) -> None:
    """Names drawings of concepts that CLIP was never shown, as Python does."""
    queries, remembered = drawings("queries-00000.tar.gz", "unseen"), drawings("memory-00000.tar.gz", "unseen")
    names = [name for name in queries if len(remembered.get(name, [])) >= 3][:8]
    files = write(tmp_path / "queries", [queries[name][0] for name in names])
    samples = [sample for name in names for sample in remembered[name]]

    clip = reco.Clip.load(CLIP)
    captions = [sample.metadata["concept"] for sample in samples]
    memory = reco.Memory.create(tmp_path / "icons.reco", dim=clip.dim, encoder=clip.fingerprint)
    images = clip.encode_images([sample.image for sample in samples])
    memory.add(images, clip.encode_texts(captions), keys=[sample.key for sample in samples], captions=captions)
    fusion = reco.Fusion.mean(clip.dim)
    fusion.save(tmp_path / "f.safetensors")
    model = reco.Model(clip, memory, fusion)
    expected = (model.encode_images(files) @ model.encode_texts(names).T).max(axis=1)

    options = (CLIP, tmp_path / "icons.reco", tmp_path / "f.safetensors")
    lines = [line.split("\t") for line in run(examples / "zero_shot", *options, *files, "--", *names).splitlines()]
    assert [(line[0], line[1]) for line in lines] == [
        (str(file), name) for file, name in zip(files, names, strict=True)
    ]
    np.testing.assert_allclose([float(line[2]) for line in lines], expected, atol=1e-5)
    assert run(examples / "zero_shot", CLIP, status=2).startswith("usage: ")
    assert run(examples / "zero_shot", CLIP, tmp_path, *options[2:], *files, "--", "x", status=1).startswith(
        "[memory.open]"
    )


def test_live_memory_example(examples: Path, tmp_path: Path) -> None:
    """Four threads search while sixty pairs come and sixty go: each is found at once, and never after it went."""
    concepts = list(drawings("memory-00000.tar.gz", "unseen").values())[:120]
    write(tmp_path / "pictures", [samples[0] for samples in concepts])
    said = run(examples / "live_memory", CLIP, tmp_path / "live.reco", tmp_path / "pictures")
    pattern = (
        r"added 60, found at once 60\nremoved 60, found since 0\nleft 60\n"
        r"searches beside it (\d+), median ([\d.]+) ms, 99th percentile ([\d.]+) ms\n"
    )
    match = re.fullmatch(pattern, said)
    assert match, said
    assert int(match[1]) >= 4 and float(match[2]) <= float(match[3])
    with reco.Memory.open(tmp_path / "live.reco") as memory:
        assert len(memory) == 60 and memory.verify() == []


def test_import_is_light_and_before_or_after_torch() -> None:
    """`import reco` loads no torch module; both import orders work in one process."""
    run(sys.executable, "-c", "import sys, reco; assert 'torch' not in sys.modules; assert reco.threads() > 0")
    for order in ("import reco, torch", "import torch, reco"):
        code = f"{order}; torch.ones(2) @ torch.ones(2); reco.Fusion.create(reco.FusionConfig(dim=16))"
        assert run(sys.executable, "-c", code) == ""
