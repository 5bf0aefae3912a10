#!/usr/bin/env bash
# All tests with the versions of Kaggle's image, in .venv-kaggle (6 GB); arguments go to pytest, and without any all
# tests run on all cores. The client is the one of the image; docs/kaggle.md has the result.
set -euo pipefail
cd "$(dirname "$0")/.."
for python in ${PYTHON:-python3.12 python3.11}; do
    "$python" -c 'import ensurepip, venv' 2>/dev/null && break
    python=
done
[ -n "$python" ] || { echo >&2 "There is no Python 3.12 or 3.11 with venv; install one, or name one: PYTHON=..."; exit 1; }
wanted=$("$python" -V && sha256sum tests/kaggle-image.txt setup.cfg)
if [ "$(cat .venv-kaggle/.complete 2>/dev/null)" != "$wanted" ]; then
    "$python" -m venv --clear .venv-kaggle
    # The extra `kaggle` asks for the newest client; here comes the image's.
    .venv-kaggle/bin/python -m pip install -q -c tests/kaggle-image.txt -e '.[smp,test]' kaggle kagglesdk six
    echo "$wanted" > .venv-kaggle/.complete
fi
[ $# -gt 0 ] || set -- -n auto --dist loadfile --no-loadscope-reorder
exec .venv-kaggle/bin/python -m pytest "$@"
