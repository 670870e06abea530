# Mounts shares from port $port of this machine, and no others. $wanted has a line for each:
# PATH TARGET MODE CACHE, with the target as /proc/mounts writes it. Prints a line for each, then one more.
address=127.0.0.1
# Soft, but not soon: a program that waits for a host that is away gets an error after 11 minutes.
fixed="vers=3,proto=tcp,mountproto=tcp,port=$port,mountport=$port,addr=$address,nolock,soft,timeo=600,retrans=10"

# Calls a function for each mount of ours, with its line in variables.
each_mount() {
    while read -r source target type options _; do
        case "$type $source" in "nfs $address:/"*) ;; *) continue ;; esac
        case ,$options, in *,port="$root_port",* | *,port="$user_port",*) "$1" ;; esac
    done </proc/mounts
}

# Undoes the kernel's way of writing a path.
plain() {
    path=$(printf '%b.' "$(printf %s "$1" | sed 's/\\\([0-7][0-7][0-7]\)/\\0\1/g')")
    path=${path%.}
}

# From another port nothing answers any more: to look at it, or to wait for what it has not written, would take
# minutes.
leave() {
    plain "$target"
    case ,$options, in
    *,port="$port",*) umount "$path" || umount -l "$path" ;;
    *) umount -i -l "$path" || umount -l "$path" ;;
    esac 2>/dev/null
    case $path in /mnt/?*) rmdir "$path" 2>/dev/null ;; esac
}

keep_or_leave() {
    case $wanted in
    *"
${source#*:} $target "*)
        case ,$options, in *,port="$port",*) return ;; esac
        ;;
    esac
    leave
}

note_options() {
    if [ "$source $target" = "$address:$from $at" ]; then have=$options; fi
}

# Has what is mounted follow the mode. The server refuses writes in any case: where a file is open for writing,
# the mount stays as it is.
set_mode() {
    case $have in "$mode" | "$mode",*) return ;; esac
    mount -i -t nfs -o "remount,$mode,nosuid,nodev" "$address:$from" "$path" 2>/dev/null
}

has_cache() {
    case ,$have, in
    *,acdirmax="$cache",*) true ;;
    *,acdirmax=*) false ;;
    # The kernel does not write what it takes by itself.
    *) [ "$cache" = 60 ] ;;
    esac
}

# The server tells by a directory what has changed in it, and opens files that the guest may have open when the
# host has changed them. So the attributes of files may be remembered for longer than those of directories.
cache_options() {
    files=$cache
    if [ "$cache" -gt 0 ] && [ "$cache" -lt 30 ]; then files=30; fi
    echo "acdirmin=$cache,acdirmax=$cache,acregmin=$files,acregmax=$files"
}

has_client() {
    while read -r one two; do
        case "$one $two" in 'nodev nfs') return ;; esac
    done </proc/filesystems
    false
}

put() {
    have=
    each_mount note_options
    plain "$at"
    # In use, it has another cache from its next time on.
    if [ -n "$have" ] && { has_cache || ! umount "$path" 2>/dev/null; }; then
        set_mode
        echo ok
        return
    fi
    if ! mkdir -p "$path" 2>/dev/null || ! [ -d "$path" ]; then
        echo "no: it has no directory $path, and cannot make one"
        return
    fi
    if ! has_client; then
        echo "no: its kernel has no NFS client (\`modprobe nfs\` finds none); it needs a kernel with the module nfs"
        return
    fi
    options=$mode,nosuid,nodev,$fixed,$(cache_options)
    if said=$(mount -i -t nfs -o "$options" "$address:$from" "$path" 2>&1); then
        echo ok
    else
        printf 'no: %s\n' "$(printf %s "$said" | tail -n 1)"
    fi
}

has_client || { modprobe nfs; modprobe nfsv3; } >/dev/null 2>&1
each_mount keep_or_leave
printf %s "$wanted" | while read -r from at mode cache; do
    if [ -n "$from" ]; then put; fi
done
echo 'done'
