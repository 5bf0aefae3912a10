#!/usr/bin/env bash
# All tests with the versions of Kaggle's image, in .venv-kaggle (6 GB); arguments go to pytest.
# The client is the one of the image, so tests that need a newer one fail there: docs/kaggle.md says which.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v python3.12 || command -v python3.11)
wanted=$(sha256sum tests/kaggle-image.txt setup.cfg | sha256sum)
if [ "$(cat .venv-kaggle/.complete 2>/dev/null)" != "$wanted" ]; then
    "$python" -m venv --clear .venv-kaggle
    # The extra `kaggle` asks for the newest client; here comes the image's.
    .venv-kaggle/bin/python -m pip install -q -c tests/kaggle-image.txt -e '.[smp,test]' kaggle kagglesdk six
    echo "$wanted" > .venv-kaggle/.complete
fi
exec .venv-kaggle/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
