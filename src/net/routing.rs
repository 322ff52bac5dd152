//! Addresses and routes that a port should have, and the difference to those that it has.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::prefix::Prefix;

/// A route by way of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub to: Prefix,
    /// By way of this router; without one, the link itself.
    pub via: Option<Ipv4Addr>,
}

impl Route {
    /// Everything by way of `router`.
    pub fn default_via(router: Ipv4Addr) -> Self {
        let everything = Prefix::new(Ipv4Addr::UNSPECIFIED, 0).expect("0 is a prefix length");
        Self { to: everything, via: Some(router) }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.via {
            Some(router) => write!(f, "{} via {router}", self.to),
            None => write!(f, "{}", self.to),
        }
    }
}

/// What one port has or should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Its addresses.
    pub addresses: Vec<Prefix>,
    /// Its routes, each with its metric: of two for the same network the lower one counts.
    pub routes: Vec<(Route, u32)>,
}

/// One step from what is to what should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take a route away.
    DeleteRoute(Route, u32),
    /// Take an address away.
    DeleteAddress(Prefix),
    /// Give an address.
    AddAddress(Prefix),
    /// Give a route.
    AddRoute(Route, u32),
}

/// The steps from `have` to `want`, in an order that the kernel takes: a router must be reachable when its route is made,
/// so that addresses come first and routes on the link before those by way of a router.
pub fn steps(have: &Routing, want: &Routing) -> Vec<Step> {
    let mut steps = Vec::new();
    let gone = |route: &&(Route, u32)| !want.routes.contains(route);
    steps.extend(have.routes.iter().filter(gone).map(|(route, metric)| Step::DeleteRoute(*route, *metric)));
    // New before old: sockets that are bound to what stays are not disturbed, and the port is never bare.
    let new = want.addresses.iter().filter(|prefix| !have.addresses.contains(prefix));
    steps.extend(new.map(|prefix| Step::AddAddress(*prefix)));
    let old = have.addresses.iter().filter(|prefix| !want.addresses.contains(prefix));
    steps.extend(old.map(|prefix| Step::DeleteAddress(*prefix)));
    let mut new: Vec<_> = want.routes.iter().filter(|route| !have.routes.contains(route)).collect();
    new.sort_by_key(|(route, _)| route.via.is_some());
    steps.extend(new.into_iter().map(|(route, metric)| Step::AddRoute(*route, *metric)));
    steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn apply(mut routing: Routing, steps: &[Step]) -> Routing {
        for step in steps {
            match *step {
                Step::DeleteRoute(route, metric) => routing.routes.retain(|have| *have != (route, metric)),
                Step::DeleteAddress(prefix) => routing.addresses.retain(|have| *have != prefix),
                Step::AddAddress(prefix) => routing.addresses.push(prefix),
                Step::AddRoute(route, metric) => routing.routes.push((route, metric)),
            }
        }
        routing.addresses.sort();
        routing.routes.sort();
        routing
    }

    fn routing() -> impl Strategy<Value = Routing> {
        let prefix =
            (0_u32..6, 20_u8..24).prop_map(|(host, len)| Prefix::new((0x0a00_0000 + host).into(), len).unwrap());
        let route = (prefix.clone(), proptest::option::of(0_u32..4), 100_u32..102)
            .prop_map(|(to, via, metric)| (Route { to: to.network(), via: via.map(Ipv4Addr::from) }, metric));
        (proptest::collection::btree_set(prefix, 0..5), proptest::collection::btree_set(route, 0..5)).prop_map(
            |(addresses, routes)| Routing {
                addresses: addresses.into_iter().collect(),
                routes: routes.into_iter().collect(),
            },
        )
    }

    proptest! {
        #[test]
        fn the_steps_lead_there_and_then_there_are_none(have in routing(), want in routing()) {
            let reached = apply(have.clone(), &steps(&have, &want));
            prop_assert_eq!(&reached, &want);
            prop_assert_eq!(steps(&reached, &want), []);
        }
    }

    #[test]
    fn a_router_is_reachable_before_it_is_used() {
        let prefix: Prefix = "10.0.0.5/32".parse().unwrap();
        let link = Route { to: "10.9.9.1/32".parse().unwrap(), via: None };
        let via = Route::default_via(Ipv4Addr::new(10, 9, 9, 1));
        let want = Routing { addresses: vec![prefix], routes: vec![(via, 100), (link, 100)] };
        let expected = [Step::AddAddress(prefix), Step::AddRoute(link, 100), Step::AddRoute(via, 100)];
        assert_eq!(steps(&Routing::default(), &want), expected);
    }
}
