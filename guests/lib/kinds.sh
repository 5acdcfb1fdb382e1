# SPDX-License-Identifier: GPL-2.0-or-later
# What each kind of thing that auto_look finds can be made to do. For a kind K:
#   auto_ready_K NAME WHAT  behind the drivers: prepare it; status 3, and why is set, where it cannot be made to move
#   auto_busy_K NAME WHAT   begin a workload by auto_spawn or auto_every
#   auto_count_K NAME WHAT  set count, which moves with the workload; without it the rounds of auto_every count
#   auto_gone_K NAME WHAT   whether it is there no more
#   auto_hold_K NAME WHAT   have the workload stand still where the machine can be saved, while /tmp/auto.NAME/hold is there
#   auto_stop_K NAME WHAT   what is to do when the workload has ended
#   auto_life_K NAME WHAT   what a life check asks beside that

# block: direct reads and writes at its start, of what is read-only reads.
auto_ready_block() {
    local size
    read -r size < "/sys/block/$2/size"
    # a floppy is looked at when it is opened
    [ "$size" -ge 64 ] || dd if="/dev/$2" of=/dev/null bs=4k count=1 2> /dev/null
    read -r size < "/sys/block/$2/size"
    [ "$size" -ge 64 ] || { why="$2 has no medium"; return 3; }
    auto_page "$1" "$2"
    if [ "$writable" = 1 ]; then
        dd if=/dev/urandom of="$page" bs=4k count=1 2> /dev/null
        dd if="$page" of="/dev/$2" bs=4k seek="$at" oflag=direct conv=notrunc 2> "$page.dd" || { cat "$page.dd"; return 1; }
        dd if="/dev/$2" of="$page.got" bs=4k skip="$at" count=1 iflag=direct 2> "$page.dd" || { cat "$page.dd"; return 1; }
        # a medium that keeps nothing cannot be asked for it later
        cmp -s "$page" "$page.got" && : > "$page.keeps"
        return 0
    fi
    dd if="/dev/$2" of="$page" bs=4k skip="$at" count=1 iflag=direct 2> "$page.dd" || { why="$2 cannot be read"; return 3; }
    : > "$page.keeps"
}
# auto_page NAME DISK: sets page (the file that its last page is compared with), at (that page), writable.
auto_page() {
    local size ro
    page=/tmp/auto.$1/page.$2
    read -r size < "/sys/block/$2/size"
    read -r ro < "/sys/block/$2/ro"
    case $2 in sr*) ro=1 ;; esac
    at=$((size / 8 - 1)) writable=$((1 - ro))
}
auto_busy_block() {
    auto_page "$1" "$2"
    local count=$((at / 32)) write=
    [ "$count" -le 32 ] || count=32
    [ "$count" -gt 0 ] || count=1
    [ "$writable" = 0 ] || write='dd if=/dev/zero of=$0 bs=64k count=$1 oflag=direct conv=notrunc;'
    # without its disk it would make an ordinary file of that name, which the disk's own does not replace
    auto_spawn "$1" "renice -n 19 -p \$\$; while [ -b \$0 ]; do $write dd if=\$0 of=/dev/null bs=64k count=\$1 iflag=direct; done" "/dev/$2" "$count"
}
auto_stop_block() {
    [ -b "/dev/$2" ] || rm -f "/dev/$2"
}
# it counts nothing then, which is another number than before
auto_gone_block() {
    [ ! -e "/sys/block/$2" ]
}
auto_count_block() {
    local reads writes
    read -r reads _ _ _ writes _ < "/sys/block/$2/stat"
    count=$((reads + writes))
}
auto_life_block() {
    auto_page "$1" "$2"
    [ -e "$page.keeps" ] || return 0
    if [ "$writable" = 1 ]; then
        dd if=/dev/urandom of="$page" bs=4k count=1 2> /dev/null
        dd if="$page" of="/dev/$2" bs=4k seek="$at" oflag=direct conv=notrunc 2> "$page.dd" || { cat "$page.dd"; return 1; }
    fi
    dd if="/dev/$2" of="$page.got" bs=4k skip="$at" count=1 iflag=direct 2> "$page.dd" || { cat "$page.dd"; return 1; }
    cmp "$page" "$page.got"
}

