mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/run"
mount --rbind /dev "$root/dev"
exec chroot "$root" bash -euxo pipefail /root/script
