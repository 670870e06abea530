# Gives the guest the identity that variables describe. The host sends these functions over the identity
# port to the shell that listen.sh has started there, before the guest is captured. It sends the
# variables and the call of `become` when a clone resumes, before anything can connect to the clone.
# Templates of earlier versions know the function by this name.
# Each program started here costs about 10 ms of a clone's start under TCG: builtins where possible.
seed=/run/aqfs/seed
# In images that are built here.
pid=/run/aqfs/dropbear.pid
# In other images.
sshd=/run/sshd.pid
key=/etc/ssh/ssh_host_ed25519_key

fail() {
    echo "aqfs: failed: $*"
    exit 1
}

# Finds, before the guest is captured, what would prevent a clone's own host key.
check() {
    if [ -e $pid ]; then return; fi
    [ -e $key ] || fail "it has neither the SSH server of images that are built here nor $key"
    kill -0 "$(cat $sshd)" || fail "$sshd is not of a server that runs"
} 2>/dev/null

# Whether the kernel has logged a copy since the capture; $fork is the time of the last such line
# before the capture (listen.sh).
has_forked() {
    if [ "$fork" = none ]; then
        case $(dmesg) in *'virtual machine fork'*) return 0 ;; *) return 1 ;; esac
    fi
    # Of a text of some length a shell cuts off a kilobyte in 15 ms, under TCG.
    lines=$(dmesg | grep 'virtual machine fork') || return 1
    lines=${lines%virtual machine fork*}
    [ "${lines##*[}" != "$fork" ]
}

reseed() {
    printf %s "$random" >/dev/urandom
    if [ "$reseed" = perl ]; then
        # RNDADDENTROPY, then RNDRESEEDCRNG: without the second the first may take a minute.
        perl -e 'open R, "+<", "/dev/urandom" or die; my $r = shift;
            ioctl R, 0x40085203, pack("iia*", 8 * length $r, length $r, $r) or die;
            ioctl R, 0x5207, 0 or die;' "$random" || fail 'perl could not reseed its random numbers'
    fi
}

# A kernel with vmgenid reseeds by itself as it resumes. Asked at once it may not have come to that, and each
# question is a program, or several: other work comes before it, but no key is made or used.
await_reseed() {
    if [ "$reseed" = perl ]; then return; fi
    tries=0
    until has_forked; do
        tries=$((tries + 1))
        if [ $tries -gt 100 ]; then fail 'its kernel has not noticed that it was copied'; fi
        sleep 0.02
    done
}

