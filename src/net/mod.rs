//! The `net` service: links, addresses, routes, names and time of the appliance.
//!
//! Values and rules: [`config`] is what a person writes, [`links`] and [`routing`] say what the kernel must become for it,
//! [`port`] where one link's addresses come from ([`dhcp`], [`link_local`], static), [`trial`] when a new configuration
//! counts, [`sntp`] and [`discipline`] what the time is, [`mdns`] who we are. Edges: [`kernel`], [`disk`], [`wire`],
//! [`timekeeper`] and [`service`], which joins them.

pub mod claim;
pub mod config;
pub mod dhcp;
pub mod discipline;
pub mod disk;
pub mod frame;
pub mod http_date;
pub mod jitter;
pub mod kernel;
pub mod link_local;
pub mod links;
pub mod mac;
pub mod mdns;
pub mod port;
pub mod prefix;
pub mod resolv;
pub mod routing;
pub mod service;
pub mod sntp;
pub mod status;
pub mod timekeeper;
pub mod trial;
pub mod wire;
