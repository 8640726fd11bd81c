# shellcheck shell=bash disable=SC2154 # root is that of ./deepwell
# `plot`: a Python tool. Sourced by ./deepwell.

plot() { # ARGUMENT...
    local python
    choose_python plot DEEPWELL_PLOT_PYTHON matplotlib
    PYTHONDONTWRITEBYTECODE=1 exec "$python" "$root/tools/plot/plot.py" "$@"
}
