# Run in the root of a minimal Debian: makes it a machine that boots, takes its address from DHCP and serves
# the Docker API on port 2376, with Debian's docker.io as it comes. Everything else is as Debian has it.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
mount -t proc proc /proc
apt-get update
apt-get install --yes --no-install-recommends \
    systemd-sysv udev kmod iproute2 ca-certificates apparmor \
    initramfs-tools linux-image-6.12-cloud-amd64 docker.io
apt-get clean
rm -rf /var/lib/apt/lists/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/*

echo peer > /etc/hostname
printf '127.0.0.1 localhost peer\n' > /etc/hosts
rm -f /etc/resolv.conf
printf 'nameserver 10.0.2.3\n' > /etc/resolv.conf
cat > /etc/systemd/network/all.network <<'END'
[Match]
Type=ether
Name=e*

[Network]
DHCP=ipv4
END
# Nobody logs in, and nothing is to run beside what is measured.
systemctl enable systemd-networkd.service docker.service
systemctl disable apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer || true
systemctl mask getty@.service serial-getty@.service systemd-timesyncd.service

# As Debian's unit, and reached by TLS from outside besides.
mkdir -p /etc/systemd/system/docker.service.d /etc/docker
cat > /etc/systemd/system/docker.service.d/tcp.conf <<'END'
[Service]
ExecStart=
ExecStart=/usr/sbin/dockerd -H fd:// -H tcp://0.0.0.0:2376 --containerd=/run/containerd/containerd.sock
END
cat > /etc/docker/daemon.json <<'END'
{
    "tlsverify": true,
    "tlscacert": "/etc/docker/ca.pem",
    "tlscert": "/etc/docker/cert.pem",
    "tlskey": "/etc/docker/key.pem",
    "insecure-registries": ["10.0.2.0/24"]
}
END
cat > /etc/systemd/system/ready.service <<'END'
[Unit]
After=docker.service systemd-networkd-wait-online.service
Wants=systemd-networkd-wait-online.service
Requires=docker.service

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo peer: ready > /dev/console'

[Install]
WantedBy=multi-user.target
END
systemctl enable ready.service
umount /proc
