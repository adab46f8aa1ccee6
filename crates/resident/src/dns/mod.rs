//! The DNS server: sockets around `portolan-dns`.
