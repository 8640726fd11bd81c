# shellcheck shell=bash disable=SC2154 # root, logs and binary are those of ./deepwell
# Runs the tests in each configuration and counts their cases. Sourced by ./deepwell.

# Adds the cases of one target to `passed`, `failed` and `skipped`. cmocka prints a line for each case
# that passes and sums of the others. A target that prints none of these counts as one case; so does
# what a target died of before cmocka could count it (a sanitizer's report, a time limit).
count_cases() { # BAZEL-STATUS TEST-LOG
    local good=0 bad=0 left_out=0
    if [[ -f $2 ]]; then
        good=$(grep -cE '^\[ +OK \]' "$2" || true)
        bad=$(awk '/^\[  FAILED  \] [0-9]+ test/ { n += $4 } END { print n + 0 }' "$2")
        left_out=$(awk '/^\[  SKIPPED \] [0-9]+ test/ { n += $4 } END { print n + 0 }' "$2")
    fi
    if [[ $1 != PASSED ]]; then
        ((bad > 0)) || bad=1
    elif ((good + left_out == 0)); then
        good=1
    fi
    passed=$((passed + good))
    failed=$((failed + bad))
    skipped=$((skipped + left_out))
}

# Adds what Bazel's summary in the log reports. Logs of tests that did not run are old: not read.
count_targets() { # LOG TEST-LOG-FOLDER
    local line test_log summary='^//([^ ]+):([^ ]+) +(\(cached\) )?([A-Z][A-Z ]*[A-Z])'
    while IFS= read -r line; do
        [[ $line =~ $summary ]] || continue
        test_log=$2/${BASH_REMATCH[1]}/${BASH_REMATCH[2]}/test.log
        case ${BASH_REMATCH[4]} in
            PASSED) count_cases PASSED "$test_log" ;;
            FAILED | TIMEOUT) count_cases FAILED "$test_log" ;;
            *) failed=$((failed + 1)) ;; # FAILED TO BUILD, NO STATUS
        esac
    done <"$1"
}

test_configuration() { # NAME LINKS BAZEL-ARGUMENT...
    local name=$1 links=$2 log=$logs/test_$1.log code=0 began_s=$SECONDS
    local passed_before=$passed failed_before=$failed
    shift 2
    run_bazel "$log" test --keep_going "$@" || code=$?
    count_targets "$log" "$root/built/${links}testlogs"
    if ((code != 0)); then
        # Bazel can fail without a failed test: a BUILD file that does not load, an interrupt.
        ((failed > failed_before)) || failed=$((failed + 1))
        show_errors "$log"
        say "$name: failed; all of Bazel's output: $log"
    fi
    say "$name: $((passed - passed_before)) passed, $((failed - failed_before)) failed in $((SECONDS - began_s)) s"
}

# Ends with "N passed, N failed": test cases, each counted once a configuration.
run_tests() { # [--quick] TARGET... BAZEL-OPTION...
    local argument quick='' targets=() options=() passed=0 failed=0 skipped=0
    for argument; do
        case $argument in
            --quick) quick=1 ;;
            -*) options+=("$argument") ;;
            *) targets+=("$argument") ;;
        esac
    done
    ((${#targets[@]} > 0)) || targets=(//...)
    if [[ -z ${DEEPWELL_DATA_PYTHON:-} && -f $root/.venv/deepwell_prepare ]]; then
        export DEEPWELL_DATA_PYTHON=$root/.venv/bin/python # otherwise its test is skipped
    fi
    if [[ -z ${DEEPWELL_PLOT_PYTHON:-} && -f $root/.venv/deepwell_plot ]]; then
        export DEEPWELL_PLOT_PYTHON=$root/.venv/bin/python # likewise
    fi
    test_configuration optimized "" "${options[@]}" -- "${targets[@]}"
    if [[ -z $quick ]]; then
        test_configuration sanitized asan- --config=asan "${options[@]}" -- "${targets[@]}"
    fi
    ((skipped == 0)) || say "$skipped skipped: the machine or the configuration lacks what they need (a GPU, for one)"
    echo "$passed passed, $failed failed"
    ((failed == 0 && passed > 0))
}
