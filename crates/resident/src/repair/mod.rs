//! Repair: what others change in the kernel is put back.
