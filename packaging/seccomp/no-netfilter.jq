# Takes the kernel's packet filter out of a seccomp profile of Docker's or Podman's:
#
#   jq -f no-netfilter.jq /usr/share/containers/seccomp.json >no-netfilter.json
#   podman run --security-opt seccomp=no-netfilter.json ...
#
# What is left lets pass what the profile did, but for: sockets of NETLINK_NETFILTER, by which nftables, conntrack and ipset are
# spoken to; the socket options that replace the tables of iptables-legacy and its kin; socketcall(2), whose arguments no filter
# sees; io_uring, whose sockets no filter sees; and sockets of VSOCK, which Docker's own profile keeps back.
#
# The kernel looks at the lower half of these arguments, and so do these conditions: each is a mask and a value. A profile lists
# what passes, so numbers that are not to pass are gone round, in powers of two.

def is($index; $mask; $value): {index: $index, value: $mask, valueTwo: $value, op: "SCMP_CMP_MASKED_EQ"};
# All numbers that begin with those of $value, which is a multiple of $size.
def of($index; $size; $value): is($index; 4294967296 - $size; $value);
def pass($names; $arguments): {names: $names, action: "SCMP_ACT_ALLOW", args: $arguments};

.syscalls |= map(
    .names -= ["socket", "setsockopt", "socketcall", "io_uring_setup", "io_uring_enter", "io_uring_register"]
    | select(.names != [])
)
| .syscalls += [
    # Families: all but 16, AF_NETLINK, and 38, AF_VSOCK.
    ([[16, 0], [1, 17], [2, 18], [4, 20], [8, 24], [4, 32], [2, 36], [1, 39], [8, 40]][]
        | pass(["socket"]; [of(0; .[0]; .[1])])),
    # Of netlink: all but 9, which without CAP_AUDIT_WRITE leads nowhere, and 12, NETLINK_NETFILTER.
    ([[8, 0], [1, 8], [2, 10], [1, 13], [2, 14], [16, 16]][]
        | pass(["socket"]; [of(0; 1; 16), of(2; .[0]; .[1])])),
    # Options: below 64 all, and those of multicast routing from 200 on; of IPv6 those above 65; of levels that are not IP's all.
    ([[64, 0], [8, 200], [4, 208]][] | pass(["setsockopt"]; [of(2; .[0]; .[1])])),
    ([[2, 66], [4, 68], [8, 72]][] | pass(["setsockopt"]; [of(1; 1; 41), of(2; .[0]; .[1])])),
    ([1, 6, 17, 58, 132, 136, 255, 263, 270, 271, 282, 284][] | pass(["setsockopt"]; [of(1; 1; .)]))
]
