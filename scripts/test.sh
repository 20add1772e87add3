#!/usr/bin/env bash
# Run the test suite in an environment of its own, which has PyTorch to compare with. `--mindspore VERSION` as the first
# arguments runs it with that version, in another environment. The other arguments go to pytest: `-m slow` runs
# the slow tests, which start many processes. Two processes share the files of tests; -n 0 runs all in one.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
environment=.venv-test
pins=()
if [ "${1:-}" = --mindspore ]; then
    environment=.venv-test-mindspore-${2:?--mindspore needs a version, such as 2.7.2}
    pins=("mindspore==$2")
    shift 2
fi
make_environment "$environment" requirements.txt tests/requirements.txt mindone_audio/server/requirements.txt ${pins[@]+"${pins[@]}"}
"$environment/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
