//! System calls that nix does not wrap safely; the only unsafe code.
//!
//! An edge, because it is the kernel's door. All but [`block`], [`clock`], [`memory`], [`packet`], [`socket`],
//! [`terminal::size`] and [`seccomp::lock`] is for PID 1, which is single-threaded.

#![allow(unsafe_code, reason = "fork, pre_exec and capabilities have no safe form")]

pub mod block;
pub mod clock;
pub mod crash;
pub mod memory;
pub mod mount;
pub mod network;
pub mod packet;
pub mod power;
pub mod process;
pub mod random;
pub mod seccomp;
pub mod signal;
pub mod socket;
pub mod terminal;
pub mod uevent;
pub mod wait;
pub mod watchdog;
