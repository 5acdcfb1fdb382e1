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

cat > /lib/postload.sh <<'LIB'
# Functions for the interactive shell.
set +m   # no "[1]+ Done" lines between answers
PS1='postload# '
PS2=''

# load DRIVER...: insert each driver's modules in order, those that are there already left alone.
load() {
    for driver in "$@"; do
        if [ ! -f "/modules/$driver.list" ]; then
            echo "load: no driver $driver in this guest" >&2
            return 1
        fi
        while read -r name file; do
            [ -d "/sys/module/$name" ] && continue
            insmod "$file" || return 1
        done < "/modules/$driver.list"
    done
}

# bind_wait PATTERN SECONDS: wait until a path matches, e.g. bind_wait /dev/sda 10; status 1 when none came in time.
bind_wait() {
    tries=$(($2 * 20))
    while :; do
        for path in $1; do
            [ -e "$path" ] && return 0
        done
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || break
        nap
    done
    echo "bind_wait: no $1 within $2 s" >&2
    return 1
}

# nap: 50 ms without a child process, which under TCG costs more than the sleep. Nobody ever writes to the pipe.
nap() {
    [ -p /tmp/nap ] || mkfifo /tmp/nap
    read -r -t 0.05 _ <> /tmp/nap || :
}

# beat_start: count in /tmp/beat every 50 ms, in silence.
beat_start() {
    (
        beats=0
        while :; do
            beats=$((beats + 1))
            echo "$beats" > /tmp/beat
            nap
        done
    ) < /dev/null > /dev/null 2>&1 &
    echo "$!" > /tmp/beat.pid
}

# beat: print the count; the file is empty for an instant at each beat.
beat() {
    count=
    while [ -z "$count" ]; do
        read -r count < /tmp/beat || [ -s /tmp/beat ] || nap
    done
    echo "$count"
}

# beat_stop: end the count.
beat_stop() {
    [ -f /tmp/beat.pid ] && kill "$(cat /tmp/beat.pid)" 2> /dev/null
    rm -f /tmp/beat.pid
}

# pci_unbind SLOT, pci_bind SLOT DRIVER: take a PCI device from its driver, and give it back.
pci_unbind() { echo "$1" > "/sys/bus/pci/devices/$1/driver/unbind"; }
pci_bind() { echo "$1" > "/sys/bus/pci/drivers/$2/bind"; }

# disk_busy DISK: direct writes and reads of 64 KiB, over and over, until disk_idle.
disk_busy() {
    (
        while :; do
            dd if=/dev/zero of="/dev/$1" bs=64k count=64 oflag=direct conv=notrunc
            dd if="/dev/$1" of=/dev/null bs=64k count=64 iflag=direct
        done
    ) < /dev/null > /dev/null 2>&1 &
    echo "$!" > "/tmp/busy.$1"
}
disk_idle() {
    kill "$(cat "/tmp/busy.$1")"
    rm "/tmp/busy.$1"
    nap
}

# disk_moves DISK: status 0 when reads and writes are completed while one looks.
disk_moves() {
    before=$(disk_count "$1")
    tries=100
    while [ "$tries" -gt 0 ]; do
        nap
        [ "$(disk_count "$1")" -gt "$((before + 1))" ] && return 0
        tries=$((tries - 1))
    done
    echo "disk_moves: no request of $1 was completed" >&2
    return 1
}
disk_count() {
    read -r reads _ _ _ writes _ < "/sys/block/$1/stat"
    echo "$((reads + writes))"
}

# The user network of QEMU answers at 10.0.2.2.
net_up() {
    ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && ping -c 1 -W 5 10.0.2.2 > /dev/null
}
net_busy() {
    ping -q -i 0.002 -s 1400 10.0.2.2 < /dev/null > /dev/null 2>&1 &
    echo "$!" > /tmp/busy.net
    ping -q -i 0.003 -s 56 10.0.2.2 < /dev/null > /dev/null 2>&1 &
    echo "$!" >> /tmp/busy.net
}
net_idle() {
    kill $(cat /tmp/busy.net)
    rm /tmp/busy.net
}
net_moves() {
    before=$(cat /sys/class/net/eth0/statistics/rx_packets)
    tries=100
    while [ "$tries" -gt 0 ]; do
        nap
        [ "$(cat /sys/class/net/eth0/statistics/rx_packets)" -gt "$((before + 1))" ] && return 0
        tries=$((tries - 1))
    done
    echo "net_moves: no packet came back" >&2
    return 1
}
LIB

export ENV=/lib/postload.sh
stty -echo < /dev/ttyS0
echo "POSTLOAD READY" > /dev/ttyS0
# A shell that ends (Ctrl-D, exit) is started again: were it the first process, the kernel would panic.
while :; do
    setsid sh -i < /dev/ttyS0 > /dev/ttyS0 2>&1
done
