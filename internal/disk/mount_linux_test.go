package disk

import "testing"

func TestUnmounted(t *testing.T) {
	const fstab = "# /mnt/comment x\nUUID=1 / ext4 defaults 0 1\nUUID=2\t/mnt/disk xfs defaults 0 2\n/swap none swap sw 0 0\nnas:/x /srv/my\\040files/ nfs _netdev 0 0\n"
	const mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 8:2 / /mnt/other rw - xfs /dev/sdb rw\n"
	for path, want := range map[string]string{
		"/mnt/disk": "/mnt/disk", "/mnt/disk/a/b": "/mnt/disk", "/mnt/disk2": "", "/var/lib/x": "", "/srv/my files/x": "/srv/my files",
	} {
		if got := unmounted(path, fstab, mounts); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if got := unmounted("/mnt/disk/a", fstab, mounts+"24 22 8:3 / /mnt/disk rw shared:1 - xfs /dev/sdc rw\n"); got != "" {
		t.Errorf("with the disk mounted: %q, want none", got)
	}
}
