#!/bin/sh
# Makes msdv/builtin/ from nothing, stage by stage. A stage that was stopped goes on where it was; delete its output to repeat it.
# Usage: recipes/builtin/make_builtin.sh [WORK] [PROCESSES]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-builtin-work}
processes=${2:-2}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive ACCELERATE_USE_CPU=true
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}"
train() {
    torchrun --standalone --nproc-per-node "$processes" "$here/$1" --work "$work"
}
python "$here/images.py" --work "$work"
[ -e "$work/vae/config.json" ] || train autoencoder.py
[ -e "$work/latents.pt" ] || python "$here/latents.py" --work "$work"
train unet.py
[ -e "$work/vae-final/config.json" ] || train decoder.py
[ -e "$work/vae-steady/config.json" ] || train steady.py
python "$here/pack.py" --work "$work"
python "$here/preview.py" --base "$here/../../msdv/builtin" -o "$work/sheet.png"
