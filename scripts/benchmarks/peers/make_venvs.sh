#!/usr/bin/env bash
# Makes an environment for each peer of round_time.py:
#   bash scripts/benchmarks/peers/make_venvs.sh FOLDER [pfl|flower|fedjax|flgo …]
#   python scripts/benchmarks/round_time.py --peers FOLDER
# $TORCH says which torch, by default the newest: TORCH="torch==2.13.0" bash …
# A peer that cannot be installed is left out; the benchmark names it.
set -u
folder=${1:?usage: make_venvs.sh FOLDER [PEER …]}
shift
peers=${*:-pfl flower fedjax flgo}
torch=${TORCH:-torch}

wants() { [[ " $peers " == *" $1 "* ]]; }

make() { # NAME PACKAGE …
    local name=$1
    shift
    wants "$name" || return 0
    python3 -m venv "$folder/$name" && "$folder/$name/bin/pip" install --quiet "$@" ||
        { echo "$name could not be installed" >&2; return 1; }
}

# Torch is installed first and kept: a package that brings torchvision would exchange it for the newest, with CUDA.
make_with_torch() { # NAME PACKAGE …
    local name=$1
    shift
    wants "$name" || return 0
    make "$name" "$torch" || return 1
    "$folder/$name/bin/pip" freeze | grep '^torch==' >"$folder/$name/torch.txt"
    make "$name" -c "$folder/$name/torch.txt" "$@"
}

make_with_torch pfl "pfl==0.6.0"
make_with_torch flower "flwr[simulation]==1.41.0"
make fedjax "fedjax==0.0.17" jax
# FLGo requires torchvision, and imports it for its own data sets only: it need not fit a CPU build of torch here.
make_with_torch flgo "flgo==0.4.4" mlxtend scikit-learn
