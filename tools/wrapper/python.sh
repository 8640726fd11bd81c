# shellcheck shell=bash disable=SC2154 # root and logs are those of ./deepwell
# The Python of the tools that are written in it (tools/prepare, tools/plot): a virtual environment
# that is made on first need. Sourced by ./deepwell.

offline_advice() { # TOOL VARIABLE LOG WITHOUT
    cat >&2 <<EOF
deepwell: cannot install what tools/$1/requirements.txt lists from PyPI; pip's output: $3
  Without a network: on a machine with one,
    python3 -m pip download -r tools/$1/requirements.txt -d wheels
  copy the folder here, and run the same command with PIP_NO_INDEX=1 PIP_FIND_LINKS=/path/to/wheels before it.
  Or set $2 to a Python that has it.${4:+ $4}
EOF
    exit 2
}

# Whether there is a Python for the tool: the one that VARIABLE names, or that of .venv.
has_python() { # TOOL VARIABLE
    [[ -n ${!2:-} ]] || cmp -s "$root/tools/$1/requirements.txt" "$root/.venv/deepwell_$1"
}

# Sets `python`, one that imports MODULES: the one that VARIABLE names, or that of .venv, into which
# what tools/TOOL/requirements.txt lists was installed. WITHOUT: what is possible without it.
choose_python() { # TOOL VARIABLE MODULES [WITHOUT]
    local tool=$1 variable=$2 modules=$3
    local venv=$root/.venv requirements=$root/tools/$1/requirements.txt log=$logs/python_$1.log
    local base=${DEEPWELL_PYTHON:-python3}
    if [[ -n ${!variable:-} ]]; then
        python=${!variable}
        "$python" -c "import $modules" 2>/dev/null ||
            die 2 "$variable is $python, which cannot import $modules: install them there, or unset $variable"
        return
    fi
    python=$venv/bin/python
    if has_python "$tool" "$variable"; then return; fi
    command -v "$base" >/dev/null ||
        die 2 "this needs Python 3, found no $base: install python3 and python3-venv"
    say "installing $modules in .venv (once)..."
    mkdir -p "$logs" 2>/dev/null || die 2 "$root cannot be written: set $variable to a Python that has $modules"
    if [[ ! -x $python ]] || ! "$python" -m pip --version >/dev/null 2>&1; then
        "$base" -m venv --clear "$venv" >"$log" 2>&1 ||
            die 2 "cannot make $venv with $base (on Debian: apt-get install python3-venv); output: $log"
    fi
    "$python" -m pip install --disable-pip-version-check --retries 1 --timeout 15 -r "$requirements" \
        >"$log" 2>&1 || offline_advice "$tool" "$variable" "$log" "${4:-}"
    "$python" -c "import $modules" >>"$log" 2>&1 ||
        die 2 "what pip installed in $venv cannot be imported; output: $log"
    cp "$requirements" "$venv/deepwell_$tool"
}
