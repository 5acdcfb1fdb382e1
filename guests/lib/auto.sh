# SPDX-License-Identifier: GPL-2.0-or-later
# Commands of devices that nobody wrote any for: drivers are found by modalias, and the workload by what stands below
# the device in sysfs. What is known of a device called NAME is kept in /tmp/auto.NAME:
#   state     the shell's variables path (in sysfs), want, work, why and net
#   units     what was unbound: ID DRIVER, and a driver's name may have spaces
#   pids      process groups of the workload
#   seen      what each part of the workload had counted when it was begun, or looked at last; a line for each
#   KIND.WHAT what a workload counts, where no counter of the kernel tells whether it moves
# Status 0: done; 3: this device does not get so far, and what was printed says why in a line; else it failed.
# Under TCG each child process costs some 10 ms: what waits, reads or compares does it within the shell.

# auto_none WORDS: why this device does not get so far.
auto_none() {
    echo "$*"
    return 3
}

# auto_bind NAME SLOT [HINT]: find the device and its driver, wait for what shows up below it, see what it can do, and
# print the drivers of all that is there: |PATH=DRIVER of each, the device itself without a path.
# SLOT is a PCI address. For what is on no PCI bus it is empty, and HINT has BUS:PATTERN[@DRIVER...]: a name on a bus or
# in a class of sysfs, or pnp:ID, and the drivers to load first where nothing asks for them by a modalias.
auto_bind() {
    mkdir -p "/tmp/auto.$1"
    auto_place "$2" "$3" || return
    auto_alone || return
    local work why net= drivers
    auto_want
    auto_driver || return
    auto_settle || return
    auto_ready "$1" || return
    auto_keep "$1"
    echo "drivers:$drivers"
}

# auto_driver: the driver of path itself, which some kernels probe behind modprobe's back.
auto_driver() {
    local alias=$path
    [ ! -f "$path/modalias" ] || read -r alias < "$path/modalias"
    ! auto_passes || return 0
    # what the kernel itself asks for: codecs, protocols
    echo /bin/modprobe > /proc/sys/kernel/modprobe
    [ -e "$path/driver" ] || auto_modprobe "$alias" || {
        case $said in
        *' not found '*) auto_none "no driver of this guest's kernel takes $alias" ;;
        *'did not end'*) echo "$said"; return 4 ;;
        *) echo "$said"; return 1 ;;
        esac
        return
    }
    bind_wait "$path/driver" 5 2> /dev/null || auto_none "the driver for $alias does not take it"
}

# auto_passes: whether path is a bridge with something behind it, which needs no driver to pass things on.
auto_passes() {
    local class= below
    [ ! -f "$path/class" ] || read -r class < "$path/class"
    case $class in 0x0604*) ;; *) return 1 ;; esac
    for below in "$path"/????:??:??.?; do
        [ ! -e "$below" ] || return 0
    done
    return 1
}

# auto_modprobe NAME...: modprobe, which comes back with its driver's probe, or never; said is its first line. What is
# loaded behind one that never does waits for it as well: a command that met one ends with 4, and its guest is given up.
auto_modprobe() {
    local pid status tries=800
    rm -f /tmp/auto.status
    said=
    (
        modprobe -a "$@" > /tmp/auto.said 2>&1
        echo "$?" > /tmp/auto.status
    ) &
    until read -r status 2> /dev/null < /tmp/auto.status; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || { said="modprobe $* did not end within 40 s"; return 1; }
        nap
    done
    read -r said < /tmp/auto.said || :
    return "$status"
}

# auto_keep NAME: write down what is known.
auto_keep() {
    echo "path='$path' want='$want' work='$work' why='$why' net='$net'" > "/tmp/auto.$1/state"
}

# auto_known NAME: read it back.
auto_known() {
    path= want= work= why= net=
    if [ ! -f "/tmp/auto.$1/state" ]; then
        auto_none "$1 was not bound"
        return
    fi
    . "/tmp/auto.$1/state"
}

# auto_place SLOT HINT: sets path.
auto_place() {
    path=
    if [ -n "$1" ]; then
        cd -P "/sys/bus/pci/devices/$1" 2> /dev/null || {
            if [ -e "/sys/class/pci_bus/${1%:*}" ]; then
                echo "there is no PCI device $1"
                return 1
            fi
            # behind a host bridge that the kernel did not take
            auto_none "the guest's kernel does not see it: there is no PCI bus ${1%:*}"
            return
        }
    else
        case $2 in
        *:*) auto_hinted "${2%%:*}" "${2#*:}" || return ;;
        *) auto_none "it is on no PCI bus, and nothing says where the guest has it"; return ;;
        esac
    fi
    path=$PWD
    cd /
}

