#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs all tests: GoogleTest through ctest, then pytest. Sets reco up first.
set -euo pipefail
cd "$(dirname "$0")/.."
bash setup.sh
export PATH="$PWD/.venv/bin:$PATH"
# Threads that spin while they wait are ruinous where cores are shared.
export OMP_WAIT_POLICY=passive HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
ctest --test-dir build/release --output-on-failure --no-tests=error -j 2 --progress
python -m pytest "$@"
