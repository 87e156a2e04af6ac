#!/usr/bin/env bash
# The C++ tests under AddressSanitizer with UndefinedBehaviorSanitizer, then under ThreadSanitizer,
# which must also find a deliberately omitted sync. If pybind11 is installed, also builds the Python
# module _C under AddressSanitizer in BUILD/extension, for tests/faults.
#   csrc/tests/run.sh [build folder]
#   csrc/tests/run.sh BUILD short     only those of the sampler, under AddressSanitizer
#   csrc/tests/run.sh BUILD python [ARGUMENTS OF PYTEST]
#                                     Python tests on that module; by default those of the gated
#                                     resnet and the logistic mixture
#   csrc/tests/run.sh BUILD arm64     the tests as a cross compiler builds them for 64-bit Arm, under
#                                     QEMU; with AVX2 here, the images must be the same bits there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=${1:-$(mktemp -d)}
part=${2:-all}
mkdir -p "$build"

configure() {  # folder, options
    local folder=$build/$1
    cmake -S "$here" -B "$folder" -G Ninja "${@:2}" >"$build/cmake.txt" ||
        { cat "$build/cmake.txt"; exit 1; }
}

run_tests() {  # sanitizers
    echo "== $1"
    configure "$1" -DDSMOOTH_SANITIZE="$1"
    check "$build/$1"
}

check() {  # folder, emulator
    cmake --build "$1" --target "${tests[@]}"
    for test in "${tests[@]}"; do "${@:2}" "$1/$test"; done
}

tests=(sampler_test)

if [ "$part" = short ]; then
    run_tests address,undefined
    exit
fi

tests+=(ops_test)  # it takes long to compile

if [ "$part" = arm64 ]; then
    emulator=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
    configure arm64 -DDSMOOTH_OPTIMIZE=-O3 -DCMAKE_SYSTEM_NAME=Linux \
        -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
    check "$build/arm64" "${emulator[@]}"
    if grep -q avx2 /proc/cpuinfo; then
        configure images -DDSMOOTH_INSTRUCTION_SETS='generic;avx2'
        cmake --build "$build/images" --target sampler_test
        "$build/images/sampler_test" images >"$build/images.here"
        "${emulator[@]}" "$build/arm64/sampler_test" images >"$build/images.arm64"
        cmp "$build/images.here" "$build/images.arm64"
        echo "the images are the same bits"
    fi
    exit
fi

python=$(command -v python || command -v python3)
if pybind11=$("$python" -m pybind11 --cmakedir 2>/dev/null); then
    echo "== the module"
    configure extension -DDSMOOTH_SANITIZE=address,undefined -DDSMOOTH_EXTENSION=ON \
        -DPython_EXECUTABLE="$python" -Dpybind11_DIR="$pybind11" \
        -DDSMOOTH_INSTRUCTION_SETS=generic
    cmake --build "$build/extension" --target _C
fi

if [ "$part" = python ]; then
    arguments=("${@:3}")
    root=$here/../..
    if [ ${#arguments[@]} = 0 ]; then
        arguments=("$root"/tests/functional/test_{gated_resnet,logistic_mixture}*.py)
    fi
    # Python is not instrumented. The C++ library comes first too: AddressSanitizer looks for its
    # functions when it starts.
    export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so.6)"
    export ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=32 UBSAN_OPTIONS=print_stacktrace=1
    DSMOOTH_TEST_EXTENSION=$(realpath "$build"/extension/_C.*.so) \
        exec "$python" -m pytest -q -n0 -p no:cacheprovider "${arguments[@]}"
fi

run_tests address,undefined
tests=(sampler_test)  # the ops' threads are OpenMP's, which ThreadSanitizer does not understand
run_tests thread

echo "== a missing sync"
found() {  # on a busy machine threads may come one after the other, and no race is seen
    for _ in 1 2 3 4 5; do
        "$build/thread/sampler_test" plant "$1" >"$build/plant.txt" 2>&1 || break
    done
    grep -q "data race" "$build/plant.txt"
}
for plant in 5 40 101; do
    found $plant || { echo "ThreadSanitizer missed that a sync is missing: $plant"; exit 1; }
done
echo "found"
