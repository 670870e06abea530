: aqfs-system
# The line above has a guest whose root is a container's run this beside the container.
#
# Starts a shell that waits on the identity port for this guest's later identity (personalize.sh).
# Runs over SSH before the machine is captured.
fail() {
    echo "$*" >&2
    exit 1
}

# The first process is root's.
[ -O /proc/1 ] || fail 'only root can change who a guest is; see config/ssh_user'

device=
for port in /sys/class/virtio-ports/*; do
    [ -e "$port/name" ] || continue
    read -r name <"$port/name"
    if [ "$name" = org.aqfs.identity ]; then device=/dev/${port##*/}; fi
done
[ -n "$device" ] || fail 'it has no virtio-serial port org.aqfs.identity; stop and start it first'

# The work of a first boot must end here: it would continue in every clone.
if command -v cloud-init >/dev/null; then timeout 300 cloud-init status --wait >/dev/null 2>&1; fi

# Clones must not share their random numbers. Best is a kernel that detects the copy by itself.
reseed=
for generation in /sys/bus/*/drivers/vmgenid/*:*; do
    if [ -e "$generation" ]; then reseed=vmgenid; fi
done
if [ -z "$reseed" ]; then
    command -v perl >/dev/null ||
        fail 'its kernel has no vmgenid, and it has no perl to reseed its random numbers with'
    reseed=perl
fi

# A clone must not give memory back: it shares the template's.
for balloon in /sys/bus/virtio/drivers/virtio_balloon/virtio*; do
    [ -e "$balloon" ] || continue
    echo "${balloon##*/}" >/sys/bus/virtio/drivers/virtio_balloon/unbind
done

sync
# $fork is the time of the last copy that the kernel has logged; see personalize.sh.
setsid sh -c '
    exec 3<>"$1" && reseed=$2
    lines=$(dmesg | grep "virtual machine fork") fork=none
    if [ -n "$lines" ]; then lines=${lines%virtual machine fork*} fork=${lines##*[}; fi
    export reseed fork
    exec sh <&3 >&3 2>&3 3>&-
' sh "$device" "$reseed" </dev/null >/dev/null 2>&1 &
