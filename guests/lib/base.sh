# SPDX-License-Identifier: GPL-2.0-or-later
# Functions for the interactive shell.
set +m   # no "[1]+ Done" lines between answers
PS1='postload# '
PS2=''

# load DRIVER...: insert drivers with all that they need, those that are there already left alone.
load() {
    modprobe -a "$@" && return 0
    echo "load: not all of the drivers $* are in this guest" >&2
    return 1
}

# bind_wait PATTERN SECONDS: wait until a path matches, e.g. bind_wait /dev/sda 10; status 1 when none came in time.
bind_wait() {
    local tries path
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

# intx_off: have no PCI device raise its interrupt line that has no driver; a driver that takes one turns it on again.
# Firmware leaves lines raised. Nobody answers, and after 100,000 interrupts the kernel takes the line from all who share it.
intx_off() {
    local device line low
    for device in /sys/bus/pci/devices/*; do
        [ ! -e "$device/driver" ] && read -r line < "$device/irq" && [ "$line" != 0 ] || continue
        # its command register as a word, for QEMU looks at this bit when the low byte is written: SERR#, interrupt disable
        low=$(dd if="$device/config" bs=1 skip=4 count=1 2> /dev/null | hexdump -e '1/1 "%03o"')
        printf "\\$low\\005" | dd of="$device/config" bs=2 seek=2 conv=notrunc 2> /dev/null
    done
}

# pci_unbind SLOT, pci_bind SLOT DRIVER: take a PCI device from its driver, and give it back.
pci_unbind() {
    if [ ! -e "/sys/bus/pci/devices/$1/driver" ]; then
        echo "pci_unbind: $1 has no driver" >&2
        return 1
    fi
    echo "$1" > "/sys/bus/pci/devices/$1/driver/unbind"
}
pci_bind() {
    if [ ! -d "/sys/bus/pci/drivers/$2" ]; then
        echo "pci_bind: no driver $2 in this guest's kernel; those it has: $(ls /sys/bus/pci/drivers | tr '\n' ' ')" >&2
        return 1
    fi
    echo "$1" > "/sys/bus/pci/drivers/$2/bind"
}

# pci_below PORT: the address of the one device behind a PCIe port; firmware numbers the bus.
pci_below() {
    local path
    # not 0000:00:04.0:pcie001, a service of the port itself
    for path in /sys/bus/pci/devices/"$1"/????:??:??.?; do
        [ -e "$path" ] && echo "${path##*/}" && return 0
    done
    echo "pci_below: nothing behind the port $1" >&2
    return 1
}

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
    echo "disk_moves: no request of $1 was completed within 5 s" >&2
    return 1
}
disk_count() {
    read -r reads _ _ _ writes _ < "/sys/block/$1/stat"
    echo "$((reads + writes))"
}

# disk_fail DISK SECTOR: get one direct request ready in the background, of a sector (512 bytes) that the host fails: a
# write, or a read where the disk takes none. It is made when fail_now writes to its pipe.
disk_fail() {
    local bytes ro at=/tmp/fail.$1
    rm -f "$at" "$at".*
    read -r bytes < "/sys/block/$1/queue/logical_block_size"
    read -r ro < "/sys/block/$1/ro"
    case $1 in sr*) ro=1 ;; esac
    mkfifo "$at.go" || return 1
    echo "$bytes $(($2 * 512 / bytes)) $ro" > "$at.where"
    (
        exec 3<> "$at.go"
        : > "$at.ready"
        set -- "$1" "$bytes" "$(($2 * 512 / bytes))"
        if [ "$ro" = 1 ]; then
            read -r _ <&3
            dd if="/dev/$1" of=/dev/null bs="$2" skip="$3" count=1 iflag=direct
        else
            dd of="/dev/$1" bs="$2" seek="$3" count=1 oflag=direct iflag=fullblock conv=notrunc <&3
        fi
        echo "$?" > "$at.new"
        mv "$at.new" "$at"
    ) < /dev/null > "$at.dd" 2>&1 &
    bind_wait "$at.ready" 5
}
# fail_now: make the requests that are ready, one right behind the other and without a child process, since the first
# that fails stops the machine. Each is given 4096 bytes, eight equal lines, of which it takes as many as a sector has.
fail_now() {
    local pipe line
    line=$(printf '%511s' 'postload: this request was held back')
    for pipe in /tmp/fail.*.go; do
        [ ! -p "$pipe" ] || printf '%s\n' "$line" "$line" "$line" "$line" "$line" "$line" "$line" "$line" 1<> "$pipe"
    done
}
# disk_failed DISK: status 0 when the request was answered well, and what it wrote is on the disk; 3 while it waits.
disk_failed() {
    local status bytes at ro line
    read -r status 2> /dev/null < "/tmp/fail.$1" || { echo "the request of $1 waits"; return 3; }
    if [ "$status" != 0 ]; then
        echo "the request of $1 failed with status $status:"
        cat "/tmp/fail.$1.dd"
        return 1
    fi
    read -r bytes at ro < "/tmp/fail.$1.where"
    [ "$ro" = 0 ] || return 0
    dd if="/dev/$1" of="/tmp/fail.$1.got" bs="$bytes" skip="$at" count=1 iflag=direct 2> "/tmp/fail.$1.dd" || {
        cat "/tmp/fail.$1.dd"
        return 1
    }
    read -r line < "/tmp/fail.$1.got"
    case $line in
    *'this request was held back') ;;
    *) echo "what the request of $1 wrote is not on the disk"; return 1 ;;
    esac
}

