#!/usr/bin/env bash
# That the build holds code for every architecture it was asked for. Oracle: cuobjdump, which lists
# what lies in the objects that nvcc wrote. Without CUDA there is nothing to look at.
# usage: architectures_test.sh NVCC ARCHS OBJECT...
set -euo pipefail

nvcc=$1 archs=$2
shift 2
if [[ -z $nvcc ]]; then
    echo "skipped: built without CUDA"
    exit
fi
cuobjdump=$(dirname "$nvcc")/cuobjdump
if [[ ! -x $cuobjdump ]]; then
    echo "skipped: no $cuobjdump"
    exit
fi
(($# > 0)) || { echo "expected objects to look at, found none"; exit 1; }
for object in "$@"; do
    found=$("$cuobjdump" --list-elf "$object")
    for arch in ${archs//,/ }; do
        [[ $found == *".sm_$arch."* ]] || {
            echo "$object: expected code for sm_$arch, found: $found"
            exit 1
        }
    done
done
echo "$# objects hold code for $archs"
