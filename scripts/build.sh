#!/usr/bin/env bash
# build.sh FOLDER JOBS [CMAKE OPTION...]: configures once, then builds what changed.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 jobs=$2
shift 2
# A folder that was configured for another LibTorch is configured anew.
if [ ! -e "$folder/build.ninja" ] || [ "$#" -gt 0 ] || [ -n "${LIBTORCH:-}" ]; then
  echo "build: configuring $folder"
  cmake -G Ninja -S . -B "$folder" ${LIBTORCH:+-DLIBTORCH="$LIBTORCH"} "$@" | sed -n '/LibTorch\|CMake/p'
fi
ninja -C "$folder" -j "$jobs"
