#!/bin/sh
# Lays out what gets installed, for `make install`, `make tarball` and `make deb` alike:
#   stage.sh PROGRAM DIRECTORY
# leaves in DIRECTORY what install.sh, which comes along, puts into place: bin, etc, share.
set -eu
program=$(realpath "$1")
mkdir -p "$2"
tree=$(realpath "$2")
cd "$(dirname "$0")/.."
PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
doc=$tree/share/doc/berth
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The licences of what the program is made from, each text once, below the names of what comes under it.
licences() {
    sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
    cargo tree --locked --edges normal --prefix none --format '{p}~{l}' | sed 's/ (.*)~/~/; s/ (\*)$//' | sort -u |
        while IFS='~' read -r package licence; do
            name=${package% v*}
            [ "$name" != berth ] || continue
            printf '%s: %s\n' "$package" "$licence" >>"$work/list"
            for text in "$sources"/*/"$name-${package##* v}"/[LCNU][IONl]*; do
                case ${text##*/} in
                    LICEN[CS]E* | COPY* | NOTICE* | UNLICENSE*) ;;
                    *) continue ;;
                esac
                [ -f "$text" ] || continue
                sum=$(sha256sum "$text" | cut -d' ' -f1)
                [ -e "$work/$sum.text" ] || cp "$text" "$work/$sum.text"
                echo "$package" >>"$work/$sum.names"
            done
        done
    printf 'Beside berth itself (LICENSE) the program consists of these packages, and of the GNU C library.\n\n'
    cat "$work/list"
    for names in "$work"/*.names; do
        printf '\n================ %s\n\n' "$(sort -u "$names" | tr '\n' ' ')"
        cat "${names%.names}.text"
    done
}

# generated FILE ARGUMENT..: what the program prints of itself, where it can.
generated() {
    file=$tree/$1
    shift
    mkdir -p "${file%/*}"
    "$program" "$@" >"$file" 2>/dev/null </dev/null && [ -s "$file" ] || rm "$file"
}

# page FILE: a page whose links lead to what is installed; to the sources none can.
page() {
    to='(\]\(|src=")'
    sed -E "s,$to(\.\./|\.github/),\1,g; s,\[([^]]*)\]\(src/[^)]*\),\1,g
        s,${to}config/berth\.toml,\1/etc/berth/config.toml,g; s,${to}config/,\1examples/,g
        s,${to}packaging/grafana/berth\.json,\1examples/grafana.json,g
        s,${to}packaging/grafana/berth\.svg,\1grafana.svg,g; s,${to}packaging/,\1,g" "$1" >"$doc/${1##*/}"
    chmod 0644 "$doc/${1##*/}"
}

rm -rf "${tree:?}/bin" "${tree:?}/etc" "${tree:?}/share"
mkdir -p "$tree/etc/berth/presets" "$doc/examples"
install -D -m 0755 "$program" "$tree/bin/containerd-shim-berth-v1"
install -m 0755 packaging/install.sh "$tree/install.sh"
install -m 0644 packaging/INSTALL "$tree/INSTALL"
install -m 0644 config/berth.toml "$tree/etc/berth/config.toml"
install -m 0644 CHANGELOG.md LICENSE packaging/SECURITY.md packaging/demo.svg "$doc"
install -m 0644 packaging/grafana/berth.svg "$doc/grafana.svg"
page README.md
page .github/CONTRIBUTING.md
cp -r packaging/kubernetes "$doc/examples/"
install -m 0644 packaging/grafana/berth.json "$doc/examples/grafana.json"
install -m 0644 config/* "$doc/examples/"
rm "$doc/examples/berth.toml"
licences >"$work/licences"
install -m 0644 "$work/licences" "$doc/LICENSES"
generated share/man/man1/containerd-shim-berth-v1.1 man
generated share/bash-completion/completions/containerd-shim-berth-v1 completions bash
generated share/zsh/site-functions/_containerd-shim-berth-v1 completions zsh
generated share/fish/vendor_completions.d/containerd-shim-berth-v1.fish completions fish
find "$tree/share" -type d -empty -delete
