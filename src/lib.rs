#![doc = include_str!("ARCHITECTURE.md")]

// Values and rules: functions of their arguments.
pub mod boot;
pub mod journal;
pub mod machine;
pub mod proto;
pub mod reconcile;
pub mod resource;
pub mod secret;
pub mod slots;
pub mod status;
pub mod supervise;
pub mod time;
pub mod wire;

// Edges: what touches the kernel, the network or the disk. Each opens with the reason it is one.
pub mod agent;
pub mod app;
pub mod bmc;
pub mod config;
pub mod console;
pub mod controller;
pub mod flash;
pub mod images;
pub mod init;
pub mod ipc;
pub mod lab;
pub mod net;
pub mod netboot;
pub mod omni;
pub mod settings;
pub mod store;
pub mod sys;
pub mod telemetry;
pub mod update;
pub mod web;
