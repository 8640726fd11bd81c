# shellcheck shell=bash disable=SC2154 # root, logs and binary are those of ./deepwell
# `data prepare` with a tokenizer: a Python tool in a virtual environment that is made on first need.
# Sourced by ./deepwell.

# Whether the arguments of `data prepare` ask for more than bytes, which the binary does itself.
needs_python() { # ARGUMENT...
    local argument
    for argument; do
        case $argument in
            --) return 1 ;;
            --tokenizer | --tokenizer=* | --new-vocabulary | --new-vocabulary=*) return 0 ;;
        esac
    done
    return 1
}

offline_advice() {
    cat >&2 <<EOF
deepwell: cannot install tokenizers, pyarrow and xxhash from PyPI; pip's output: $1
  Without a network: on a machine with one,
    python3 -m pip download -r tools/prepare/requirements.txt -d wheels
  copy the folder here, and run the same command with PIP_NO_INDEX=1 PIP_FIND_LINKS=/path/to/wheels before it.
  Or set DEEPWELL_DATA_PYTHON to a Python that has the three. Shards of bytes need none of this: leave
  --tokenizer out.
EOF
    exit 2
}

# Sets `python`, one that has what tools/prepare/requirements.txt lists.
choose_data_python() {
    local venv=$root/.venv requirements=$root/tools/prepare/requirements.txt log=$logs/python.log
    local base=${DEEPWELL_PYTHON:-python3}
    if [[ -n ${DEEPWELL_DATA_PYTHON:-} ]]; then
        python=$DEEPWELL_DATA_PYTHON
        "$python" -c 'import tokenizers, pyarrow, xxhash' 2>/dev/null ||
            die 2 "DEEPWELL_DATA_PYTHON is $python, which cannot import tokenizers, pyarrow and xxhash"
        return
    fi
    python=$venv/bin/python
    if [[ -f $venv/deepwell_prepare ]] && cmp -s "$requirements" "$venv/deepwell_prepare"; then return; fi
    command -v "$base" >/dev/null ||
        die 2 "data prepare with a tokenizer needs Python 3: install python3 and python3-venv"
    say "installing tokenizers, pyarrow and xxhash in .venv (once)..."
    mkdir -p "$logs" 2>/dev/null || die 2 "$root cannot be written: set DEEPWELL_DATA_PYTHON to a Python that has them"
    if [[ ! -x $python ]] || ! "$python" -m pip --version >/dev/null 2>&1; then
        "$base" -m venv --clear "$venv" >"$log" 2>&1 ||
            die 2 "cannot make $venv with $base (on Debian: apt-get install python3-venv); output: $log"
    fi
    "$python" -m pip install --disable-pip-version-check --retries 1 --timeout 15 -r "$requirements" \
        >"$log" 2>&1 || offline_advice "$log"
    "$python" -c 'import tokenizers, pyarrow, xxhash' >>"$log" 2>&1 ||
        die 2 "what pip installed in $venv cannot be imported; output: $log"
    cp "$requirements" "$venv/deepwell_prepare"
}

prepare_with_tokenizer() { # ARGUMENT...
    local python
    choose_data_python
    PYTHONDONTWRITEBYTECODE=1 exec "$python" "$root/tools/prepare/prepare.py" "$@"
}
