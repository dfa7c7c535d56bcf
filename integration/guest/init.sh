#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The guest's first process: loads modules, then runs the steps that the host sends over the second
# serial port. A step is a line "NAME BASE64-OF-SCRIPT"; the answer is a line "BEGUN NAME", and in the end
# "DONE NAME EXIT-STATUS BASE64-OF-OUTPUT". "READY" is said once after boot.
#
# With new_root=DEVICE on the kernel's command line (the kernel puts it into the environment) that
# disk's system becomes the root, and the steps run there.

run_steps() {
    stty raw -echo < /dev/ttyS1
    exec 3<> /dev/ttyS1
    echo "READY" >&3
    while read -r name script <&3; do
        echo "step $name"
        echo "BEGUN $name" >&3
        echo "$script" | base64 -d > /run/step
        /bin/sh -eu /run/step < /dev/null > /run/output 2>&1
        status=$?
        echo "DONE $name $status $(base64 -w0 < /run/output)" >&3
    done
    echo "the host closed the channel"
    poweroff -f
}

if [ "$1" = "in-new-root" ]; then
    # What a minimal system lacks is in /run/agent.
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/run/agent HOME=/tmp
    run_steps
fi

/bin/busybox mkdir -p /proc /sys /dev /run /tmp /mnt /bin /sbin
/bin/busybox --install -s /bin
export PATH=/sbin:/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
for module in /modules/*.ko; do
    insmod "$module"
done
if [ -n "$new_root" ]; then
    mount -t ext4 "$new_root" /mnt
    mkdir /run/agent
    cp /init /bin/busybox /run/agent
    for name in poweroff reboot usleep; do
        ln -s busybox "/run/agent/$name"
    done
    for place in proc sys dev run; do
        mount -o move "/$place" "/mnt/$place"
    done
    exec switch_root /mnt /run/agent/busybox sh /run/agent/init in-new-root
fi
run_steps
