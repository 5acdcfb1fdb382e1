#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-or-later
# The guest's first process. It loads no driver: the harness asks for that, phase by phase, over the serial console.

/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=dumb
hostname guest
# From here on the console belongs to the harness; only a panic still speaks. The kernel's log stays in dmesg.
dmesg -n 1

# where modprobe looks for its tables
ln -s /modules "/lib/modules/$(uname -r)"

# What the boot gave back of the memory holds what it held then. With zeros in it there is a third less to record, and to
# send to each secondary.
while read -r name free _; do
    [ "$name" != MemFree: ] || break
done < /proc/meminfo
dd if=/dev/zero of=/dev/null bs=$((free - 8192))k count=1 2> /dev/null

export ENV=/lib/postload.sh
read -r tty < /sys/class/tty/console/active
stty -echo < "/dev/$tty"
echo "POSTLOAD READY" > "/dev/$tty"
# A shell that ends (Ctrl-D, exit) is started again: were it the first process, the kernel would panic.
while :; do
    setsid sh -i < "/dev/$tty" > "/dev/$tty" 2>&1
done
