#!/usr/bin/env bash
# run.sh BUILD: installs the library into a scratch folder, builds the project beside this script against
# it with find_package(convpass), runs it, and closes with the counts.
set -euo pipefail
build=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cmake --install "$build" --prefix "$scratch/prefix" >/dev/null
cmake -G Ninja -S "$here" -B "$scratch/build" -DCMAKE_PREFIX_PATH="$scratch/prefix" \
  -DCMAKE_BUILD_TYPE=Release >/dev/null
ninja --quiet -C "$scratch/build"
"$scratch/build/uses_convpass"
echo "package: an installed convpass is found, linked and run"
