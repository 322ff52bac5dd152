//! The `net` service: links, addresses, routes, names and time of the appliance.
//!
//! Values and rules: [`config`] is what a person writes, [`links`] and [`routing`] say what the kernel must become for it,
//! [`port`] where one link's addresses come from ([`dhcp`], [`link_local`], static), [`trial`] when a new configuration
//! counts. Edges: [`kernel`], [`disk`], [`wire`] and [`service`], which joins them.

pub mod claim;
pub mod config;
pub mod dhcp;
pub mod disk;
pub mod frame;
pub mod jitter;
pub mod kernel;
pub mod link_local;
pub mod links;
pub mod mac;
pub mod port;
pub mod prefix;
pub mod resolv;
pub mod routing;
pub mod service;
pub mod status;
pub mod trial;
pub mod wire;
