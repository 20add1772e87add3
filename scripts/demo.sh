#!/usr/bin/env bash
# Caption the bundled clips and answer questions about them with the bundled checkpoint. Nothing but Python is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
make_environment .venv requirements.txt
.venv/bin/python examples/qwen2_audio_generate.py "$@"
