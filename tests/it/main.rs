#![cfg(test)]
//! The one integration binary: a second would link the whole library again.

mod agent_interop;
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
mod omni_interop;
mod omni_library_interop;
mod omni_script;
mod omnictl_interop;
mod page;
mod peers;
mod raw_state;
mod site;
mod store;
mod takeover;
mod telemetry;
mod tunnel;
mod tunnel_interop;