# The user network of QEMU answers at 10.0.2.2, once the link is up: virtio's is at once, that of an e1000e after seconds.
net_up() {
    ip link set eth0 up || { echo "net_up: eth0 cannot be set up" >&2; return 1; }
    ip addr add 10.0.2.15/24 dev eth0 || { echo "net_up: eth0 takes no address" >&2; return 1; }
    # by the clock: a ping over a link that is down may fail at once, or after its second
    read -r now _ < /proc/uptime
    end=$((${now%%.*} + 30))
    while [ "${now%%.*}" -lt "$end" ]; do
        ping -c 1 -W 1 10.0.2.2 > /dev/null 2>&1 && return 0
        [ "$(cat /sys/class/net/eth0/carrier 2> /dev/null)" = 1 ] || sleep 1
        read -r now _ < /proc/uptime
    done
    echo "net_up: no answer of 10.0.2.2 within 30 s; link of eth0: $(cat /sys/class/net/eth0/operstate)" >&2
    return 1
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
        # an idle one gets a packet now and then
        [ "$(cat /sys/class/net/eth0/statistics/rx_packets)" -gt "$((before + 9))" ] && return 0
        tries=$((tries - 1))
    done
    echo "net_moves: fewer than ten packets came back within 5 s" >&2
    return 1
}

# log_mark NAME: a line in the kernel's log; log_new: what the log has behind the last such line.
log_mark() { echo "postload: mark $1" > /dev/kmsg; }
log_new() {
    dmesg | awk '/postload: mark / { n = 0; next } { line[n++] = $0 } END { for (i = 0; i < n; i++) print line[i] }' |
        tail -n 200
}

# suspend: suspend the machine to RAM (S3), and come back when it was woken. Status 3 where it was not to be: the driver
# that refused as "refused PATH", its device in sysfs, and the words of the kernel behind that.
suspend() {
    local kinds= line dev
    read -r kinds 2> /dev/null < /sys/power/mem_sleep
    case $kinds in *deep*) ;; *) echo "the machine has no S3 for this kernel: ${kinds:-nothing} in mem_sleep"; return 3 ;; esac
    echo deep > /sys/power/mem_sleep
    log_mark suspended
    echo mem > /sys/power/state && return 0
    line=$(log_new | grep ': PM: failed to ' | tail -n 1)
    dev=${line%%: PM: failed to *} dev=${dev##* }
    [ -z "$dev" ] || echo "refused $(find /sys/devices -name "$dev" -type d | head -n 1)"
    echo "${line:-$(log_new | tail -n 3)}"
    return 3
}
# device_path NAME SLOT: where sysfs has a device, which auto_bind found where it is on no PCI bus.
device_path() (
    path=
    [ ! -f "/tmp/auto.$1/state" ] || . "/tmp/auto.$1/state"
    [ -z "$2" ] || { cd -P "/sys/bus/pci/devices/$2" && path=$PWD; }
    echo "$path"
)

# clock: heartbeat, seconds since boot, seconds since the epoch.
clock() {
    read -r up _ < /proc/uptime
    echo "clock $(beat) $up $(date +%s)"
}

# pattern WORD DISK: 256 KiB of lines of 64 bytes, each with its number.
pattern() {
    awk -v "head=postload $1 $2" 'BEGIN { for (i = 0; i < 4096; i++) printf "%-55s%08d\n", head, i }'
}

# pattern_write DISK: the pattern at 32 MiB, far from what disk_busy touches.
pattern_write() {
    pattern pattern "$1" > "/tmp/want.$1" || return 1
    dd if="/tmp/want.$1" of="/dev/$1" bs=64k seek=512 oflag=direct conv=notrunc 2> "/tmp/dd.$1" || {
        echo "pattern_write: the pattern cannot be written to $1:" >&2
        cat "/tmp/dd.$1" >&2
        return 1
    }
}

# same_blocks DISK BLOCK: whether 256 KiB on the disk, read past all caches, are those of /tmp/want.DISK.
same_blocks() {
    dd if="/dev/$1" of="/tmp/got.$1" bs=64k skip="$2" count=4 iflag=direct 2> "/tmp/dd.$1" || {
        cat "/tmp/dd.$1"
        return 1
    }
    cmp "/tmp/want.$1" "/tmp/got.$1"
}

# disk_life DISK: the old pattern is there, and a new one that goes through the page cache lands beside it.
disk_life() {
    pattern pattern "$1" > "/tmp/want.$1"
    echo "reading the pattern of $1"
    same_blocks "$1" 512 || return 1
    pattern written "$1" > "/tmp/want.$1"
    echo "writing to $1"
    dd if="/tmp/want.$1" of="/dev/$1" bs=64k seek=520 conv=notrunc,fsync 2> "/tmp/dd.$1" || {
        cat "/tmp/dd.$1"
        return 1
    }
    echo "reading back what was written to $1"
    same_blocks "$1" 520
}

# net_life: small and large packets are answered.
net_life() {
    echo "small pings to 10.0.2.2"
    ping -q -c 3 -i 0.05 -W 3 10.0.2.2 || return 1
    echo "large pings to 10.0.2.2"
    ping -q -c 3 -i 0.05 -W 3 -s 1400 10.0.2.2
}

# life_begin NAME LINE: a check in the background: a disk that hangs must not take the console with it.
# life_state NAME...: the status of each, or `running`; life_said NAME: what it printed.
life_begin() {
    rm -f "/tmp/life.$1.rc"
    (
        eval "$2" > "/tmp/life.$1.out" 2>&1
        echo "$?" > "/tmp/life.$1.new"
        mv "/tmp/life.$1.new" "/tmp/life.$1.rc"
    ) < /dev/null > /dev/null 2>&1 &
}
life_state() {
    for name in "$@"; do
        state=running
        [ ! -f "/tmp/life.$name.rc" ] || read -r state < "/tmp/life.$name.rc"
        echo "life $name $state"
    done
}
life_said() { tail -n 8 "/tmp/life.$1.out"; }
