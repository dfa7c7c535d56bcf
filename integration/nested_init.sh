#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a guest in a guest: asks its SCSI disk for reservations with sg_persist, and
# prints "step NAME STATUS" and what sg_persist has said. Nobody talks to it.

/bin/busybox mkdir -p /proc /sys /dev /run
/bin/busybox --install -s /bin
export PATH=/sbin:/bin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    insmod "$module"
done
until [ -b /dev/sda ]; do usleep 50000; done

KEY=1122334455667788
OTHER=99aabbccddeeff00

step() {
    name=$1
    shift
    sg_persist --no-inquiry "$@" /dev/sda > /run/said 2>&1
    echo "step $name $?"
    sed 's/^/said /' /run/said
}

step keys --in --read-keys
step not-registered --out --reserve --param-rk=$KEY --prout-type=1
step register --out --register --param-sark=$KEY
step keys-of-both --in --read-keys
step conflict --out --reserve --param-rk=$KEY --prout-type=1
step reservation --in --read-reservation
step preempt --out --preempt --param-rk=$KEY --param-sark=$OTHER --prout-type=1
step preempted --in --read-reservation
step release --out --release --param-rk=$KEY --prout-type=1
for kind in 1 3 5 6 7 8; do
    step "reserve-$kind" --out --reserve --param-rk=$KEY --prout-type=$kind
    step "reserved-$kind" --in --read-reservation
    step "release-$kind" --out --release --param-rk=$KEY --prout-type=$kind
done
step capabilities --in --report-capabilities
step full-status --in --read-full-status
step clear --out --clear --param-rk=$KEY
step no-keys --in --read-keys
echo "the end"
poweroff -f
