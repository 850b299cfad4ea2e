#!/usr/bin/env bash
# The whole way once, with the built-in image model and made-up sky videos: no GPU, no downloads. `make demo` runs it.
# Works in demo/, where it first removes what an earlier demo made.
set -euo pipefail

cd "$(dirname "$0")/../.."
mkdir -p demo
cd demo
rm -rf videos frames runs out.gif motion.safetensors

run() {
    printf '\n$ %s\n' "$(printf '%q ' "$@")"
    "$@"
}

run python -m msdv.data.synthetic videos/ --count 24 --seconds 10
run msdv prep videos/ frames/ --size 128
run msdv train --base builtin --frames 25 --fp16 --offload-optim --steps "${DEMO_STEPS:-300}"
trained=(runs/*)
run msdv sample "clouds timelapse" --frames 120 -o out.gif
run msdv export "${trained[0]}" -o motion.safetensors

cat <<END

Done. Look at
  demo/out.gif                     the sample
  demo/${trained[0]}/report.html   how the training went
  demo/frames/contact_sheet.jpg    what it was trained on
END
