#!/usr/bin/env bash
# build.sh FOLDER JOBS [CMAKE OPTION...]: configures once, then builds what changed.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 jobs=$2
shift 2
# The LibTorch folder that is wanted now; a build folder that was configured for another is configured anew.
wanted=${LIBTORCH:-$(ls -d "$PWD"/.venv/lib/python3*/site-packages/torch 2>/dev/null | head -n 1 || true)}
[ -n "$wanted" ] || { echo "build: no LibTorch: run scripts/setup.sh or set LIBTORCH" >&2; exit 2; }
configured=$(sed -n 's/^LIBTORCH:PATH=//p' "$folder/CMakeCache.txt" 2>/dev/null || true)
if [ ! -e "$folder/build.ninja" ] || [ "$#" -gt 0 ] || [ "$wanted" != "$configured" ]; then
  echo "build: configuring $folder for LibTorch in $wanted"
  cmake -G Ninja -S . -B "$folder" -DLIBTORCH="$wanted" -ULibTorch_CPU_LIBRARY "$@" >/dev/null
fi
ninja -C "$folder" -j "$jobs"
