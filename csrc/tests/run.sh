#!/usr/bin/env bash
# The C++ tests under AddressSanitizer with UndefinedBehaviorSanitizer, then under ThreadSanitizer,
# which must also find a sync that is left out on purpose.
#   csrc/tests/run.sh [build folder]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=${1:-$(mktemp -d)}
mkdir -p "$build"

for sanitizer in address,undefined thread; do
    echo "== $sanitizer"
    cmake -S "$here" -B "$build/$sanitizer" -G Ninja -DDSMOOTH_SANITIZE="$sanitizer" >"$build/cmake.txt" ||
        { cat "$build/cmake.txt"; exit 1; }
    cmake --build "$build/$sanitizer"
    "$build/$sanitizer/sampler_test"
    "$build/$sanitizer/logistic_mixture_test"
done

echo "== a missing sync"
for plant in "plant 2" "plant 40" "plant 150" "plant_cuda 1" "plant_cuda 40" "plant_cuda 100"; do
    if "$build/thread/sampler_test" $plant >"$build/plant.txt" 2>&1; then
        echo "ThreadSanitizer missed that a sync is missing: $plant"
        exit 1
    fi
    grep -q "data race" "$build/plant.txt"
done
echo "found"
