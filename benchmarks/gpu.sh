#!/bin/bash
# Some ten minutes on a machine with a GPU: two rounds of the quickstart, training and sampling at the shape of
# Qwen2.5-0.5B (random weights), and whether trainings on GPU and CPU agree. What `posttrain check --trains` and
# `--samples` take is the column TFLOP/s. Without a GPU: the same in small, on the CPU.
#
#   benchmarks/gpu.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/gpu}
python=${PYTHON:-.venv/bin/python}
training="--size Qwen2.5-0.5B --repeats 1" sampling="--size Qwen2.5-0.5B" rounds=2
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    training="--size 1M --length 256 --steps 6 --repeats 1" sampling="--size 1M --prompts 4 --k 4 --new 32" rounds=1
fi
rm -rf "$folder"
mkdir -p "$folder"
"$python" -m posttrain env
time "$python" -m posttrain round --n $rounds --run "$folder/quickstart"
"$python" benchmarks/mfu.py $training
"$python" benchmarks/gpu.py --folder "$folder/sampling" $sampling
