#!/usr/bin/env bash
# The peer: what the bash script of 2022 did with each video of a folder, and how it called ffmpeg.
# Usage: prep_2022.sh VIDEOS FRAMES AT_ONCE
set -euo pipefail

one() {
    local video=$1 out=$2/$(basename "$1")
    mkdir -p "$out"
    local duration
    duration=$(ffprobe -v error -show_entries format=duration -of csv=p=0 "$video")
    ffmpeg -v error -nostdin -i "$video" -ss 2 -t "$(awk "BEGIN { print $duration - 4 }")" -r 5 -an -q 0 \
        -vf "scale='if(gt(iw,ih),-1,512):if(gt(iw,ih),512,-1)',crop=512:512:exact=1" "$out/%06d.jpg"
    rm "$out/000001.jpg"
}
export -f one

find "$1" -type f -print0 | xargs -0 -P "$3" -I {} bash -c 'one "$1" "$2"' _ {} "$2"
