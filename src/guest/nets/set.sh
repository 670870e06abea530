# Gives the network devices on nets their addresses: $nics has a line for each, PORT MAC ADDRESS/PREFIX. PORT is the
# function of the slot of PCI Express that it is plugged into. Those at the ports $idle have none. /etc/hosts has the
# lines $hosts between two of ours. Prints a line for each device, then one more.

# Finds the device at a port.
find_device() {
    for at in /sys/class/net/*; do
        case $(readlink -f "$at/device" 2>/dev/null) in
        */0000:00:1c."$1"/*) device=${at##*/}; return ;;
        esac
    done
    false
}

await_device() {
    left=$tries
    until find_device "$1"; do
        [ "$left" -gt 0 ] || return
        left=$((left - 1))
        sleep 0.2 2>/dev/null || sleep 1
    done
}

addresses() {
    ip -4 addr show dev "$device" | sed -n 's/^ *inet \([^ ]*\) .*/\1/p'
}

set_address() {
    read -r has <"/sys/class/net/$device/address"
    if [ "$has" != "$mac" ]; then
        ip link set dev "$device" down && ip link set dev "$device" address "$mac" || return
    fi
    # What is right stays: connections go over it.
    if [ "$(addresses)" != "$address" ]; then
        ip -4 addr flush dev "$device" && ip addr add "$address" broadcast + dev "$device" || return
    fi
    ip link set dev "$device" up
}

clear_address() {
    ip -4 addr flush dev "$1"
    ip link set dev "$1" down
}

write_hosts() {
    begin='# aqfs: the members of nets' end='# aqfs: end'
    old=$(cat /etc/hosts 2>/dev/null)
    new=$(printf '%s\n' "$old" | sed "/^$begin\$/,/^$end\$/d")
    if [ -n "$hosts" ]; then
        new=$(printf '%s\n%s\n%s\n%s' "$new" "$begin" "${hosts%?}" "$end")
    fi
    [ "$new" = "$old" ] || printf '%s\n' "$new" >/etc/hosts
}

for port in $idle; do
    if find_device "$port"; then clear_address "$device" >/dev/null 2>&1; fi
done
printf %s "$nics" | while read -r port mac address; do
    if ! await_device "$port"; then
        echo none
    elif said=$(set_address 2>&1); then
        echo ok
    else
        printf 'failed: %s\n' "$(printf %s "$said" | tail -n 1)"
    fi
done
if said=$(write_hosts 2>&1); then
    echo 'done'
else
    printf '%s\n' "${said:-it cannot be written}" | tail -n 1
fi
