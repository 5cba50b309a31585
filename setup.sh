#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets reco up: system packages where they are missing, a virtual environment in .venv, build and install.
# Repeatable: run again, it does only what changed. Quiet: the whole output of a step is shown when it fails.
#   PYTHON=python3.12 bash setup.sh     another Python (3.10 or newer) for the virtual environment
set -euo pipefail
cd "$(dirname "$0")"

log=build/setup.log
mkdir -p build
: > "$log"

say() { printf 'setup: %s\n' "$*"; }

# Runs a command quietly; shows what it printed when it fails.
quietly() {
  local what=$1
  shift
  if ! "$@" >> "$log" 2>&1; then
    tail -n 60 "$log" >&2
    say "$what failed; the whole output is in $log" >&2
    exit 1
  fi
}

# --- system packages -------------------------------------------------------------------------------------------------
packages=(g++ cmake ninja-build ccache pkg-config python3-dev python3-venv libfaiss-dev libopenblas-dev libeigen3-dev
  libgtest-dev libjpeg-dev libpng-dev zlib1g-dev libwebp-dev libsentencepiece-dev libicu-dev libsqlite3-dev nlohmann-json3-dev
  doxygen)

install_packages() {
  local missing=() package
  command -v dpkg-query > /dev/null || { say "no dpkg here: install these yourself: ${packages[*]}"; return; }
  for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo > /dev/null || {
      say "these packages are missing and neither root nor sudo is at hand: apt-get install ${missing[*]}" >&2
      exit 1
    }
    root=(sudo)
  fi
  say "installing ${missing[*]}"
  quietly "apt-get update" "${root[@]}" apt-get -qq update
  quietly "apt-get install" "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install -y --no-install-recommends "${missing[@]}"
}

# --- Python ----------------------------------------------------------------------------------------------------------
make_environment() {
  local python=${PYTHON:-python3}
  if [ ! -x .venv/bin/python ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
      say "$python is older than 3.10: set PYTHON to a newer one" >&2
      exit 1
    }
    say "making .venv"
    quietly "python -m venv" "$python" -m venv .venv
  fi
  local wanted
  wanted=$(sha256sum pyproject.toml setup.sh | sha256sum)
  [ "$(cat .venv/requirements.stamp 2> /dev/null)" = "$wanted" ] && return
  say "installing Python packages (torch 2.13.0 among them)"
  # torch first and alone: pinned, so that nothing that follows brings another build of it. The CPU build where
  # PyTorch's own index serves it is chosen with PIP_EXTRA_INDEX_URL or pip's configuration.
  quietly "pip install torch" .venv/bin/python -m pip install --disable-pip-version-check -q torch==2.13.0
  quietly "pip install" .venv/bin/python -m pip install --disable-pip-version-check -q torch==2.13.0 \
    'scikit-build-core>=0.10' 'pybind11==3.0.*' 'cmake>=3.25,<4' ninja 'numpy>=1.24' 'click>=8.1' 'tqdm>=4.64' \
    'pillow>=10' 'matplotlib>=3.7' 'pyarrow>=14' 'jinja2>=3.1' 'scipy>=1.10' 'tomli>=2' 'pytest>=8' \
    'transformers>=5,<5.24' 'safetensors>=0.4' 'ftfy>=6.3' regex 'sentencepiece>=0.2' protobuf 'tensorboard>=2.14' \
    'scikit-learn>=1.3' 'nbclient>=0.10' 'nbformat>=5.9' 'ipykernel>=6.25' 'pymilvus>=2.5' 'milvus-lite>=3.2' \
    'distributed>=2024.1' ruff==0.17.6 mypy==2.4.1 clang-format==14.0.6 types-tqdm \
    'pdoc>=15'
  # For what the tests compare with alone (metrics, prompts, a reader of embeddings); what else they ask for is large.
  quietly "pip install" .venv/bin/python -m pip install --disable-pip-version-check -q --no-deps \
    clip-benchmark==1.6.2 open_clip_torch==3.3.0 embedding-reader==1.8.1
  echo "$wanted" > .venv/requirements.stamp
}

# --- build and install -----------------------------------------------------------------------------------------------
# Everything that goes into the build or the package.
source_state() {
  find CMakeLists.txt cmake include src python tests examples/cpp examples/icons/clip/merges.txt pyproject.toml -type f \
    ! -name '*.pyc' ! -path 'tests/python/*' -print0 2> /dev/null | sort -z | xargs -0 sha256sum | sha256sum
}

build() {
  local state
  state=$(source_state)
  [ "$(cat .venv/build.stamp 2> /dev/null)" = "$state" ] && return
  say "building and installing reco (some minutes the first time)"
  export PATH="$PWD/.venv/bin:$PATH" CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
  if command -v ccache > /dev/null; then
    export CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_C_COMPILER_LAUNCHER=ccache
    export CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
  fi
  RECO_BUILD_TESTS=ON RECO_BUILD_EXAMPLES=ON quietly "the build" .venv/bin/python -m pip install \
    --disable-pip-version-check -q --no-build-isolation --no-deps --force-reinstall -C build-dir=build/release .
  echo "$state" > .venv/build.stamp
}

install_packages
make_environment
build
say "ready: source .venv/bin/activate"
