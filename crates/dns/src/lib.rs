//! Names: what a question on a network's gateway is answered with. Decisions only; sockets are elsewhere.

#![forbid(unsafe_code)]
