#!/usr/bin/env bash
# All checks on one GPU in less than nine minutes; flags are those of gpu.py. Whatever happens, the JSON holds what is done.
set -eu
exec timeout --kill-after=5 530 "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" "$@"
