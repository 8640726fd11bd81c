# shellcheck shell=bash disable=SC2154 # root is that of ./deepwell
# `data prepare` with a tokenizer: a Python tool. Sourced by ./deepwell.

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

prepare_with_tokenizer() { # ARGUMENT...
    local python
    choose_python prepare DEEPWELL_DATA_PYTHON tokenizers,pyarrow,xxhash \
        "Shards of bytes need none of this: leave --tokenizer out."
    PYTHONDONTWRITEBYTECODE=1 exec "$python" "$root/tools/prepare/prepare.py" "$@"
}
