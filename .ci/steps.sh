# Steps that .ci/run and .ci/full share; sourced by them in the root of the repository.
set -euo pipefail

work=$(mktemp -d)
# Each module is compiled once, not by each process, and nothing is written into the tree.
export PYTHONPYCACHEPREFIX="$work/bytecode"
unset PYTHONDONTWRITEBYTECODE
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

step() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }

# The requirements of dsmooth or of its extras, to install them without building dsmooth.
requirements() {
  python3 - "$@" <<'END'
import sys, tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = [project["optional-dependencies"][name] for name in sys.argv[1:]]
names = sum(extras, []) or project["dependencies"]
print(*(name for name in names if not name.startswith("dsmooth")), sep="\n")
END
}

# An interpreter of a version, of those on PATH or of pyenv.
find_python() {
  local found
  for found in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    "$found" -c 'import ensurepip' 2>/dev/null && { echo "$found"; return; }
  done
  return 1
}

make_environment() {
  python3 -m venv "$work/venv"
  . "$work/venv/bin/activate"
  python -m pip install --quiet --upgrade pip
  pip install --quiet cmake ninja pybind11
}

# Run a command in the background; `finish NAME` waits for it and prints its output if it failed.
start() { "${@:2}" >"$work/$1.txt" 2>&1 & echo $! >"$work/$1.pid"; }
finish() { wait "$(cat "$work/$1.pid")" || { cat "$work/$1.txt"; exit 1; }; }

# The README's second command, without bytecode of all that torch brings.
install() {
  step "install, with warnings of the native build as errors"
  CXXFLAGS=-Werror pip install --quiet --no-compile '.[test]'
}

check_command() {
  step "command line, from another folder"
  (cd "$work" && dsmooth doctor && dsmooth --help >help.txt)
}

check_style_and_docs() {
  step "style, types and documentation"
  requirements dev docs >"$work/tools.txt"
  pip install --quiet --no-compile -r "$work/tools.txt"
  start types mypy
  ruff check .
  ruff format --check .
  git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs clang-format --dry-run --Werror
  check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
  check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
  NO_MKDOCS_2_WARNING=1 mkdocs build --strict -f tools/mkdocs.yml
  finish types
}
