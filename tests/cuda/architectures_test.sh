#!/usr/bin/env bash
# That the build holds code for every architecture it was asked for. Oracle: cuobjdump, which lists
# what lies in the objects that nvcc wrote; where the toolkit came without it, the names that ptxas
# leaves in them (none are readable if it compressed them). Without CUDA there is nothing to look at.
# usage: architectures_test.sh NVCC ARCHS OBJECT...
set -euo pipefail

nvcc=$1 archs=$2
shift 2
if [[ -z $nvcc ]]; then
    echo "skipped: built without CUDA"
    exit
fi
(($# > 0)) || { echo "expected objects to look at, found none"; exit 1; }

cuobjdump=$(dirname "$nvcc")/cuobjdump
for object in "$@"; do
    if [[ -x $cuobjdump ]]; then
        found=$("$cuobjdump" --list-elf "$object" | grep -oE 'sm_[0-9]+[a-z]?' || true)
    else
        found=$(grep -aoE '\bsm_[0-9]{2,3}[a-z]?\b' "$object" || true)
        [[ -n $found ]] || { echo "skipped: no $cuobjdump, and nothing readable in $object"; exit; }
    fi
    for arch in ${archs//,/ }; do
        grep -qx "sm_$arch" <<<"$found" || {
            echo "$object: expected code for sm_$arch, found:" $(sort -u <<<"$found")
            exit 1
        }
    done
done
echo "$# objects hold code for $archs"
