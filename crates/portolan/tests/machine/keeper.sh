# Makes a machine for a container runtime out of namespaces and keeps it: all of it ends with standard input, or with this
# process.
#
# `keeper.sh DIR GROUP PLACE...`: every PLACE, a directory that the runtime writes to, is in the machine what DIR has under
# that path; GROUP is the control group, in every hierarchy, that is all the machine sees of them. Runs in the network
# namespace already. Prints `ready PID` when done, PID being the machine's first process as seen from outside.
set -eu
dir=$1 group=$2
shift 2

hierarchies() {
    awk '$3 == "cgroup" || $3 == "cgroup2" { print $2, $3, $4 }' /proc/mounts
}

if [ -z "${INSIDE:-}" ]; then
    hierarchies | while read -r at type options; do
        mkdir -p "$at/$group"
        # A new group of this controller can hold nothing until it is told where to run.
        for setting in cpuset.cpus cpuset.mems; do
            if [ "$type" = cgroup ] && [ -e "$at/$group/$setting" ]; then cat "$at/$setting" >"$at/$group/$setting"; fi
        done
        echo $$ >"$at/$group/cgroup.procs"
    done
    export INSIDE=yes
    exec unshare --mount --cgroup --uts --ipc --pid --fork --propagation private sh "$0" "$dir" "$group" "$@"
fi

# The proc filesystem is still that of outside; a process substitution would read another process's.
read -r pid rest </proc/self/stat
mounted=$(hierarchies)
mount -t proc proc /proc
mount -t sysfs sysfs /sys
case $mounted in
*" cgroup "*)
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    echo "$mounted" | while read -r at type options; do
        # Of the options, only the controllers and the name choose a hierarchy.
        chosen=$(echo "$options" | tr , '\n' | grep -vE '^(rw|ro|nosuid|nodev|noexec|relatime|xattr|clone_children|nsdelegate|memory_recursiveprot|release_agent=.*)$' |
            sed 's/^name=/none,name=/' | paste -sd, -)
        mkdir -p "$at"
        mount -t "$type" ${chosen:+-o "$chosen"} cgroup "$at"
    done
    ;;
*)
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    # A group that hands controllers on may hold no process itself (cgroups(7)).
    mkdir -p /sys/fs/cgroup/init
    echo 1 >/sys/fs/cgroup/init/cgroup.procs
    sed 's/[^ ]*/+&/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
    ;;
esac

for file in passwd group nsswitch.conf ld.so.cache protocols services alternatives; do
    if [ -e "/etc/$file" ]; then cp -a "/etc/$file" "$dir/etc/"; fi
done
for place in "$@"; do
    mkdir -p "$place"
    mount --bind "$dir$place" "$place"
done
# No program may find the way to the machine's own D-Bus or systemd: /run was hidden, and /var/run leads there.
hostname machine
echo "ready $pid"

# The first process of a namespace takes in orphans: `wait` reaps whatever ends.
exec 3<&0
cat <&3 >/dev/null &
wait $!
