# A copy of this machine that is thrown away: what happens in it happens to a tmpfs over the root file system. Needs root, and to be
# run in a mount namespace of its own. system.sh DIR FILES... ; the script comes on standard input.
set -euo pipefail
dir=$1
shift
mount --make-rprivate /
mount -t tmpfs tmpfs "$dir"
mkdir "$dir/upper" "$dir/work" "$dir/root"
root=$dir/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$root"
cp "$@" "$root/root/"
cat >"$root/root/script"