# auto_hinted BUS PATTERN[@DRIVER...]: goes to the folder in sysfs.
auto_hinted() {
    local driver tries=1 pattern=${2%%@*} drivers=${2#"${2%%@*}"}
    while [ -n "$drivers" ]; do
        drivers=${drivers#@}
        driver=${drivers%%@*} drivers=${drivers#"${drivers%%@*}"}
        auto_modprobe "$driver" || {
            case $said in *'did not end'*) echo "$said"; return 4 ;; esac
            auto_none "this guest's kernel has no driver $driver, or it found no device"
            return
        }
    done
    # a driver may go on looking for its devices when it has been loaded
    [ "$pattern" = "$2" ] || tries=60
    until auto_found "$1" "$pattern"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || { auto_none "the guest has no $1 $pattern"; return; }
        nap
    done
}

# auto_found BUS PATTERN: goes to the folder in sysfs, or not.
auto_found() {
    local found id
    for found in /sys/bus/$1/devices/$2 /sys/class/$1/$2/device /sys/class/$1/$2; do
        [ -e "$found" ] && cd -P "$found" && return
    done
    for found in /sys/bus/$1/devices/*/id; do
        read -r id 2> /dev/null < "$found" && [ "$id" = "$2" ] && cd -P "${found%/id}" && return
    done
    return 1
}

# auto_alone: whether nothing else has its ports. Two IDE controllers in compatibility mode have the same ones, and a
# driver that asks both waits for answers that the other one got.
auto_alone() {
    local class other
    [ -f "$path/class" ] || return 0
    read -r class < "$path/class"
    case $class in 0x01010[0a] | 0x01018[0a]) ;; *) return 0 ;; esac
    for other in /sys/bus/pci/devices/*; do
        [ "${other##*/}" != "${path##*/}" ] || continue
        read -r class < "$other/class"
        case $class in
        0x01010[0a] | 0x01018[0a]) auto_none "the IDE controller ${other##*/} has the same I/O ports"; return ;;
        esac
    done
}

# auto_want: sets want, the kind of thing that a PCI device, or one behind a bridge, is going to have below it, by its class.
auto_want() {
    local class= found=$path
    want=
    if auto_passes; then for found in "$path"/????:??:??.?; do :; done; fi
    [ ! -f "$found/class" ] || read -r class < "$found/class"
    case $class in
    0x01* | 0x0805*) want=block ;;
    0x02*) want=net ;;
    0x0401* | 0x0403*) want=sound ;;
    0x0c03*) want=usb ;;
    0x0780*) want=port ;;
    esac
}

# auto_look: one look at all below path. Sets work (KIND:WHAT of each thing that can be made to move), fresh (modaliases
# that a module may be for), bare (those of them that have no driver), usb (whether there is a device on a USB bus),
# drivers (of each that is bound, as auto_bind prints them), and want where a USB device says what it is.
auto_look() {
    local found node alias below
    work= fresh= bare= usb= drivers=
    auto_look_driver "$path"
    [ ! -e "$path/complete_transactions" ] || work=" ipmi:${path##*/}"
    for found in $(find "$path" -name modalias -o -type d 2> /dev/null); do
        below=${found#"$path"}
        case $below in
        */modalias)
            read -r alias < "$found" || continue
            node=${found%/modalias}
            if [ ! -e "$node/driver" ]; then
                [ "$node" = "$path" ] && auto_passes || auto_look_bare "$alias"
            elif [ "$node" != "$path" ]; then
                auto_look_driver "$node"
            fi
            auto_look_alias "$alias"
            ;;
        */block/*/* | */net/*/* | */nvme/nvme*/nvme*n*/* | *boot[01] | *rpmb | */tty/tty*/* | */event*/*) ;;
        */graphics/fb*/* | */watchdog/watchdog*/* | */tpm/tpm*/* | */virtio-ports/vport*/* | */pcmC*/*) ;;
        */block/*) work="$work block:${found##*/}" ;;
        */nvme/nvme*/nvme*c*n*) work="$work block:nvme${found##*/nvme}" ;;
        */nvme/nvme*/nvme*n*) work="$work block:${found##*/}" ;;
        */net/*) work="$work net:${found##*/}" ;;
        */mmc_host/mmc*/mmc*:*) auto_look_card ;;
        */pcmC*D*[cp]) work="$work sound:${found##*/}" ;;
        */printer/lp*) work="$work lp:${found##*/}" ;;
        */rtc/rtc*/*) ;;
        */rtc/rtc*) work="$work rtc:${found##*/}" ;;
        */tty/ttyS* | */tty/ttyUSB*) work="$work tty:${found##*/}" ;;
        */input/input*/event*) work="$work input:${found##*/}" ;;
        */graphics/fb*) work="$work fb:${found##*/}" ;;
        */watchdog/watchdog*) work="$work watchdog:${found##*/}" ;;
        */tpm/tpm[0-9]*) work="$work tpm:${found##*/}" ;;
        */virtio-ports/vport*) work="$work port:${found##*/}" ;;
        esac
    done
}

