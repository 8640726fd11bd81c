# shellcheck shell=bash disable=SC2154 # root, logs and binary are those of ./deepwell
# From a bare machine to a trained model and text sampled from it, in runs/quickstart. Sourced by
# ./deepwell.

# The text to learn from, relative to the repository: its sources and documents.
sources=(base checkpoints configs data docs kernels layers tests tools train README.md CONTRIBUTING.md)
run=runs/quickstart # as configs/quickstart.conf has it

prepare_text() {
    if [[ -f $run/data/dataset.json ]]; then
        # A run that has begun keeps its text: the order of the data is part of what it continues.
        if compgen -G "$run/step_*" >/dev/null; then return; fi
        [[ -n $(find "${sources[@]}" -newer $run/data/dataset.json -print -quit) ]] || return 0
    fi
    mkdir -p $run
    "$binary" data prepare "${sources[@]}" --out $run/data --overwrite
}

quickstart() { # [--again]
    if (($# > 1)) || [[ ${1:---again} != --again ]]; then
        die 2 "quickstart takes --again or nothing, found: $*"
    fi
    set_up
    build
    cd "$root" || exit
    if (($# == 1)); then rm -rf $run; fi
    prepare_text
    "$binary" train configs/quickstart.conf
    say ""
    "$binary" sample $run --prompt "/* "
    cat <<EOF

The run, with its checkpoints and metrics.jsonl, lies in $root/$run. Next:
  ./deepwell sample $run --prompt "static int "   more text
  ./deepwell quickstart --again                              the same from the start
  ./deepwell train --help                                    what else a run can be told
EOF
}
