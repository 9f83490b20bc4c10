#!/usr/bin/env bash
# Makes an environment for each peer of round_time.py: bash scripts/benchmarks/peers/make_venvs.sh FOLDER
# then: python scripts/benchmarks/round_time.py --peers FOLDER
# A peer that cannot be installed is left out; the benchmark names it.
set -u
folder=${1:?usage: make_venvs.sh FOLDER}
make() {
    local name=$1
    shift
    python3 -m venv "$folder/$name" && "$folder/$name/bin/pip" install --quiet "$@" || echo "$name could not be installed" >&2
}
make pfl "pfl==0.6.0" torch
make flower "flwr[simulation]==1.41.0" torch
make fedjax "fedjax==0.0.17" jax
