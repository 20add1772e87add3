#!/usr/bin/env bash
# Run the whole test suite in an environment of its own, which has PyTorch to compare with. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
make_environment .venv-test requirements.txt tests/requirements.txt
.venv-test/bin/python -m pytest "$@"
