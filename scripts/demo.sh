#!/usr/bin/env bash
# From a trained diffusion model to a 4-bit one that runs on integer kernels, and a page that shows what it cost.
# Everything lands in demo/, which is made anew. At most ten minutes on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -x .venv/bin/halftone ]; then PATH="$PWD/.venv/bin:$PATH"; fi
command -v halftone >/dev/null || { echo "halftone is not installed here; run: make demo" >&2; exit 1; }

model=zoo:fashion-unet
limit=600 # seconds
began=$SECONDS
step() { printf '\n[%d:%02d] %s\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$*" >&2; }

rm -rf demo
mkdir -p demo

step "Quantize to 4-bit weights and 8-bit activations"
halftone quantize "$model" --recipe q-diffusion-w4a8 --budget demo --steps 20 --seed 0 -o demo/model

step "Pictures of both models from the same noise"
halftone generate "$model" -n 16 --steps 20 --seed 7 -o demo/float.png
halftone generate demo/model -n 16 --steps 20 --seed 7 --engine torch -o demo/quantized.png

step "What it cost: distances to real images and to the float model"
halftone evaluate demo/model --against "$model" --samples 256 --steps 20 > demo/evaluation.txt

step "What it gained: time, memory, bytes"
halftone bench demo/model --against "$model" --engine torch > demo/bench.txt

step "What each layer became"
halftone inspect demo/model > demo/layers.txt

step "The page"
halftone report demo/model -o demo/report.html > /dev/null

step "Done"
cat demo/evaluation.txt
echo
cat demo/bench.txt
echo
tail -n 3 demo/layers.txt
echo
echo "Pictures: demo/float.png and demo/quantized.png"
echo "Report:   $PWD/demo/report.html"
took=$((SECONDS - began))
printf 'Took:     %d:%02d on %d processors\n' $((took / 60)) $((took % 60)) "$(getconf _NPROCESSORS_ONLN)"
if [ "$took" -gt "$limit" ]; then
    echo "That is more than the $((limit / 60)) minutes promised for two cores: is the machine busy, or slower than most?"
fi