# auto_look_bare ALIAS: a node without a driver; the handlers of input devices are none, and leave no trace of this kind.
auto_look_bare() {
    fresh="$fresh $1"
    case $1 in input:*) ;; *) bare="$bare $1" ;; esac
}

# auto_look_driver FOLDER: the driver of a device, if any.
auto_look_driver() {
    cd -P "$1/driver" 2> /dev/null || return 0
    drivers="$drivers|${1#"$path"}=${PWD##*/}"
    cd /
}

# auto_look_card: a card in a slot says what it is to udev alone.
auto_look_card() {
    case ${found##*/} in mmc*:*) ;; *) return 0 ;; esac
    if [ -e "$found/driver" ]; then auto_look_driver "$found"; else auto_look_bare mmc:block; fi
}

# auto_look_alias ALIAS: what is known by its modalias alone.
auto_look_alias() {
    case $1 in
    usb:v1D6Bp*dc09*) ;; # a root hub
    usb:*ic08*) usb=1 want=block ;;
    usb:*ic01*) usb=1 want=sound ;;
    usb:*ic02*) usb=1 want=net ;;
    usb:*ic03*) usb=1 want=input ;;
    usb:*) usb=1 ;;
    virtio:d00000004v*) work="$work rng:${found%/modalias}" ;;
    virtio:d00000009v*) work="$work share:${found%/modalias}" ;;
    # these two do not stand below their device
    pci:v00008086d000025ABsv*) auto_look_watchdog i6300ESB ;;
    platform:ib700wdt) work="$work watchdog:watchdog" ;;
    esac
}

# auto_look_watchdog WORD: the watchdog whose identity begins so.
auto_look_watchdog() {
    local dog identity
    for dog in /sys/class/watchdog/watchdog*; do
        [ -e "$dog/identity" ] || continue
        read -r identity < "$dog/identity"
        case $identity in "$1"*) work="$work watchdog:${dog##*/}" ;; esac
    done
}

# auto_settle [LEAST]: look and load drivers until what is wanted is there, LEAST things at least, and nothing new comes;
# at most some seconds.
auto_settle() {
    local asked=' ' now end alias new least=${1:-1}
    read -r now _ < /proc/uptime
    end=$((${now%%.*} + 8))
    while :; do
        auto_look
        new=
        for alias in $fresh; do
            case $asked in *" $alias "*) ;; *) new="$new $alias" asked="$asked$alias " ;; esac
        done
        if [ -n "$new" ]; then
            # not all of them have a module
            auto_modprobe $new || case $said in *'did not end'*) echo "$said"; return 4 ;; esac
            continue
        fi
        auto_quiet || continue
        set -- $work
        case " $work" in *" $want:"*) [ $# -lt "$least" ] || break ;; esac
        [ -n "$want" ] || break
        [ "$want" != usb ] || [ -z "$usb" ] || break
        read -r now _ < /proc/uptime
        [ "${now%%.*}" -lt "$end" ] || break
    done
    [ -z "$bare" ] || { auto_none "no driver of this guest's kernel takes$bare"; return; }
    [ "$want" != usb ] || [ -n "$usb" ] || auto_none "nothing is plugged into its USB bus"
}

# auto_quiet: whether nothing comes or goes for a while, where things come by themselves and not with their driver.
auto_quiet() {
    local ticks=0 last now
    case $want in
    '' | net) return 0 ;;
    usb | input) ticks=6 ;;
    *) ticks=3 ;;
    esac
    read -r last < /sys/kernel/uevent_seqnum
    while [ "$ticks" -gt 0 ]; do
        nap
        read -r now < /sys/kernel/uevent_seqnum
        [ "$now" = "$last" ] || return 1
        ticks=$((ticks - 1))
    done
}