# net: a network namespace of its own, so that each finds its far end at 10.0.2.2; pings, once the link is up.
auto_ready_net() {
    local type pid tries=100
    read -r type < "/sys/class/net/$2/type"
    [ "$type" = 1 ] || { why="$2 is no Ethernet, and busybox cannot set it up"; return 3; }
    if [ -z "$net" ]; then
        # silent until it is told: Linux 6.1's am53c974 panics when a shared interrupt comes while it is being bound
        unshare -n sh -c 'echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6; echo $$ > "$0/net"; exec sleep 1000000000' "/tmp/auto.$1" < /dev/null > /dev/null 2>&1 &
        until [ -s "/tmp/auto.$1/net" ]; do
            tries=$((tries - 1))
            [ "$tries" -gt 0 ] || { echo "no network namespace came within 5 s"; return 1; }
            nap
        done
        read -r net < "/tmp/auto.$1/net"
    fi
    ip link set dev "$2" netns "$net" || { echo "$2 cannot be moved into a network namespace"; return 1; }
    nsenter -t "$net" -n sh -c 'ip link set "$0" up && ip addr add 10.0.2.15/24 dev "$0"' "$2" 2> /tmp/auto.said || {
        # an e100 of some models without its firmware
        read -r why < /tmp/auto.said
        why="$2 cannot be set up: $why"
        return 3
    }
}
auto_busy_net() {
    auto_spawn "$1" 'nsenter -t $0 -n sh -c "until ping -c 1 -W 1 10.0.2.2; do sleep 0.2; done
        ping -q -i 0.02 -s 56 10.0.2.2 & exec ping -q -i 0.02 -s 1400 10.0.2.2"' "$net"
}
auto_count_net() {
    local name received
    while IFS=' :' read -r name _ received _; do
        [ "$name" != "$2" ] || count=$received
    done < "/proc/$net/net/dev"
}
auto_life_net() {
    nsenter -t "$net" -n ping -q -c 3 -i 0.05 -W 3 -s 1000 10.0.2.2
}

# sound: silence, by the interface that wants no ioctl; of a card that plays nothing, what it records.
auto_ready_sound() {
    local card=${2#pcmC}
    card=${card%%D*}
    case $2 in
    *D0p) ;;
    *D0c) [ ! -e "/sys/class/sound/pcmC${card}D0p" ] || { why="of a sound card that plays nothing is recorded"; return 3; } ;;
    *) why="of a sound card the first device alone is used"; return 3 ;;
    esac
    auto_modprobe snd_pcm_oss || { echo "$said"; return 1; }
    bind_wait "$(auto_dsp "$card")" 5
}
auto_dsp() {
    if [ "$1" = 0 ]; then echo /dev/dsp; else echo "/dev/dsp$1"; fi
}
auto_busy_sound() {
    local card=${2#pcmC}
    case $2 in
    *p) auto_spawn "$1" 'exec cat /dev/zero > "$0"' "$(auto_dsp "${card%%D*}")" ;;
    *) auto_spawn "$1" 'exec cat "$0" > /dev/null' "$(auto_dsp "${card%%D*}")" ;;
    esac
}
auto_count_sound() {
    local card=${2#pcmC} word value
    count=0
    while read -r word _ value; do
        [ "$word" != hw_ptr ] || count=$value
    done < "/proc/asound/card${card%%D*}/pcm0${2##*D0}/sub0/status"
}

# tty: a serial line whose far end takes all.
auto_busy_tty() {
    auto_spawn "$1" 'renice -n 19 -p $$; stty raw -echo 115200 < "$0"; exec cat /dev/zero > "$0"' "/dev/$2"
}
auto_count_tty() {
    local line number
    case $2 in ttyUSB*) auto_urbs "/sys/class/tty/$2/device"; return ;; esac
    count=0
    while read -r number line; do
        [ "$number" = "${2#ttyS}:" ] || continue
        case $line in *tx:*) line=${line#*tx:} count=${line%% *} ;; esac
    done < /proc/tty/driver/serial
}
# auto_urbs FOLDER: sets count to the requests of the USB device that a folder in sysfs is below; status 1 for no such.
auto_urbs() {
    count=
    cd -P "$1" || return 1
    while [ ! -f urbnum ] && [ "$PWD" != /sys ]; do cd ..; done
    [ ! -f urbnum ] || read -r count < urbnum
    cd /
    [ -n "$count" ]
}

