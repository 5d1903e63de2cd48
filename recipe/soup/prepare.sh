# What run.sh needs: data, a copy of the model that is ready to be trained, and the command itself. To be sourced.
# Each step is skipped where its output is there; DRY_RUN=1 prints the training command and makes nothing; REHEARSE=1
# leaves it all to soup_verl.rehearsal, which makes the same things in a folder of its own.

# The interpreter: PYTHON if it is set. Else a rehearsal takes the CPU environment, .venv; a run takes python3 where that
# has vLLM and verl, as in an active environment, then what install.sh made in this checkout: .venv-gpu, .venv.
find_python() {
  local venv
  if [[ -n ${REHEARSE:-} && -x .venv/bin/python ]]; then echo .venv/bin/python; return; fi
  if ! python3 -c 'import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, ("vllm", "verl"))))' 2>/dev/null; then
    for venv in .venv-gpu .venv; do
      if [[ -x $venv/bin/python ]]; then echo "$venv/bin/python"; return; fi
    done
  fi
  echo python3
}
PYTHON=${PYTHON:-$(find_python)}
PREPARATIONS=()

# made FILE COMMAND...: run `$PYTHON -m COMMAND...` unless FILE is there.
made() {
  local file=$1
  shift
  if [[ -n ${DRY_RUN:-} ]]; then return; fi
  if [[ -n ${REHEARSE:-} ]]; then PREPARATIONS+=(--made "$file" "$@"); return; fi
  if [[ ! -e $file ]]; then "$PYTHON" -m "$@"; fi
}

# parquet FOLDER NAME: the file of a data set (reasoning-gym:NAME: reasoning-gym-NAME); NAME itself if it is a parquet file.
parquet() {
  if [[ $2 == *.parquet ]]; then echo "$2"; else echo "$1/${2//:/-}.parquet"; fi
}

# prepare_dataset FOLDER NAME OPTIONS...: unless NAME is a parquet file already.
prepare_dataset() {
  local folder=$1 name=$2
  shift 2
  if [[ $name == *.parquet ]]; then return; fi
  made "$(parquet "$folder" "$name")" soup_verl.prepare_data --dataset "$name" --out "$folder" --template "$TEMPLATE" \
    --tokenizer "$MODEL_PATH" --max-prompt-tokens "$PROMPT_TOKENS" "$@"
}

# Every one of BENCHMARKS.
prepare_benchmarks() {
  local name
  for name in $BENCHMARKS; do prepare_dataset "$DATA_DIR/benchmarks" "$name"; done
}

# TRAIN_SET without the prompts that are too long or hold a question of a benchmark that goes by name.
prepare_training() {
  local name known=()
  for name in $BENCHMARKS; do
    if [[ $name != *.parquet ]]; then known+=("$(parquet "$DATA_DIR/benchmarks" "$name")"); fi
  done
  if ((${#known[@]})); then known=(--benchmarks-from "${known[@]}"); fi
  prepare_dataset "$DATA_DIR" "$TRAIN_SET" "${known[@]}"
}

# make_ready OUT OPTIONS...: a copy of the model that stops at every end of a turn; with OPTIONS also with another context
# window. Weights are linked.
make_ready() {
  local out=$1
  shift
  made "$out/config.json" soup_verl.tasks.context_window --model "$MODEL_PATH" --out "$out" "$@"
}

# The files of BENCHMARKS as Hydra's list.
benchmark_files() {
  local name files=()
  for name in $BENCHMARKS; do files+=("$(parquet "$DATA_DIR/benchmarks" "$name")"); done
  (IFS=, && echo "[${files[*]}]")
}

# train SETTINGS...: run, or with DRY_RUN=1 print one argument a line. Among the settings `ablations=NAME` and
# `neighbors=NAME` are files of config/; a setting that a script gives itself wins over theirs.
train() {
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%s\n' "$@"
  elif [[ -n ${REHEARSE:-} ]]; then
    # shellcheck disable=SC2153 # REHEARSAL is a folder, REHEARSE the extent
    exec "$PYTHON" -m soup_verl.rehearsal --out "$REHEARSAL" --extent "$REHEARSE" --model "$MODEL_PATH" \
      --data-dir "$DATA_DIR" "${PREPARATIONS[@]}" -- "$@"
  else
    exec "$PYTHON" -m recipe.soup.main_soup "$@"
  fi
}
