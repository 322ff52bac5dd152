//! The net service in a network namespace of its own, against servers that we did not write.

mod clock;
mod dhcp;
mod names;
mod site;
mod trial;
