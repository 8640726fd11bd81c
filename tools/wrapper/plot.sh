# shellcheck shell=bash disable=SC2154 # root and logs are those of ./deepwell
# `plot`: a Python tool in a virtual environment that is made on first need. Sourced by ./deepwell.

# Sets `python`, one that has what tools/plot/requirements.txt lists.
choose_plot_python() {
    local venv=$root/.venv requirements=$root/tools/plot/requirements.txt log=$logs/plot_python.log
    local base=${DEEPWELL_PYTHON:-python3}
    if [[ -n ${DEEPWELL_PLOT_PYTHON:-} ]]; then
        python=$DEEPWELL_PLOT_PYTHON
        "$python" -c 'import matplotlib' 2>/dev/null ||
            die 2 "DEEPWELL_PLOT_PYTHON is $python, which cannot import matplotlib"
        return
    fi
    python=$venv/bin/python
    if [[ -f $venv/deepwell_plot ]] && cmp -s "$requirements" "$venv/deepwell_plot"; then return; fi
    command -v "$base" >/dev/null || die 2 "plot needs Python 3: install python3 and python3-venv"
    say "installing matplotlib and tensorboardX in .venv (once)..."
    mkdir -p "$logs" 2>/dev/null || die 2 "$root cannot be written: set DEEPWELL_PLOT_PYTHON to a Python that has them"
    if [[ ! -x $python ]] || ! "$python" -m pip --version >/dev/null 2>&1; then
        "$base" -m venv --clear "$venv" >"$log" 2>&1 ||
            die 2 "cannot make $venv with $base (on Debian: apt-get install python3-venv); output: $log"
    fi
    "$python" -m pip install --disable-pip-version-check --retries 1 --timeout 15 -r "$requirements" >"$log" 2>&1 ||
        die 2 "cannot install matplotlib and tensorboardX from PyPI; output: $log. Without a network, set DEEPWELL_PLOT_PYTHON to a Python that has matplotlib"
    cp "$requirements" "$venv/deepwell_plot"
}

plot() { # ARGUMENT...
    local python
    choose_plot_python
    PYTHONDONTWRITEBYTECODE=1 exec "$python" "$root/tools/plot/plot.py" "$@"
}
