//! What the five calls do, and who shares a run of one.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use tonic::Code;

use super::Hardware;
use crate::proto::agent::{
    GetPowerManagementRequest, GetPowerManagementResponse, HelloResponse, RebootResponse, SetPowerManagementRequest,
    SetPowerManagementResponse, WipeDisksRequest, WipeDisksResponse, get_power_management_response,
};
use crate::secret::Secret;
use crate::wire::tunnel::StreamId;

/// What the agent answers.
pub const METHODS: &[&str] = &[HELLO, GET_POWER_MANAGEMENT, SET_POWER_MANAGEMENT, REBOOT, WIPE_DISKS];

const HELLO: &str = "management.AgentService/Hello";
const GET_POWER_MANAGEMENT: &str = "management.AgentService/GetPowerManagement";
const SET_POWER_MANAGEMENT: &str = "management.AgentService/SetPowerManagement";
const REBOOT: &str = "management.AgentService/Reboot";
const WIPE_DISKS: &str = "management.AgentService/WipeDisks";

/// Runs `method` on `hardware`: the response's octets, or code and text (contract 2.2).
pub async fn run(hardware: &dyn Hardware, method: &str, request: Bytes) -> Result<Bytes, (Code, String)> {
    match method {
        HELLO => Ok(HelloResponse {}.encode_to_vec().into()),
        GET_POWER_MANAGEMENT => {
            let request = GetPowerManagementRequest::decode(request).map_err(undecodable)?;
            let wanted = request.ipmi.unwrap_or_default().check_username;
            let mut response = GetPowerManagementResponse::default();
            match hardware.bmc().await {
                Some(bmc) => {
                    response.ipmi = Some(get_power_management_response::Ipmi {
                        address: bmc.address.to_string(),
                        port: bmc.port.into(),
                        user_exists: bmc.users.contains(&wanted),
                    });
                }
                None => response.api = Some(get_power_management_response::Api {}),
            }
            Ok(response.encode_to_vec().into())
        }
        SET_POWER_MANAGEMENT => {
            let request = SetPowerManagementRequest::decode(request).map_err(undecodable)?;
            // Test mode answers well and does nothing.
            if hardware.bmc().await.is_some() {
                // Without `ipmi` the agent sets an empty name and password.
                let ipmi = request.ipmi.unwrap_or_default();
                let set = hardware.set_bmc_user(&ipmi.username, &Secret::new(ipmi.password)).await;
                set.map_err(|error| (Code::Unknown, format!("failed to set up IPMI user: {error}")))?;
            }
            Ok(SetPowerManagementResponse {}.encode_to_vec().into())
        }
        REBOOT => {
            hardware.reboot().await;
            Ok(RebootResponse {}.encode_to_vec().into())
        }
        WIPE_DISKS => {
            let request = WipeDisksRequest::decode(request).map_err(undecodable)?;
            let wiped = hardware.wipe(request.zeroes).await;
            wiped.map_err(|error| (Code::Unknown, format!("failed to wipe disks: {error}")))?;
            Ok(WipeDisksResponse {}.encode_to_vec().into())
        }
        other => Err((Code::Unimplemented, format!("{other} not implemented"))),
    }
}

fn undecodable(error: prost::DecodeError) -> (Code, String) {
    (Code::Unknown, format!("proto: {error}"))
}

/// The number of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flight(u64);

/// Which streams wait for which run: identical concurrent calls share one, except Hello.
///
/// A run belongs to its first caller. When that one leaves, its sharers fail with it; the run itself goes on unheard,
/// as Talos does not stop wiping in the middle of a disk.
#[derive(Debug, Default)]
pub struct Flights {
    last: u64,
    /// The first stream is the owner. A run that nobody waits for is not listed.
    waiting: BTreeMap<Flight, Run>,
}

#[derive(Debug)]
struct Run {
    method: &'static str,
    request: Bytes,
    streams: Vec<StreamId>,
}

impl Flights {
    /// Lets `id` wait for a run of its call. Returns the run if it has to be started.
    pub fn join(&mut self, id: StreamId, method: &'static str, request: &Bytes) -> Option<Flight> {
        let same = |run: &&mut Run| method != HELLO && run.method == method && run.request == *request;
        if let Some(run) = self.waiting.values_mut().find(same) {
            run.streams.push(id);
            return None;
        }
        self.last += 1;
        let flight = Flight(self.last);
        self.waiting.insert(flight, Run { method, request: request.clone(), streams: vec![id] });
        Some(flight)
    }

    /// `id` no longer waits. Returns the streams that fail with it.
    pub fn leave(&mut self, id: StreamId) -> Vec<StreamId> {
        let Some((flight, run)) = self.waiting.iter_mut().find(|(_, run)| run.streams.contains(&id)) else {
            return Vec::new();
        };
        let owner = run.streams.first() == Some(&id);
        run.streams.retain(|stream| *stream != id);
        if !owner {
            return Vec::new();
        }
        let flight = *flight;
        self.waiting.remove(&flight).map(|run| run.streams).unwrap_or_default()
    }

    /// A run has ended. Returns the streams that wait for its outcome.
    pub fn land(&mut self, flight: Flight) -> Vec<StreamId> {
        self.waiting.remove(&flight).map(|run| run.streams).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identical_calls_share_a_run_and_its_owners_fate() {
        let mut flights = Flights::default();
        let (fast, zeroes) = (Bytes::new(), Bytes::from_static(&[8, 1]));
        let first = flights.join(StreamId(1), WIPE_DISKS, &fast).unwrap();
        assert_eq!(flights.join(StreamId(2), WIPE_DISKS, &fast), None);
        assert!(flights.join(StreamId(3), WIPE_DISKS, &zeroes).is_some());
        assert!(flights.join(StreamId(4), HELLO, &fast).is_some() && flights.join(StreamId(5), HELLO, &fast).is_some());
        assert_eq!(flights.land(first), [StreamId(1), StreamId(2)]);

        let owner = flights.join(StreamId(6), REBOOT, &fast).unwrap();
        flights.join(StreamId(7), REBOOT, &fast);
        flights.join(StreamId(8), REBOOT, &fast);
        assert_eq!(flights.leave(StreamId(7)), []);
        assert_eq!(flights.leave(StreamId(6)), [StreamId(8)]);
        assert_eq!(flights.land(owner), []);
        assert_eq!(flights.leave(StreamId(6)), []);
    }
}
