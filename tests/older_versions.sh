#!/usr/bin/env bash
# All tests with older versions in a venv of its own (6 GB): VERSIONS=kaggle-image (default) or torch-2.11, a file of
# constraints beside this one. Arguments go to pytest; without any, all tests run on all cores. With kaggle-image the
# client is the one of the image; docs/kaggle.md has the result.
set -euo pipefail
cd "$(dirname "$0")/.."
versions=${VERSIONS:-kaggle-image}
constraints=tests/$versions.txt venv=.venv-$versions
[ -f "$constraints" ] || { echo >&2 "There is no $constraints; VERSIONS is kaggle-image or torch-2.11."; exit 1; }
for python in ${PYTHON:-python3.12 python3.11}; do
    "$python" -c 'import ensurepip, venv' 2>/dev/null && break
    python=
done
[ -n "$python" ] || { echo >&2 "There is no Python 3.12 or 3.11 with venv; install one, or name one: PYTHON=..."; exit 1; }
wanted=$("$python" -V && sha256sum "$constraints" setup.cfg)
if [ "$(cat "$venv/.complete" 2>/dev/null)" != "$wanted" ]; then
    "$python" -m venv --clear "$venv"
    # The extra `kaggle` asks for the newest client; the constraints may have an older one.
    "$venv/bin/python" -m pip install -q -c "$constraints" -e '.[smp,test]' kaggle kagglesdk six
    echo "$wanted" > "$venv/.complete"
fi
[ $# -gt 0 ] || set -- -n auto --dist loadfile --no-loadscope-reorder
exec "$venv/bin/python" -m pytest "$@"
