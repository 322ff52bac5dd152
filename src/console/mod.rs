//! The console on the screen and on serial lines: how the box is, where its page is, and the few things that a person who
//! stands before it may ask for. No input leads to a shell: whoever types can make a [`Request`] and nothing else.
//!
//! What is shown is a function of a [`View`] and a [`State`]: [`screen`] fills a screen, [`serial`] tells in lines what
//! has changed. What is typed is a function too: [`keys`] makes keys of octets, [`State::on`] makes requests of keys.
//! [`terminal`] is the edge.

pub mod dialogue;
mod install;
pub mod keys;
pub mod network;
pub mod qr;
pub mod screen;
pub mod serial;
pub mod terminal;
pub mod text;
pub mod view;

#[cfg(test)]
mod golden;

pub use dialogue::{Request, State};
pub use view::View;
