# Has a program wait on the identity port, to be told later who this guest is (personalize.sh).
# Runs over SSH while the machine is still the one that will be frozen.
fail() {
    echo "$*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail 'only root can change who a guest is; see config/ssh_user'

device=
for port in /sys/class/virtio-ports/*; do
    [ -e "$port/name" ] || continue
    read -r name <"$port/name"
    if [ "$name" = org.aqfs.identity ]; then device=/dev/${port##*/}; fi
done
[ -n "$device" ] || fail 'it has no virtio-serial port org.aqfs.identity; stop and start it first'

# What a first boot has begun must not go on in every clone.
if command -v cloud-init >/dev/null; then timeout 300 cloud-init status --wait >/dev/null 2>&1; fi

# Clones must not share their random numbers. The kernel that notices its own copying is best.
if ls -d /sys/bus/*/drivers/vmgenid/*:* >/dev/null 2>&1; then
    reseed=vmgenid
elif command -v perl >/dev/null; then
    reseed=perl
else
    fail 'its kernel has no vmgenid, and it has no perl to reseed its random numbers with'
fi

# A frozen guest must not give memory back: it is not its own.
for balloon in /sys/bus/virtio/drivers/virtio_balloon/virtio*; do
    [ -e "$balloon" ] || continue
    echo "${balloon##*/}" >/sys/bus/virtio/drivers/virtio_balloon/unbind
done

sync
# $fork is the mark of the last copying so far; see personalize.sh.
setsid sh -c '
    exec 3<>"$1" && reseed=$2
    log=$(dmesg) fork=none
    case $log in *"virtual machine fork"*) log=${log%virtual machine fork*} fork=${log##*[} ;; esac
    export reseed fork
    exec sh <&3 >&3 2>&3 3>&-
' sh "$device" "$reseed" </dev/null >/dev/null 2>&1 &