# How long it has been up, in hundredths of a second.
uptime() {
    read -r up _ </proc/uptime
    uptime=$((${up%.*} * 100 + 1${up#*.} - 100))
}

# To the nearest second. On a busy host each step may take long: the time is asked for only now, counts
# from half-way between question and answer, and is set again if setting it took long.
set_clock() {
    uptime
    asked=$uptime
    echo 'aqfs: time'
    read -r seconds hundredths <&4
    uptime
    answered=$(((asked + uptime) / 2)) tries=0
    until [ $tries = 5 ]; do
        tries=$((tries + 1)) began=$uptime
        passed=$((hundredths + began - answered))
        date -u -s "@$((seconds + (passed + 50) / 100))" >/dev/null || fail 'its clock cannot be set'
        uptime
        if [ $((uptime - began)) -lt 20 ]; then return; fi
    done
}

rename() {
    echo "$hostname" >/proc/sys/kernel/hostname
    if [ -e /etc/hostname ]; then echo "$hostname" >/etc/hostname; fi
    if [ -e /etc/machine-id ]; then echo "$machine_id" >/etc/machine-id; fi
    while read -r address _; do
        if [ "$address" = 127.0.1.1 ]; then
            # In place: the file may be mounted over another one.
            hosts=$(sed "s/^127.0.1.1[[:space:]].*/127.0.1.1 $hostname/" /etc/hosts)
            printf '%s\n' "$hosts" >/etc/hosts
            break
        fi
    done </etc/hosts
} 2>/dev/null

readdress() {
    for nic in /sys/bus/virtio/drivers/virtio_net/virtio*/net/*; do
        nic=${nic##*/}
        # The DHCP server has leased this address to the old MAC address, and would give the new one
        # another, at which nothing arrives. Each VM's network is its own.
        if [ ! -e $pid ]; then
            case $(ip -4 addr show dev "$nic") in *dynamic*) return ;; esac
        fi
        # Announces the address at once; the network would send to the old one for seconds.
        echo 1 >"/proc/sys/net/ipv4/conf/$nic/arp_notify"
        ip link set dev "$nic" address "$mac" || fail "$nic does not take the address $mac"
        break
    done
}

# The SSH server has a random state of its own, and the host key of the captured machine.
silence() {
    if [ -e $pid ]; then read -r server <$pid; else read -r server <$sshd; fi
    if [ -e $pid ]; then kill -KILL "$server"; fi
    if [ -n "$sever" ]; then sever; fi
}

# Ends the connections of a guest that was forked: what is at their other ends knows nothing of this one. Those of
# dropbear may be orphans, as each new one of its servers is another process.
sever() {
    for parent in "$server" 1; do
        children=
        read -r children <"/proc/$parent/task/$parent/children"
        for child in $children; do
            read -r name <"/proc/$child/comm"
            case "$parent $name" in "$server "* | '1 dropbear') kill -KILL "$child" ;; esac
        done
    done
    if [ ! -e /proc/1/task/1/children ]; then sever_slowly; fi
} 2>/dev/null

# For a kernel that does not list children (PROC_CHILDREN).
sever_slowly() {
    for stat in /proc/[0-9]*/stat; do
        read -r line <"$stat"
        # The name before this may have blanks.
        rest=${line##*) }
        parent=${rest#* }
        case "${parent%% *} $line" in "$server "* | *' (dropbear) '*) kill -KILL "${line%% *}" ;; esac
    done
}

rekey() {
    umask 077
    if [ -e $pid ]; then
        echo "$hostname" >$seed/hostname
        echo "$machine_id" >$seed/machine-id
        printf "$dropbear_key" >$seed/dropbear_ed25519_host_key
        tries=0
        # The port becomes free when the old server has ended.
        until dropbear -s -W 262144 -P $pid -r $seed/dropbear_ed25519_host_key 4<&-; do
            tries=$((tries + 1))
            if [ $tries -gt 50 ]; then fail 'dropbear does not start'; fi
            sleep 0.01
        done
    else
        printf '%s\n' "$openssh_key" >$key
        printf '%s\n' "$openssh_public" >$key.pub
        kill -HUP "$(cat $sshd)" || fail 'sshd does not run'
    fi
}

authorize() {
    file=/root/.ssh/authorized_keys
    have=$(cat "$file")
    printf '%s\n' "$authorized" | while IFS= read -r line; do
        case $have in *"$line"*) ;; *) printf '%s\n' "$line" >>"$file" ;; esac
    done
}

# Host directories that the captured guest had (shares.sh): the clone has shares of its own, or none. Of a
# container it is the image's root that has them.
unshare() {
    # Without the kernel's NFS client there are none.
    if [ ! -e /proc/fs/nfsfs ]; then return; fi
    in=
    if [ -e /run/aqfs/shell ]; then
        in='chroot /proc/1/cwd /dev/aqfs/bin/busybox'
        $in cat /proc/mounts | drop_shares
    else
        drop_shares </proc/mounts
    fi
} 2>/dev/null

drop_shares() {
    while read -r source target type options _; do
        case "$type $source" in "nfs 127.0.0.1:/"*) ;; *) continue ;; esac
        case ,$options, in *,port=649,* | *,port=20649,*) $in umount -l "$(printf '%b' "$target")" ;; esac
    done
}

become() {
    silence
    unshare
    reseed
    set_clock
    rename
    readdress
    await_reseed
    rekey
    if [ -n "$authorized" ]; then authorize; fi
    echo 'aqfs: done'
}
