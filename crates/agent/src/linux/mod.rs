//! Readers of Linux's own files that several families of commands share: mounts and block devices.
//!
//! What only one family reads is in that family's directory.

pub mod block;
pub mod mounts;
