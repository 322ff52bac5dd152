//! System calls that nix does not wrap safely; the only unsafe code.
//!
//! An edge, because it is the kernel's door. All but [`block`], [`memory`], [`packet`] and [`clock`] is for PID 1, which is single-threaded.

#![allow(unsafe_code, reason = "fork, pre_exec and capabilities have no safe form")]

pub mod block;
pub mod clock;
pub mod memory;
pub mod mount;
pub mod packet;
pub mod power;
pub mod process;
pub mod signal;
pub mod uevent;
