#!/usr/bin/env bash
# The contract tests against another verl, in an environment of their own: prints what moved, and exits with 1 if anything
# did. docs/upgrading.md says what to do with the list.
#   bash scripts/check_next_verl.sh VERSION [VENV_DIR]
# VERSION is a release, or whatever else pip installs: a wheel, a URL, the folder of a checkout. All other pins stay.
# Without VENV_DIR the environment (8 GB) is made in a temporary folder and removed. PYTHON is install.sh's.
set -euo pipefail
version=${1:-}
# By its whole path: the name alone, without a slash, would be taken for a release.
if [[ -n $version && -e $version ]]; then version=$(realpath "$version"); fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { echo "check_next_verl.sh: $*" >&2; exit 2; }
[[ -n $version ]] || die "VERSION: a release of verl, such as 0.9.0, or a wheel, URL or folder of it"
case $version in
  */* | *.whl) wanted=$version ;;
  *) wanted=verl==$version ;;
esac
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
venv=${2:-$temporary/venv}
python=$venv/bin/python

echo "environment: $venv"
bash scripts/install.sh "$venv" cpu,test,examples
rm -f "$venv/.soup-verl-installed" # from here on it is not what install.sh makes
"$python" -m uv pip install --quiet --python "$python" --no-deps "$wanted" || die "no '$wanted' can be installed"
echo "contract tests: some minutes"
"$python" -m pytest tests/contract -q --tb=short --continue-on-collection-errors --junitxml="$temporary/report.xml" \
  >"$temporary/pytest.log" 2>&1 || true
[[ -f $temporary/report.xml ]] || { cat "$temporary/pytest.log" >&2; die "pytest did not come to its end"; }
# Of what is imported.
export PYTHONWARNINGS=ignore VERL_LOGGING_LEVEL=ERROR VLLM_LOGGING_LEVEL=ERROR TRANSFORMERS_VERBOSITY=error
"$python" scripts/what_moved.py "$temporary/report.xml"
