# Sourced by demo.sh and test.sh: `make_environment DIR FILE...` makes a virtual environment that holds what the
# requirements files name, and packages given as NAME==VERSION. It installs nothing where that was done before and the
# files have not changed.

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.10 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.10, 3.11 or 3.12 is needed and none is on PATH; set PYTHON to one" >&2
    return 1
}

make_environment() {
    local folder=$1 stamp=$1/installed-requirements.txt python wanted argument arguments=()
    shift
    for argument in "$@"; do
        case $argument in *==*) arguments+=("$argument") ;; *) arguments+=("--requirement=$argument") ;; esac
    done
    wanted=$(for argument in "$@"; do if [ -f "$argument" ]; then cat "$argument"; else echo "$argument"; fi; done)
    if [ -x "$folder/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    python=$(find_python) || return 1
    echo "Making $folder with $("$python" --version); this downloads about a gigabyte once ..." >&2
    rm -rf "$folder"
    "$python" -m venv "$folder" || { echo "'$python -m venv' failed: on Debian, apt install python3-venv" >&2; return 1; }
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "${arguments[@]}" || return 1
    printf '%s\n' "$wanted" > "$stamp"
}