# input: the lamps of a keyboard; only the host moves a mouse.
auto_ready_input() {
    local lamps
    read -r lamps < "/sys/class/input/$2/device/capabilities/led"
    [ "$lamps" != 0 ] || { why="$2 has no lamps, and only the host can move it"; return 3; }
}
auto_busy_input() {
    # struct input_event: 16 bytes of time, EV_LED (0x11), LED_CAPSL (1), off or on
    auto_every "$1" "input.$2" 'for on in 0 1; do
        printf "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\21\0\1\0\\$on\0\0\0" > "$1" || exit 1
        printf "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" > "$1"
        sleep 0.05
        done' "/dev/input/$2"
}
auto_count_input() {
    auto_urbs "/sys/class/input/$2/device" && return
    case $path in
    */pci*) auto_irqs ;;
    *) auto_rounds "$1" "input.$2" ;;
    esac
}

# fb: pictures, and the screen dark and lit again.
auto_busy_fb() {
    auto_every "$1" "fb.$2" 'dd if=/dev/urandom of="$1" bs=16k count=1 conv=notrunc || exit 1
        echo 4 > "/sys/class/graphics/$2/blank"; sleep 0.05; echo 0 > "/sys/class/graphics/$2/blank"' "/dev/$2" "$2"
}

# watchdog: fed, and told to stop when the workload ends: the letter V, as the kernel's documentation has it.
auto_busy_watchdog() {
    auto_spawn "$1" 'exec 3> "$1" || exit 1
        trap "printf V >&3; exit" TERM
        while :; do printf . >&3 || exit 1; n=$((n + 1)); echo "$n" > "$0"; sleep 0.2; done' \
        "/tmp/auto.$1/watchdog.$2" "/dev/$2"
}

# ipmi: the watchdog of a BMC, fed; its driver counts what the BMC answered.
auto_ready_ipmi() {
    auto_modprobe ipmi_watchdog && bind_wait /dev/watchdog 5 2> /dev/null || { why="its BMC has no watchdog"; return 3; }
}
auto_busy_ipmi() { auto_busy_watchdog "$1" watchdog; }
auto_count_ipmi() { read -r count < "$path/complete_transactions"; }

# lp: a printer that takes all.
auto_busy_lp() {
    auto_every "$1" "lp.$2" 'dd if=/dev/zero of="$1" bs=64 count=1 || exit 1; sleep 0.02' "/dev/$2"
}

# rtc: the time read, and an alarm set in it.
auto_busy_rtc() {
    auto_every "$1" "rtc.$2" 'read -r t < "$1/since_epoch" && echo 0 > "$1/wakealarm" && echo +2 > "$1/wakealarm" || exit 1
        sleep 0.05' "/sys/class/rtc/$2"
}
auto_stop_rtc() { echo 0 > "/sys/class/rtc/$2/wakealarm"; }

# tpm: TPM2_GetRandom of 8 bytes.
auto_busy_tpm() {
    auto_every "$1" "tpm.$2" 'exec 3<> "$1" || exit 1
        printf "\200\1\0\0\0\14\0\0\1\173\0\10" >&3 && dd bs=64 count=1 <&3 || exit 1
        exec 3>&-' "/dev/$2"
}

