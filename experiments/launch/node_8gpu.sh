#!/bin/bash
# A suite on the GPUs of one node, a cell on each at a time:
#
#   experiments/launch/node_8gpu.sh gpu
#   GPUS=0,1,2,3 experiments/launch/node_8gpu.sh gpu --tasks walker-run dog-run --minutes=480
#
# Arguments behind the suite go to experiments.reproduce; the same command resumes. A single run
# of many seeds needs no script: experiments.run spreads its seeds over all GPUs.
set -u
suite=${1:?a suite must be named, for example: $0 gpu}
shift
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/runs/xla}
exec python -m experiments.reproduce --suite="$suite" --gpus="${GPUS:-0,1,2,3,4,5,6,7}" "$@"
