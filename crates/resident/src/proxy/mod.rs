//! The proxy: what the kernel cannot translate.
