//! The net service in a network namespace of its own, against servers that we did not write.

mod dhcp;
mod site;
