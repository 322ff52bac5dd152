#![cfg(test)]
//! The one integration binary: a second would link the whole library again.

mod chaos;
mod cli;
mod conformance;
mod double;
mod e2e;
mod faults;
mod go;
mod init;
mod init_services;
mod ipmi;
mod kill;
mod netboot_dhcp;
mod netboot_http;
mod netboot_images;
mod netboot_tftp;
mod omni_client;
mod omni_go;
mod omni_interop;
mod omni_script;
mod omnictl;
mod page;
mod peers;
mod power_cuts;
mod raw_state;
mod site;
mod slots_grub;
mod store;
mod takeover;
mod telemetry;
mod tunnel;
mod tunnel_interop;
mod update;
