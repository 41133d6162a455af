#!/bin/sh
# Makes of the namespaces that it was started in a machine of its own, as the documents' readers have it, and
# becomes PROGRAM on it: `machine.sh PROGRAM [ARGUMENT]...`. Everything that is written to /etc, /opt, /usr and
# /var is in memory, /run is empty, the network has no other host; nothing remains.
#   REPOSITORY  the sources of berth
#   BUILT       its program
#   CONTAINERD  the directory of containerd and ctr;  KUSTOMIZE  that of kustomize
set -eu
mount --make-rprivate /
memory=$(mktemp -d /tmp/berth-documents.XXXXXX)
trap 'umount -l "$memory" 2>/dev/null || true; rmdir "$memory"' EXIT
mount -t tmpfs tmpfs "$memory"
for tree in etc opt usr var; do
    mkdir "$memory/$tree" "$memory/$tree.work"
    mount -t overlay overlay -o "lowerdir=/$tree,upperdir=$memory/$tree,workdir=$memory/$tree.work" "/$tree"
done
# The file systems stay, their directory does not.
umount -l "$memory"
rmdir "$memory"
trap - EXIT
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /var/lib/containerd
mount -t tmpfs tmpfs /var/lib/containerd # an overlay below an overlay is one too many
rm -rf /etc/berth /etc/containerd /usr/local/bin/containerd-shim-berth-v1
busybox ip link set lo up

# A checkout, as `git clone` leaves it, with the program in the place of what `make build` takes minutes for.
mkdir -p /run/home/berth
tar -C "$REPOSITORY" --exclude=./target --exclude=./.git -cf - . | tar -C /run/home/berth -xf -
mkdir /run/home/built
strip "$BUILT" -o /run/home/built/containerd-shim-berth-v1
program() {
    cat >"/usr/local/bin/$1"
    chmod 0755 "/usr/local/bin/$1"
}
program make <<MAKE
#!/bin/sh
exec /usr/bin/make -o build BUILT=/run/home/built/containerd-shim-berth-v1 "\$@"
MAKE
command -v sudo >/dev/null || program sudo <<'SUDO'
#!/bin/sh
exec "$@"
SUDO
# A cluster of one directory: what was applied.
mkdir /run/cluster
program kubectl <<'KUBECTL'
#!/bin/sh
set -eu
case $1:$2 in
    apply:-k) kustomize build "$3" >/run/cluster/applied ;;
    apply:-f) cp "$3" /run/cluster/applied ;;
    delete:-k) kustomize build "$3" | cmp - /run/cluster/applied && rm /run/cluster/applied ;;
    -n:berth-system) [ "$3:$4" = rollout:status ] && grep -q "^kind: DaemonSet" /run/cluster/applied &&
        grep -q "^  name: ${5#daemonset/}$" /run/cluster/applied ;;
    *) echo "kubectl: $*?" >&2; exit 1 ;;
esac
KUBECTL
PATH=/usr/local/bin:$CONTAINERD:$KUSTOMIZE:$PATH
unset CARGO_TARGET_DIR MAKEFLAGS MAKELEVEL MFLAGS
export PATH DEBIAN_FRONTEND=noninteractive DPKG_DEB_COMPRESSOR_TYPE=none CARGO_NET_OFFLINE=true
cd /run/home/berth
exec "$@"
