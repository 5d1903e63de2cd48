# What the run scripts share: data, the model's context window, and the command itself. To be sourced.
# Each step is skipped where its output is there; DRY_RUN=1 prints the training command and makes nothing.

# made FILE COMMAND...: run the command unless FILE is there.
made() {
  local file=$1
  shift
  if [[ ! -e $file && -z ${DRY_RUN:-} ]]; then "$@"; fi
}

# prepare_benchmarks TEMPLATE TOKENIZER: every one of BENCHMARKS as a parquet file.
prepare_benchmarks() {
  local name
  for name in "${BENCHMARKS[@]}"; do
    made "$DATA_DIR/benchmarks/$name.parquet" "$PYTHON" -m soup_verl.prepare_data --dataset "$name" \
      --out "$DATA_DIR/benchmarks" --template "$1" --tokenizer "$2" --max-prompt-tokens "$PROMPT_TOKENS"
  done
}

# prepare_training DATASET TEMPLATE TOKENIZER: without the prompts that hold a benchmark question or are too long.
prepare_training() {
  made "$DATA_DIR/$1.parquet" "$PYTHON" -m soup_verl.prepare_data --dataset "$1" --out "$DATA_DIR" --template "$2" \
    --tokenizer "$3" --max-prompt-tokens "$PROMPT_TOKENS" --benchmarks-from "$DATA_DIR/benchmarks"
}

# extend_context MODEL OUT OPTIONS...: a copy of the model with every stop token and another context window.
extend_context() {
  local model=$1 out=$2
  shift 2
  made "$out/config.json" "$PYTHON" -m soup_verl.context_window --model "$model" --out "$out" "$@"
}

# The benchmarks as Hydra's list.
parquet_list() {
  local files=("${BENCHMARKS[@]/#/$DATA_DIR/benchmarks/}")
  files=("${files[@]/%/.parquet}")
  (IFS=, && echo "[${files[*]}]")
}

# train SETTINGS...: run, or with DRY_RUN=1 print one argument a line. Among the settings `ablations=NAME` and
# `neighbors=NAME` are files of examples/; a setting that a script gives itself wins over theirs.
train() {
  local arguments=("$@")
  if [[ " $* " == *" ablations="* || " $* " == *" neighbors="* ]]; then
    arguments=(--config-dir="$PWD/examples" "$@")
  fi
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%s\n' "${arguments[@]}"
  else
    exec "$PYTHON" -m recipe.soup.main_soup "${arguments[@]}"
  fi
}
