# systemd as the first process of a container, with the script as its one job.
rm -f "$root"/etc/systemd/system/*.wants/*
cat >"$root/etc/systemd/system/script.service" <<'UNIT'
[Service]
Type=oneshot
Environment=HOME=/root
ExecStart=/bin/bash -euxo pipefail /root/script
StandardOutput=file:/root/out
StandardError=file:/root/out
ExecStopPost=/bin/sh -c 'echo $EXIT_STATUS >/root/status'
ExecStopPost=/bin/systemctl poweroff --force
UNIT
chroot "$root" dpkg -i "/root/$(basename "$1")" >/dev/null 2>&1
systemd-nspawn --quiet --register=no --keep-unit --private-network --link-journal=no --directory="$root" \
  /lib/systemd/systemd --unit=script.service --show-status=no </dev/null >"$dir/console" 2>&1 || cat "$dir/console"
cat "$root/root/out"
exit "$(cat "$root/root/status")"
