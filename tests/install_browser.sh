#!/usr/bin/env bash
# Install Chromium, its driver and the font of the report, for the tests that open the report in a browser, and openssl,
# for those that speak TLS: where CI is set, none of them is skipped.
set -euo pipefail

if command -v openssl >/dev/null && command -v chromium >/dev/null && command -v chromedriver >/dev/null &&
    fc-list | grep -q Inter; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo >&2 "There is no apt-get here; install Chromium and its chromedriver with this system's package manager."
    exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
    as_root=(sudo)
    if ! command -v sudo >/dev/null; then
        echo >&2 "To install Chromium one must be root or have sudo; as root:" \
            "apt-get install chromium chromium-driver fonts-inter"
        exit 1
    fi
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -qq -y --no-install-recommends chromium chromium-driver fonts-inter fontconfig openssl >/dev/null
