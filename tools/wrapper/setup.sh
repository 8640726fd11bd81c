# shellcheck shell=bash disable=SC2154 # root, logs and binary are those of ./deepwell
# What the machine lacks for a build, and installing it. Sourced by ./deepwell.

has_header() { # NAME|NAME...
    local names name folder
    IFS='|' read -ra names <<<"$1"
    for name in "${names[@]}"; do
        for folder in /usr/include "/usr/include/$(uname -m)-linux-gnu" /usr/local/include; do
            [[ -e $folder/$name ]] && return 0
        done
    done
    return 1
}

# The Debian packages of what packages.txt lists and is not here, one a line.
missing_packages() {
    local kind name package
    while read -r kind name package; do
        case $kind in
            tool) command -v "$name" >/dev/null || echo "$package" ;;
            header) has_header "$name" || echo "$package" ;;
            openblas) [[ -n ${DEEPWELL_OPENBLAS_HOME:-} ]] || has_header "$name" || echo "$package" ;;
        esac
    done <"$root/tools/system/packages.txt"
}

# Of Open MPI, whose headers lie in a folder of their own.
missing_mpi() {
    local kind name package
    while read -r kind name package; do
        [[ $kind == mpi ]] || continue
        command -v "$name" >/dev/null || has_header "$name" ||
            [[ -e /usr/lib/$(uname -m)-linux-gnu/openmpi/include/$name ]] || echo "$package"
    done <"$root/tools/system/packages.txt"
}

require_set_up() {
    local missing
    missing=$(missing_packages | paste -sd ' ')
    [[ -z $missing ]] ||
        die 2 "missing: $missing (Debian's names). Run ./deepwell setup, or see docs/build.md."
}

install_packages() { # LOG PACKAGE...
    local log=$1 as_root=()
    shift
    ((EUID == 0)) || as_root=(sudo -n)
    # Without a network the update fails, and what the machine has cached may still do.
    "${as_root[@]}" apt-get update >"$log" 2>&1 || true
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "$@" >>"$log" 2>&1
}

# cuDNN's frontend: headers that come as a Python wheel, kept apart from any Python environment.
frontend=$root/.cudnn_frontend
if [[ -z ${CUDNN_FRONTEND_PATH:-} && -f $frontend/include/cudnn_frontend.h ]]; then
    export CUDNN_FRONTEND_PATH=$frontend/include
fi

has_nvcc() {
    [[ ${DEEPWELL_CUDA:-} != 0 ]] || return 1
    local home=${CUDA_HOME:-${CUDA_PATH:-/usr/local/cuda}}
    command -v nvcc >/dev/null || [[ -x $home/bin/nvcc ]]
}

# Where there is a CUDA toolkit. Without the frontend all builds and runs but BF16 and FP16 on a GPU.
set_up_frontend() {
    local python=${DEEPWELL_PYTHON:-python3} log=$logs/frontend.log
    if ! has_nvcc || [[ -n ${CUDNN_FRONTEND_PATH:-} ]]; then return 0; fi
    if has_header cudnn_frontend.h; then return 0; fi
    if "$python" -m pip show -q nvidia-cudnn-frontend >/dev/null 2>&1; then return 0; fi
    say "installing the headers of cuDNN's frontend..."
    mkdir -p "$logs"
    if "$python" -m pip install --no-deps --upgrade --target "$frontend" \
        -r "$root/tools/cuda/requirements.txt" >"$log" 2>&1; then
        export CUDNN_FRONTEND_PATH=$frontend/include
    else
        say "no cuDNN frontend: BF16 and FP16 will not train on a GPU. Its headers are in the Python"
        say "wheel nvidia-cudnn-frontend (docs/build.md); the output of pip: $log"
    fi
}

# What only tests use. Where it cannot be installed they skip, and say so.
set_up_for_tests() {
    local missing log=$logs/setup_mpi.log
    missing=$(missing_mpi | paste -sd ' ')
    [[ -n $missing ]] || return 0
    if command -v apt-get >/dev/null && { ((EUID == 0)) || sudo -n true 2>/dev/null; }; then
        say "installing $missing for the tests of many ranks..."
        mkdir -p "$logs"
        # shellcheck disable=SC2086 # package names, to be split
        if install_packages "$log" $missing; then
            run_bazel "$log" shutdown # a server that runs would not look for libraries again
            return 0
        fi
    fi
    say "no Open MPI ($missing): the tests of many ranks are skipped"
}

set_up() {
    set_up_packages
    set_up_frontend
}

set_up_packages() {
    local missing log=$logs/setup.log
    missing=$(missing_packages | paste -sd ' ')
    [[ -n $missing ]] || return 0
    command -v apt-get >/dev/null ||
        die 2 "missing: $missing (Debian's names). docs/build.md says what to install elsewhere."
    if ((EUID != 0)) && ! sudo -n true 2>/dev/null; then
        say "Missing: $missing. This installs it:"
        say "  sudo apt-get update && sudo apt-get install -y --no-install-recommends $missing"
        exit 2
    fi
    say "installing $missing (a few minutes)..."
    mkdir -p "$logs"
    # shellcheck disable=SC2086 # package names, to be split
    if ! install_packages "$log" $missing; then
        grep -E '^(E|W|Err):' "$log" | tail -n 5 >&2 || true
        die 2 "apt-get could not install $missing; its output: $log. docs/build.md names other ways."
    fi
    require_set_up
}
