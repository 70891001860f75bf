# image.sh ROOT WORK: installs packages in the minimal Debian at ROOT, and leaves what each step adds as a
# layer (WORK/fio.tar, WORK/compiler.tar). In a mount namespace of its own.
set -eu
root=$1
work=$2
below=$root
for step in fio:fio compiler:g++; do
    name=${step%%:*}
    packages=${step#*:}
    mkdir -p "$work/$name" "$work/$name.work" "$work/merged"
    mount -t overlay overlay -o "lowerdir=$below,upperdir=$work/$name,workdir=$work/$name.work" "$work/merged"
    mount -t proc proc "$work/merged/proc"
    chroot "$work/merged" sh -eu -c "
        export DEBIAN_FRONTEND=noninteractive LC_ALL=C
        apt-get update
        apt-get install --yes --no-install-recommends $packages
        apt-get clean"
    umount "$work/merged/proc" "$work/merged"
    # What a step removed it leaves as a device that no honest layer has.
    find "$work/$name" -type c -delete
    tar -C "$work/$name" --numeric-owner --sort=name --exclude=./var/lib/apt/lists --exclude=./var/cache \
        --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./var/log -cf "$work/$name.tar" .
    below=$work/$name:$below
done
