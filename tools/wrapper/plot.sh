# shellcheck shell=bash disable=SC2154 # root is that of ./deepwell
# `plot`: a Python tool. Sourced by ./deepwell.

plot() { # ARGUMENT...
    local python base=${DEEPWELL_PYTHON:-python3} check=--check argument
    export PYTHONDONTWRITEBYTECODE=1
    for argument; do
        if [[ $argument == --help || $argument == -h ]]; then check=--help; fi
    done
    # Any Python can look at the runs; only drawing needs more.
    if command -v "$base" >/dev/null && ! has_python plot DEEPWELL_PLOT_PYTHON; then
        "$base" "$root/tools/plot/plot.py" "$check" "$@" || exit
        if [[ $check == --help ]]; then exit; fi
    fi
    choose_python plot DEEPWELL_PLOT_PYTHON matplotlib
    exec "$python" "$root/tools/plot/plot.py" "$@"
}