# auto_ready NAME: prepare what was found for its workload, and leave out what cannot be made to move: why says so.
auto_ready() {
    local item kind what all=$work
    work= why=
    for item in $all; do
        kind=${item%%:*} what=${item#*:}
        if command -v "auto_ready_$kind" > /dev/null; then
            "auto_ready_$kind" "$1" "$what" || { [ "$?" = 3 ] && continue; return 1; }
        fi
        work="$work $kind:$what"
    done
    [ -n "$work$why" ] || why="nothing below $path is of a kind that the guest can make move"
}

# auto_busy NAME: begin the workload.
auto_busy() {
    auto_known "$1" || return
    [ -n "$work" ] || { auto_none "$why"; return; }
    local item
    for item in $work; do
        "auto_busy_${item%%:*}" "$1" "${item#*:}" || return 1
    done
    auto_note "$1"
}

# auto_note NAME: write down what is counted now.
auto_note() {
    local item
    for item in $work; do
        auto_count "$1" "$item"
        echo "$count"
    done > "/tmp/auto.$1/seen"
}

# auto_check NAME: whether each part of it has moved since it was begun, or looked at last, and waits for that: the first
# time it may be the last of what its driver did. Dozens of them are looked at twice one behind the other, and then
# nobody is waited for. Behind it stands still what the machine cannot be saved with, until it is looked at again.
auto_check() {
    auto_known "$1" || return
    [ -n "$work" ] || { auto_none "$why"; return; }
    [ -e "/tmp/auto.$1/seen" ] || auto_note "$1"
    [ ! -e "/tmp/auto.$1/hold" ] || rm "/tmp/auto.$1/hold"
    local item seen
    for item in $work; do
        read -r seen <&3
        auto_moves "$1" "$item" "$seen" || return
    done 3< "/tmp/auto.$1/seen"
    auto_note "$1"
    for item in $work; do
        command -v "auto_hold_${item%%:*}" > /dev/null || continue
        "auto_hold_${item%%:*}" "$1" "${item#*:}" || return 1
    done
}

# auto_moves NAME KIND:WHAT COUNT: waits until its count is another one.
auto_moves() {
    local tries=400
    while :; do
        auto_there "$1" "$2" || return
        auto_count "$1" "$2"
        [ "$count" = "$3" ] || return 0
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || { echo "the workload of $2 did not move within 20 s"; return 1; }
        nap
    done
}

# auto_there NAME KIND:WHAT: whether it is there still. Where the kernel has given up the USB controller in front of it,
# the workload cannot be: status 3, and the kernel's words.
auto_there() {
    local kind=${2%%:*} what=${2#*:} died
    command -v "auto_gone_$kind" > /dev/null && "auto_gone_$kind" "$1" "$what" || return 0
    died=$(dmesg | grep -F " ${path##*/}: " | grep -B 1 'HC died' | head -n 1)
    [ -z "$died" ] || { auto_none "its controller dies under the workload: ${died#*] }"; return; }
    echo "$what went away under the workload"
    return 1
}

# auto_count NAME KIND:WHAT: sets count, which moves with the workload.
auto_count() {
    local kind=${2%%:*} what=${2#*:}
    count=
    if command -v "auto_count_$kind" > /dev/null; then
        "auto_count_$kind" "$1" "$what"
    else
        auto_rounds "$1" "$kind.${what##*/}"
    fi
}

# auto_rounds NAME KIND.WHAT: sets count to what auto_every has written, which is empty for an instant at each round.
auto_rounds() {
    count=0
    [ -e "/tmp/auto.$1/$2" ] || return 0
    until read -r count < "/tmp/auto.$1/$2"; do nap; done
}

# auto_idle NAME: end the workload and wait until it is gone.
auto_idle() {
    auto_known "$1" || return
    [ -n "$work" ] || { auto_none "$why"; return; }
    local group rest item tries=200
    [ -f "/tmp/auto.$1/pids" ] || return 0
    while read -r group; do
        kill -TERM -- "-$group" 2> /dev/null
    done < "/tmp/auto.$1/pids"
    while read -r group; do
        while [ -d "/proc/$group" ]; do
            read -r rest < "/proc/$group/stat" 2> /dev/null || break
            case $rest in *') Z '*) break ;; esac
            tries=$((tries - 1))
            [ "$tries" -gt 0 ] || { echo "the workload did not end within 10 s"; return 1; }
            nap
        done
    done < "/tmp/auto.$1/pids"
    rm "/tmp/auto.$1/pids" "/tmp/auto.$1/seen"
    for item in $work; do
        command -v "auto_stop_${item%%:*}" > /dev/null || continue
        "auto_stop_${item%%:*}" "$1" "${item#*:}" || return 1
    done
}

# auto_unbind NAME: take each function from its driver; a bridge only where nothing stands behind it.
auto_unbind() {
    auto_known "$1" || return
    local found units= id driver
    for found in $(find "$path" -name modalias); do
        read -r id < "$found"
        case $id in pci:*bc06*) ;; pci:*) [ ! -e "${found%modalias}driver" ] || units="$units ${found%/modalias}" ;; esac
    done
    : > "/tmp/auto.$1/units"
    for found in ${units:-$path}; do
        cd -P "$found/driver" 2> /dev/null || { echo "${found##*/} has no driver to be taken from"; return 1; }
        driver=$PWD
        cd /
        echo "${found##*/} $driver" >> "/tmp/auto.$1/units"
        [ -e "$driver/unbind" ] || { auto_none "the driver ${driver##*/} does not let go of a device"; return; }
        echo "${found##*/}" > "$driver/unbind" || return 1
        [ ! -e "$found/driver" ] || { echo "${found##*/} still has its driver"; return 1; }
    done
}

