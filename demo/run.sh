#!/usr/bin/env bash
# The main job on a real model: extract once, fit twice. Run again, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
show() { printf '\n$ %s\n' "$*"; "$@"; }

# Batches of 16 rather than the default 4: on a CPU a step of 16 rows costs hardly more than one of 4.
show lenscache extract demo/store.zarr --pack data/packs/starter.json --model smollm2-135m --batch-size 16
show lenscache info demo/store.zarr
for f1 in 0.95 0.85; do
  if [ ! -e "demo/lenses-$f1" ]; then
    show lenstrain fit demo/store.zarr --f1 "$f1" --out "demo/lenses-$f1"
  fi
done
show lenstrain show demo/lenses-0.85
show lenstrain show demo/lenses-0.95
show lenstrain impact demo/lenses-0.85
show lenstrain report demo/lenses-0.95 --store demo/store.zarr --beside demo/lenses-0.85 --out demo/report.html
