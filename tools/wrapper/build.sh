# shellcheck shell=bash disable=SC2154 # root, logs and binary are those of ./deepwell
# Bazel behind the wrapper: its output goes to built/logs/, people see progress and errors. Sourced by
# ./deepwell.

# Sets `startup`, Bazel's startup options. Bazel keeps its output below ~/.cache; where that cannot
# be, a folder of the user's own in /tmp serves.
choose_build_folder() {
    local folder=${DEEPWELL_BUILD_FOLDER:-} cache=${HOME:-}/.cache/bazel
    startup=()
    export USER=${USER:-$(id -un 2>/dev/null || echo $EUID)} # Bazel refuses to run as nobody
    if [[ -z $folder ]]; then
        if [[ -n ${HOME:-} ]] && mkdir -p "$cache" 2>/dev/null && [[ -w $cache ]]; then return; fi
        folder=/tmp/deepwell-$EUID
        say "HOME (${HOME:-not set}) cannot be written: building in $folder (or set DEEPWELL_BUILD_FOLDER)"
    fi
    mkdir -p "$folder" 2>/dev/null || true
    [[ -O $folder && -w $folder ]] ||
        die 2 "$folder must be a folder that you own and can write: set DEEPWELL_BUILD_FOLDER to one"
    startup=("--output_user_root=$(readlink -f "$folder")")
}

# Copies Bazel's output; shows the actions in it as one changing line, or one word where that is no
# terminal. Says nothing when nothing is built.
show_progress() {
    local line shown='' action='^\[[0-9,]+ / [0-9,]+\].* (Compiling|Linking|Testing) '
    while IFS= read -r line; do
        printf '%s\n' "$line"
        [[ $line =~ $action ]] || continue
        if [[ -t 2 ]]; then
            printf '\r\033[K%.78s' "building $line" >&2
        elif [[ -z $shown ]]; then
            say "building..."
        fi
        shown=1
    done
    if [[ -n $shown && -t 2 ]]; then printf '\r\033[K' >&2; fi
}

# Bazel's exit code; its output goes to the log.
run_bazel() { # LOG COMMAND ARGUMENT...
    local log=$1 command=$2 startup code=0
    shift 2
    choose_build_folder
    mkdir -p "$logs" 2>/dev/null || die 2 "$root cannot be written: clone deepwell to where you can write"
    (cd "$root" && bazel "${startup[@]}" "$command" --color=no --curses=no \
        --show_progress_rate_limit=0.5 "$@" 2>&1) | show_progress >"$log" || code=$?
    ((code != 8 && code != 130)) || die 130 "interrupted" # 8: Bazel's word for it
    return $code
}

# What people want of Bazel's output: errors, compiler messages, the output of failed tests.
show_errors() { # LOG
    local noise='^(INFO|DEBUG|Loading|Analyzing|Starting local|Target //|  built/|\[[0-9,]+ /|$)'
    grep -vE "$noise" "$1" | tail -n 100 >&2 || true
}

# What, beside the sources, decides which binary a build gives; and which one it gave.
build_state() {
    local variable
    for variable in CC CUDA_HOME CUDA_PATH CUDNN_FRONTEND_PATH CUDNN_HOME DEEPWELL_BUILD_FOLDER \
        DEEPWELL_CUDA DEEPWELL_CUDA_ARCHS DEEPWELL_OPENBLAS_HOME DEEPWELL_PYTHON HOME MPI_HOME \
        NCCL_HOME PATH; do
        printf '%s=%s\n' "$variable" "${!variable:-}"
    done
    readlink -f "$binary" && stat -L -c '%i %Y' "$binary"
}

# What the build reads, with the times of change, which no tool sets back. Sources are found by their
# names: whatever else lies in these folders, a text or a run, is no part of the build.
source_state() {
    local name names=()
    for name in '*.c' '*.h' '*.cpp' '*.cu' '*.cuh' '*.bzl' BUILD packages.txt MODULE.bazel 'WORKSPACE*' \
        '.bazel*'; do
        names+=(-o -name "$name")
    done
    {
        cd "$root" && find BUILD MODULE.bazel WORKSPACE WORKSPACE.bzlmod .bazelrc .bazelignore base \
            checkpoints data kernels layers tools train \( "${names[@]:1}" \) -printf '%p %C@\n'
    } 2>/dev/null | sort || true # a name that has gone is a difference, no failure
}

# Whether nothing changed since Bazel last said so: asking it takes seconds when its server has gone.
build_is_current() {
    local stamp=$logs/build.stamp
    [[ -x $binary && -f $stamp && $(<"$stamp") == "$(source_state && build_state)" ]]
}

build_if_changed() {
    if build_is_current; then return; fi
    if [[ -x $binary && -w $root ]]; then say "checking the build..."; fi
    build
}

build() {
    local code=0 log=$logs/build.log stamp=$logs/build.stamp sources
    if [[ -x $binary && ! -w $root ]]; then return; fi # somebody else's: run it as it was built
    require_set_up
    sources=$(source_state) # before any change while Bazel works
    run_bazel "$log" build //train:deepwell || code=$?
    if ((code == 0)); then
        { printf '%s\n' "$sources" && build_state; } >"$stamp.$$" # others may build too
        mv "$stamp.$$" "$stamp"
        return 0
    fi
    rm -f "$stamp"
    show_errors "$log"
    die 1 "the build failed; all of Bazel's output: $log"
}

clean() {
    require_set_up
    run_bazel "$logs/clean.log" clean --expunge || die 1 "bazel clean failed: $logs/clean.log"
    rm -rf "$root/built" "$root/bazel-out"
}
