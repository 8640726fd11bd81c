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

set_up() {
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
