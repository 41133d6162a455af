#!/bin/sh
# Makes the Debian package of what stage.sh has laid out:
#   deb.sh STAGE DIRECTORY [VERSION]
# leaves berth_VERSION_ARCHITECTURE.deb in DIRECTORY. Everything happens below DIRECTORY/work.
#   DEBFULLNAME, DEBEMAIL   who makes it, and answers for it: its maintainer
set -eu
stage=$(realpath "$1")
mkdir -p "$2"
dest=$(realpath "$2")
cd "$(dirname "$0")/.."
version=${3:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}
name=berth_${version}_$(dpkg --print-architecture).deb
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}"

rm -rf "${dest:?}/work"
mkdir -p "$dest/work/berth"
cp -r packaging/debian "$dest/work/berth/"
cp -r "$stage" "$dest/work/berth/stage"
control=$dest/work/berth/debian/control
[ -z "${DEBEMAIL:-}" ] || sed -i "s/^Maintainer: .*/Maintainer: ${DEBFULLNAME:-$DEBEMAIL} <$DEBEMAIL>/" "$control"
cat >"$dest/work/berth/debian/changelog" <<CHANGES
berth ($version) unstable; urgency=medium

  * See CHANGELOG.md.

 -- $(sed -n 's/^Maintainer: //p' "$control")  $(date -R -u -d "@$SOURCE_DATE_EPOCH")
CHANGES
if ! (cd "$dest/work/berth" && dpkg-buildpackage --build=binary --no-sign) >"$dest/work/log" 2>&1; then
    tail -n 40 "$dest/work/log" >&2
    echo 'deb: dpkg-buildpackage failed' >&2
    exit 1
fi
mv "$dest/work/$name" "$dest/"
rm -rf "$dest/work"
echo "built $dest/$name"
