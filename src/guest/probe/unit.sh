# Prints `ok WORD` if the service $unit runs, else why not, whichever program looks after services.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
if [ -d /run/systemd/system ]; then
    state=$(systemctl show -p LoadState -p ActiveState -- "$unit" 2>&1)
    case $state in
    *LoadState=not-found*) echo "no unit named $unit" ;;
    *ActiveState=active*) echo ok active ;;
    *ActiveState=*)
        state=${state#*ActiveState=}
        echo "${state%%[!a-z-]*}"
        ;;
    *) echo "$state" ;;
    esac
elif command -v rc-service >/dev/null; then
    if rc-service -e "$unit"; then
        rc-service "$unit" status >/dev/null 2>&1
        case $? in
        0) echo ok started ;;
        3) echo stopped ;;
        32) echo crashed ;;
        *) echo "not started" ;;
        esac
    else
        echo "no service named $unit"
    fi
elif command -v sv >/dev/null && state=$(sv status "$unit" 2>&1); then
    case $state in
    run:*) echo ok run ;;
    *) echo "${state%%:*}" ;;
    esac
elif [ -x "/etc/init.d/$unit" ]; then
    if "/etc/init.d/$unit" status >/dev/null 2>&1; then echo ok running; else echo "not running"; fi
else
    echo "no service named $unit: the guest has no systemd, OpenRC, runit or /etc/init.d/$unit"
fi
