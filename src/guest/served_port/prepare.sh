# Says who the login user is, and frees the port $port: after a restore, an SSH server of the past still has
# it, for a connection that it does not know to be gone.
echo "user $user $group"

# The number that the socket has which listens on 127.0.0.1:$port; $hex is the port as the kernel writes it.
listener() {
    inode=
    while read -r _ local _ state _ _ _ _ _ number _; do
        case "$local $state" in "0100007F:$hex 0A") inode=$number ;; esac
    done </proc/net/tcp
    [ -n "$inode" ]
}

owner() {
    for process in /proc/[0-9]*; do
        case $(ls -l "$process/fd" 2>/dev/null) in
        *"socket:[$inode]"*)
            read -r name <"$process/comm"
            pid=${process#/proc/}
            return
            ;;
        esac
    done
    false
}

if listener; then
    if ! owner; then
        echo "failed: something listens on port $port of its 127.0.0.1"
        exit
    fi
    case $name in
    sshd* | dropbear*) kill "$pid" ;;
    *)
        echo "failed: $name (process $pid) listens on port $port of its 127.0.0.1, which aqfs needs"
        exit
        ;;
    esac
    tries=0
    while listener; do
        tries=$((tries + 1))
        if [ $tries = 50 ]; then kill -KILL "$pid"; fi
        if [ $tries = 100 ]; then
            echo "failed: an SSH server of an earlier connection keeps port $port"
            exit
        fi
        sleep 0.05
    done
fi
echo free