# auto_rebind NAME: give them back, and find all that was there before.
auto_rebind() {
    auto_known "$1" || return
    local driver id before=$work item
    while read -r id driver; do
        echo "$id" > "$driver/bind" || return 1
    done < "/tmp/auto.$1/units"
    auto_driver || return
    # the ports of a disk controller are done one after the other
    auto_settle "$(echo "$before" | wc -w)" || return
    auto_ready "$1" || return
    auto_keep "$1"
    set -- $work
    local after=$#
    set -- $before
    [ "$after" = "$#" ] || { echo "bound again it has '$work', and had '$before'"; return 1; }
}

# auto_life NAME: it has its driver still, its workload moves, and what is written can be read.
auto_life() {
    auto_known "$1" || return
    local item begun=
    [ -e "$path/driver" ] || auto_passes || { echo "it has no driver"; return 1; }
    [ -n "$work" ] || return 0
    if [ ! -f "/tmp/auto.$1/pids" ]; then
        begun=1
        auto_busy "$1" || return 1
    fi
    # what moved before, or is the last of what its driver did, does not count
    auto_note "$1"
    auto_check "$1" && auto_check "$1" || return 1
    for item in $work; do
        if command -v "auto_life_${item%%:*}" > /dev/null; then
            "auto_life_${item%%:*}" "$1" "${item#*:}" || return 1
        fi
    done
    [ -z "$begun" ] || auto_idle "$1"
}

# auto_fail NAME SECTOR...: get requests ready that hit a sector which the host fails: of each of its disks, for which of
# them the host fails is not known here.
auto_fail() {
    auto_known "$1" || return
    local item sector size ready=
    shift
    for item in $work; do
        case $item in block:*) ;; *) continue ;; esac
        read -r size < "/sys/block/${item#*:}/size"
        for sector in "$@"; do
            [ "$sector" -lt "$size" ] || continue
            disk_fail "${item#*:}" "$sector" || return 1
            ready="$ready ${item#*:}"
            break
        done
    done
    [ -n "$ready" ] || auto_none "the guest has no disk of it"
}

# auto_failed NAME: status 0 when all of these requests were answered well, 3 while one waits.
auto_failed() {
    auto_known "$1" || return
    local item status waits=
    for item in $work; do
        [ -e "/tmp/fail.${item#*:}.where" ] || continue
        disk_failed "${item#*:}" || {
            status=$?
            [ "$status" = 3 ] || return "$status"
            waits=1
        }
    done
    [ -z "$waits" ] || return 3
}

# auto_spawn NAME SCRIPT WORD...: a part of the workload, at a low priority: dozens of them share a processor with the
# harness's shell. What never waits lowers its own further.
auto_spawn() {
    local name=$1 script=$2
    shift 2
    setsid sh -c "renice -n 10 -p \$\$; $script" "$@" < /dev/null > /dev/null 2>&1 &
    echo "$!" >> "/tmp/auto.$name/pids"
}

# auto_every NAME KIND.WHAT SCRIPT WORD...: a script over and over, its rounds counted.
auto_every() {
    local name=$1 file=$2 script=$3
    shift 3
    auto_spawn "$name" "while :; do $script; n=\$((n + 1)); echo \"\$n\" > \"\$0\"; done" "/tmp/auto.$name/$file" "$@"
}

# auto_irqs: sets count to the interrupts of the PCI device at path.
auto_irqs() {
    local number each sum=0
    for number in "$path"/msi_irqs/*; do
        number=${number##*/}
        [ "$number" != '*' ] || read -r number < "$path/irq"
        read -r each < "/sys/kernel/irq/$number/per_cpu_count" || continue
        # of each CPU: an interrupt may go to another one from one moment to the next
        while [ -n "$each" ]; do
            sum=$((sum + ${each%%,*}))
            case $each in *,*) each=${each#*,} ;; *) each= ;; esac
        done
    done
    count=$sum
}
