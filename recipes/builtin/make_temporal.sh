#!/bin/sh
# Trains the temporal layers of the builtin base with msdv itself, on rendered clips, and puts them into msdv/builtin/.
# What is finished is not made again: a stopped training goes on from its last checkpoint.
# Usage: recipes/builtin/make_temporal.sh [WORK] [PROCESSES]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
recipe="$here/temporal.toml"
work=${1:-builtin-work}/temporal
processes=${2:-2}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
mkdir -p "$work"
cd "$work"
[ -d videos ] || python -m msdv.data.synthetic videos --count 1100 --seconds 9 --fps 5 --seed 100
msdv prep videos frames --config "$recipe"
resume=""
[ ! -d run/checkpoints ] || resume="--resume run"
if [ -n "$resume" ] || [ ! -e run/temporal.safetensors ]; then
    start=${resume:-"--config $recipe --data frames --out run"}
    # shellcheck disable=SC2086
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc-per-node "$processes" \
        -m msdv train $start
fi
msdv export run -o "$here/../../msdv/builtin/temporal.safetensors" --overwrite
rm -f "$here/../../msdv/builtin/temporal.safetensors.toml"
