#!/bin/sh
# Trains temporal layers for the builtin base with msdv itself, on rendered clips: those that ship (temporal.toml, the
# default), which go into msdv/builtin/, or motion modules to compare with (motion-module.toml), which stay in the work
# folder. What is finished is not made again: a stopped training goes on from its last checkpoint.
# Usage: recipes/builtin/make_temporal.sh [WORK] [PROCESSES] [temporal|motion-module]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
name=${3:-temporal}
recipe="$here/$name.toml"
[ -e "$recipe" ] || { echo "there is no $recipe: pass temporal or motion-module" >&2; exit 2; }
work=${1:-builtin-work}/temporal
processes=${2:-2}
run=run
[ "$name" = temporal ] || run="run-$name"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
mkdir -p "$work"
cd "$work"
[ -d videos ] || python -m msdv.data.synthetic videos --count 700 --seconds 14 --fps 5 --seed 100
msdv prep videos frames --config "$recipe"
resume=""
[ ! -d "$run/checkpoints" ] || resume="--resume $run"
if [ -n "$resume" ] || [ ! -e "$run/temporal.safetensors" ]; then
    start=${resume:-"--config $recipe --data frames --out $run"}
    # shellcheck disable=SC2086
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc-per-node "$processes" \
        -m msdv train $start
fi
[ "$name" = temporal ] || exit 0
msdv export "$run" -o "$here/../../msdv/builtin/temporal.safetensors" --overwrite
rm -f "$here/../../msdv/builtin/temporal.safetensors.toml"
