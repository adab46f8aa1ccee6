# Becomes systemd(1), which is process 1 of a PID namespace of its own already, in a machine that has `/run`, `/etc`, `/tmp` and
# others to itself.
set -eu
mount --make-rprivate /
# Whatever systemd thinks should be created or cleaned elsewhere stays as it is.
mount -o remount,bind,ro /
mount -t proc proc /proc
# Whoever comes into the machine from outside is in groups that it does not see.
for group in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
    case $group in
    */init/cgroup.procs) ;;
    *) if [ -e "$group" ]; then echo 0 >"$group"; fi ;;
    esac
done
# Hierarchies that there are none of yet would be made for the whole host.
mounted=$(awk '$3 == "cgroup" { print $4 }' /proc/mounts | tr , '\n')
awk -v mounted="$mounted" 'BEGIN { split(mounted, all, "\n"); for (n in all) has[all[n]] } /^#/ || $1 in has' /proc/cgroups >/var/tmp/cgroups
mount --bind /var/tmp/cgroups /proc/cgroups
mkdir /var/tmp/dev
mount -t tmpfs -o mode=755 tmpfs /var/tmp/dev
for device in null zero full random urandom tty; do
    touch "/var/tmp/dev/$device"
    mount --bind "/dev/$device" "/var/tmp/dev/$device"
done
mkdir /var/tmp/dev/shm /var/tmp/dev/pts
mount -t tmpfs shm /var/tmp/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts /var/tmp/dev/pts
ln -s pts/ptmx /var/tmp/dev/ptmx
ln -s /proc/self/fd /var/tmp/dev/fd
touch /var/tmp/dev/console
mount --bind /var/log/console /var/tmp/dev/console
mount --move /var/tmp/dev /dev
# As systemd does where it is not in a container: what is mounted later is seen in its services as well.
mount --make-rshared /
# What would ask for hardware is told that there is none.
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=quiet.target --log-target=console --log-level=info --show-status=no