# rng: reads, with this device as the kernel's source; there is one source at a time, and interrupts tell whose it was.
auto_busy_rng() {
    local driver=/sys/bus/virtio/drivers/virtio_rng number place=0 other
    number=${2##*/virtio}
    for other in "$driver"/virtio*; do
        [ "${other##*/virtio}" -ge "$number" ] || place=$((place + 1))
    done
    auto_spawn "$1" 'while :; do echo "virtio_rng.$0" > /sys/class/misc/hw_random/rng_current
        dd if=/dev/hwrng of=/dev/null bs=64 count=4; sleep 0.02; done' "$place"
}
auto_count_rng() { auto_irqs; }

# port: of a virtio serial device; what the host took of it is counted in debugfs.
auto_ready_port() {
    local told=/sys/kernel/debug/virtio-ports/$2 node
    [ -d /sys/kernel/debug/virtio-ports ] || mount -t debugfs debug /sys/kernel/debug || return 1
    bind_wait "$told" 2 || return 1
    auto_port "$2"
    [ -n "$node" ] || { why="the host has its end of $2 closed"; return 3; }
}
# auto_port PORT: sets node, the file to write to, if any.
auto_port() {
    local word value connected=0 console=no count
    node=
    while read -r word value; do
        case $word in host_connected:) connected=$value ;; is_console:) console=$value ;; esac
    done < "/sys/kernel/debug/virtio-ports/$1"
    if [ "$console" = yes ]; then
        auto_console "$1"
    elif [ "$connected" = 1 ]; then
        node=/dev/$1
    fi
}
# auto_console PORT: sets node to the terminal that its bytes go through; nothing else tells the two together.
auto_console() {
    local first number=0
    auto_count_port '' "$1"
    first=$count
    while [ "$number" -lt 16 ]; do
        node=/dev/hvc$number number=$((number + 1))
        { echo > "$node"; } 2> /dev/null || continue
        nap
        auto_count_port '' "$1"
        [ "$count" = "$first" ] || return 0
    done
    node=
}
auto_busy_port() {
    local node
    auto_port "$2"
    auto_every "$1" "port.$2" 'dd if=/dev/zero of="$1" bs=256 count=4 conv=notrunc || exit 1; sleep 0.02' "$node"
}
auto_count_port() {
    local word value
    while read -r word value; do
        [ "$word" != bytes_sent: ] || count=$value
    done < "/sys/kernel/debug/virtio-ports/$2"
}

# share: a folder of the host's by 9p, mounted for each round. QEMU does not save a machine that has it mounted
# (hw/9pfs/9p.c: v9fs_attach), so that the rounds stand still behind a check.
auto_ready_share() {
    auto_modprobe 9p 9pnet_virtio || { echo "$said"; return 1; }
}
auto_busy_share() {
    local tag folder=/tmp/auto.$1/share.d
    # no newline behind it
    read -r tag < "$2/mount_tag" || [ -n "$tag" ] || return 1
    mkdir -p "$folder"
    rm -f "/tmp/auto.$1/hold"
    auto_every "$1" "share.${2##*/}" 'while [ -e "$3/hold" ]; do : > "$3/held"; sleep 0.05; done
        rm -f "$3/held"
        mount -t 9p -o trans=virtio,version=9p2000.L "$1" "$2" && ls "$2" && umount "$2" || exit 1' "$tag" "$folder" "/tmp/auto.$1"
}
auto_hold_share() {
    rm -f "/tmp/auto.$1/held"
    : > "/tmp/auto.$1/hold"
    bind_wait "/tmp/auto.$1/held" 10
}
auto_stop_share() {
    rm -f "/tmp/auto.$1/hold"
    # it may have been ended between the two
    umount "/tmp/auto.$1/share.d" 2> /dev/null || :
}
