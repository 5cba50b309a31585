#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The main job: a CLIP model, entities it never saw, and a memory that mends it. Sets reco up first.
# Results go to quickstart/ (or the folder given as first argument).
set -euo pipefail
cd "$(dirname "$0")/.."
bash setup.sh
export OMP_WAIT_POLICY=passive
exec .venv/bin/python examples/icons/quickstart.py "$@"
