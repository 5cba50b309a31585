#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The paper's experiment with public data: a memory of CC12M and a part of LAION, a fusion trained on CC12M, nine data
# sets. README.md beside this says what each step needs and costs. Every step may be interrupted and run again.
#   MODEL=clip-vit-base-patch32 CC12M=cc12m LAION=laion DATA=benchmarks WORK=work bash recipe.sh [STEP ...]
# Steps: embed memory train evaluate; all of them by default.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

: "${MODEL:?a CLIP folder}" "${CC12M:?a folder of shards}" "${LAION:?a folder of shards}" "${DATA:?the data sets}"
WORK=${WORK:-work}
RECO=${RECO:-reco}              # how the command is called
DTYPE=${DTYPE:-bfloat16} DEVICE=${DEVICE:-cpu}
SHARD=${SHARD:-1/1}             # this machine's part of the embedding: i/n
METHOD=${METHOD:-transformer}   # the paper's layer; gated for reco's own
BATCH=${BATCH:-4096} EPOCHS=${EPOCHS:-10} RATE=${RATE:-0.001}
SIMILARITY=${SIMILARITY:-0.96}  # pairs nearer than this to a query are near-duplicates

embed() {
  $RECO embed "$CC12M" --model "$MODEL" --out "$WORK/cc12m" --shard "$SHARD" --dtype "$DTYPE" --device "$DEVICE"
  $RECO embed "$LAION" --model "$MODEL" --out "$WORK/laion" --shard "$SHARD" --dtype "$DTYPE" --device "$DEVICE"
}

memory() {
  local name
  for name in cc12m memory; do
    [ -e "$WORK/$name.reco" ] || $RECO memory create "$WORK/$name.reco" --model "$MODEL"
  done
  $RECO memory import "$WORK/cc12m.reco" "$WORK/cc12m"                # the pairs to train on
  $RECO memory import "$WORK/memory.reco" "$WORK/cc12m" "$WORK/laion" # what is looked up
  $RECO memory optimize "$WORK/memory.reco" --recall 0.95
  $RECO memory info "$WORK/memory.reco"
}

train() {
  $RECO train "$WORK/cc12m.reco" --model "$MODEL" --memory "$WORK/memory.reco" --out "$WORK/fusion.safetensors" \
    --method "$METHOD" --k 10 --batch-size "$BATCH" --epochs "$EPOCHS" --learning-rate "$RATE" \
    --max-similarity "$SIMILARITY" --checkpoint "$WORK/checkpoint.pt" --log "$WORK/curve.csv"
}

evaluate() {
  $RECO eval --all "$here/datasets.toml" --root "$DATA" --model "$MODEL" --memory "$WORK/memory.reco" \
    --fusion "$WORK/fusion.safetensors" --k 10 --max-similarity "$SIMILARITY" --dtype "$DTYPE" --device "$DEVICE" \
    --cache "$WORK/cache" --out "$WORK/results"
}

mkdir -p "$WORK"
[ $# -gt 0 ] || set -- embed memory train evaluate
for step in "$@"; do
  case $step in
    embed | memory | train | evaluate) "$step" ;;
    *) echo "recipe.sh: expected embed, memory, train or evaluate, got $step" >&2 && exit 2 ;;
  esac
done
