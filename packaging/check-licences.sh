#!/bin/sh
# Fails when what berth is built from comes under a licence that .deny.toml does not allow. Works
# offline; where cargo-deny is installed, it checks the whole of .deny.toml.
set -eu
cd "$(dirname "$0")/.."
allowed=$(sed -n '/^allow = \[/,/^\]/s/^ *"\(.*\)",*$/\1/p' .deny.toml)

# "A OR B" needs one of the two, "A AND B" both; "/" is an old form of OR.
status=0
for entry in $(cargo tree --locked --target all --edges normal,build --prefix none \
    --format '{l}~{p}' | sed 's/ (.*//; s/ /_/g' | sort -u); do
    licence=$(echo "${entry%%~*}" | sed 's/_/ /g; s/[()]//g; s,/, OR ,g; s/ AND /\n/g')
    bad=$(echo "$licence" | while read -r part; do
        echo "$part" | sed 's/ OR /\n/g; s/ *WITH .*//' | grep -qxF "$allowed" || echo "$part"
    done)
    [ -z "$bad" ] || { echo "licence not allowed: $bad, of ${entry#*~}" >&2; status=1; }
done
if command -v cargo-deny >/dev/null; then
    cargo deny --offline check --config .deny.toml licenses bans sources || status=1
fi
exit $status
