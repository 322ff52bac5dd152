//! Octets captured from the Go library (contract 6.1): decode, and encode to the same.

use prost::Message;
use prost_types::Any;

use super::*;
use crate::proto::agent::{
    GetPowerManagementRequest, GetPowerManagementResponse, SetPowerManagementRequest, WipeDisksRequest,
    get_power_management_request, get_power_management_response, set_power_management_request,
};
use crate::proto::tunnel::{
    ClientToServer, CloseStream, MessageData, NewStream, RpcStatus, ServerToClient, Settings, client_to_server as down,
    server_to_client as up,
};

fn octets(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn same<M: Message + Default + PartialEq + std::fmt::Debug>(hex: &str, value: M) {
    assert_eq!(M::decode(&octets(hex)[..]).unwrap(), value, "decoding {hex}");
    assert_eq!(value.encode_to_vec(), octets(hex), "encoding {hex}");
}

fn metadata(pairs: &[(&str, &[&str])]) -> Option<Metadata> {
    let headers = pairs.iter().map(|(key, values)| ((*key).to_owned(), values.iter().map(|v| (*v).into()).collect()));
    Some(Headers(headers.collect()).into())
}

fn new_stream(method: &str, revision: i32, headers: Option<Metadata>) -> Option<down::Frame> {
    Some(down::Frame::NewStream(NewStream {
        method_name: method.into(),
        request_headers: headers,
        initial_window_size: 65_536,
        protocol_revision: revision,
    }))
}

fn whole(message: impl Message) -> MessageData {
    let data = message.encode_to_vec();
    MessageData { size: data.len() as u32, data: data.into() }
}

fn close(code: i32, text: &str, trailers: Option<Metadata>, details: Vec<Any>) -> Option<up::Frame> {
    let status = Some(RpcStatus { code, message: text.into(), details });
    Some(up::Frame::CloseStream(CloseStream { response_trailers: trailers, status }))
}

#[test]
fn frames_of_the_provider_are_the_captured_octets() {
    let hello = "/management.AgentService/Hello";
    let frame = |stream_id, frame| ClientToServer { stream_id, frame };
    same(
        "080112280a1e2f6d616e6167656d656e742e4167656e74536572766963652f48656c6c6f1200188080042001",
        frame(1, new_stream(hello, 1, metadata(&[]))),
    );
    same(
        "080112260a1e2f6d616e6167656d656e742e4167656e74536572766963652f48656c6c6f120018808004",
        frame(1, new_stream(hello, 0, metadata(&[]))),
    );
    same(
        "080a124d0a1e2f6d616e6167656d656e742e4167656e74536572766963652f48656c6c6f12250a140a0c677270632d74696d656f7574\
         12040a0235530a0d0a03782d6112060a01310a0132188080042001",
        frame(10, new_stream(hello, 1, metadata(&[("grpc-timeout", &["5S"]), ("x-a", &["1", "2"])]))),
    );
    same(
        "080212350a2b2f6d616e6167656d656e742e4167656e74536572766963652f476574506f7765724d616e6167656d656e7412001880\
         80042001",
        frame(2, new_stream("/management.AgentService/GetPowerManagement", 1, metadata(&[]))),
    );
    same("1a00", frame(0, Some(down::Frame::RequestMessage(MessageData::default()))));
    same("2a00", frame(0, Some(down::Frame::HalfClose(()))));
    same("08011a00", frame(1, Some(down::Frame::RequestMessage(MessageData::default()))));
    same("08012a00", frame(1, Some(down::Frame::HalfClose(()))));
    let set = SetPowerManagementRequest {
        ipmi: Some(set_power_management_request::Ipmi {
            username: "talos-agent".into(),
            password: "0123456789abcdef".into(),
        }),
        api: None,
    };
    same(
        "08041a25082112210a1f0a0b74616c6f732d6167656e74121030313233343536373839616263646566",
        frame(4, Some(down::Frame::RequestMessage(whole(set)))),
    );
    same("08061a06080212020801", frame(6, Some(down::Frame::RequestMessage(whole(WipeDisksRequest { zeroes: true })))));
    same("08063200", frame(6, Some(down::Frame::Cancel(()))));
    same("080838808001", frame(8, Some(down::Frame::WindowUpdate(16_384))));
    same("08013805", frame(1, Some(down::Frame::WindowUpdate(5))));
    same("0801", frame(1, None));
}

#[test]
fn frames_of_the_agent_are_the_captured_octets() {
    let frame = |stream_id, frame| ServerToClient { stream_id, frame };
    let settings = |revisions: &[i32]| {
        Some(up::Frame::Settings(Settings {
            supported_protocol_revisions: revisions.to_vec(),
            initial_window_size: 65_536,
        }))
    };
    same("08ffffffffffffffffff0132080a02000110808004", frame(-1, settings(&[0, 1])));
    same("08ffffffffffffffffff0132070a010010808004", frame(-1, settings(&[0])));
    let ipmi = |address: &str| GetPowerManagementResponse {
        ipmi: Some(get_power_management_response::Ipmi { address: address.into(), port: 623, user_exists: true }),
        api: None,
    };
    same(
        "08021a15081112110a0f0a0831302e302e302e3510ef041801",
        frame(2, Some(up::Frame::ResponseMessage(whole(ipmi("10.0.0.5"))))),
    );
    let api = GetPowerManagementResponse { ipmi: None, api: Some(get_power_management_response::Api {}) };
    same("08031a06080212021200", frame(3, Some(up::Frame::ResponseMessage(whole(api)))));
    same("0805120d0a0b0a03782d6812040a026876", frame(5, metadata(&[("x-h", &["hv"])]).map(up::Frame::ResponseHeaders)));
    same(
        "08042a3e0a00123a080212366661696c656420746f207365742075702049504d4920757365723a206e6f20736c6f7420617661696c61\
         626c6520666f722075736572",
        frame(4, close(2, "failed to set up IPMI user: no slot available for user", metadata(&[]), vec![])),
    );
    let info = Any { type_url: "type.googleapis.com/google.rpc.ErrorInfo".into(), value: vec![0x0a, 0x01, b'R'] };
    same(
        "08052a4a0a0d0a0b0a03782d7412040a0274761239080912046e6f70651a2f0a28747970652e676f6f676c65617069732e636f6d2f67\
         6f6f676c652e7270632e4572726f72496e666f12030a0152",
        frame(5, close(9, "nope", metadata(&[("x-t", &["tv"])]), vec![info])),
    );
    same(
        "08062a180a00121408021210636f6e746578742063616e63656c6564",
        frame(6, close(2, "context canceled", metadata(&[]), vec![])),
    );
    same(
        "08072a321230080c122c6d616e6167656d656e742e4167656e74536572766963652f4e6f7065206e6f7420696d706c656d656e746564",
        frame(7, close(12, "management.AgentService/Nope not implemented", None, vec![])),
    );
    same(
        "080b2a1d121b080e1217736572766572206973207368757474696e6720646f776e",
        frame(11, close(14, "server is shutting down", None, vec![])),
    );
    same(
        "08012a240a0012200808121c666c6f7720636f6e74726f6c2077696e646f77206578636565646564",
        frame(1, close(8, "flow control window exceeded", metadata(&[]), vec![])),
    );
}

#[test]
fn bodies_of_the_calls_are_the_captured_octets() {
    let check = get_power_management_request::Ipmi { check_username: "talos-agent".into() };
    same("0a0d0a0b74616c6f732d6167656e74", GetPowerManagementRequest { ipmi: Some(check), api: None });
    let ipmi = get_power_management_response::Ipmi { address: "192.168.1.100".into(), port: 623, user_exists: true };
    same("0a140a0d3139322e3136382e312e31303010ef041801", GetPowerManagementResponse { ipmi: Some(ipmi), api: None });
    let api = Some(set_power_management_request::Api {});
    same("1200", SetPowerManagementRequest { ipmi: None, api });
}

#[test]
fn a_hello_from_both_roles_is_the_worked_example() {
    let mut agent = Responder::new(true, &["management.AgentService/Hello"], Limits::default());
    let mut provider = Caller::new(true, Limits::default());
    let settings = agent.transmit().unwrap();
    assert_eq!(settings.encode_to_vec(), octets("08ffffffffffffffffff0132080a02000110808004"));
    provider.receive(settings).unwrap();
    provider.call("/management.AgentService/Hello", Headers::default(), bytes::Bytes::new()).unwrap();
    let sent: Vec<Vec<u8>> = std::iter::from_fn(|| provider.transmit())
        .map(|frame| {
            let octets = frame.encode_to_vec();
            if let Accepted::Start(request) = agent.receive(frame).unwrap() {
                agent.respond(request.id, Ok(bytes::Bytes::new()));
            }
            octets
        })
        .collect();
    let new = "080112280a1e2f6d616e6167656d656e742e4167656e74536572766963652f48656c6c6f1200188080042001";
    assert_eq!(sent, [octets(new), octets("08011a00"), octets("08012a00")]);
    let answered: Vec<Vec<u8>> = std::iter::from_fn(|| agent.transmit()).map(|frame| frame.encode_to_vec()).collect();
    assert_eq!(answered, [octets("08011200"), octets("08011a00"), octets("08012a020a00")]);
}

#[test]
fn a_request_of_forty_kilobytes_is_three_frames_of_the_captured_sizes() {
    let mut provider = Caller::new(false, Limits::default());
    for _ in 0..7 {
        provider.call("/s/M", Headers::default(), bytes::Bytes::new()).unwrap();
    }
    while provider.transmit().is_some() {}
    provider.call("/s/M", Headers::default(), vec![0; 40_008].into()).unwrap();
    let frames: Vec<Vec<u8>> = std::iter::from_fn(|| provider.transmit()).map(|frame| frame.encode_to_vec()).collect();
    let data = &frames[1..4];
    assert_eq!(data.iter().map(Vec::len).collect::<Vec<_>>(), [16_398, 16_390, 7_245]);
    assert!(data[0].starts_with(&octets("08081a88800108c8b802128080")));
    assert!(data[1].starts_with(&octets("080822808001")) && data[2].starts_with(&octets("080822c838")));
}
