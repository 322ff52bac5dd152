//! Calls in an open tunnel, against a scripted agent.

use std::time::Duration;

use pilotlight::agent::{CallError, PowerManagement, Refused, Retry, TunnelState};
use pilotlight::secret::Secret;
use pilotlight::wire::tunnel::StreamFault;
use tonic::Code;

use super::*;

fn cancelled(frame: &down::Frame) -> bool {
    matches!(frame, down::Frame::Cancel(()))
}

/// Starts `power_management` for machine 1.
fn ask(provider: &Provider) -> tokio::task::JoinHandle<Result<PowerManagement, CallError>> {
    let tunnels = provider.tunnels.clone();
    tokio::spawn(async move { tunnels.power_management(&machine(1), PATIENCE).await })
}

#[tokio::test]
async fn ids_increase_on_the_wire_under_a_hundred_concurrent_calls() {
    let mut provider = Provider::start().await;
    let mut raw = provider.open(&machine(1)).await;
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let tunnels = provider.tunnels.clone();
            tokio::spawn(async move { tunnels.hello(&machine(1), PATIENCE).await })
        })
        .collect();
    let (mut last, mut answered) = (0, 0);
    while answered < 100 {
        match raw.receive().await {
            (id, down::Frame::NewStream(_)) => {
                assert!(id > last, "{id} after {last}");
                last = id;
            }
            (id, down::Frame::HalfClose(())) => {
                raw.answer(id, b"").await;
                answered += 1;
            }
            (_, down::Frame::RequestMessage(_)) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    for call in calls {
        within(call).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_agent_without_the_negotiate_header_gets_revision_zero() {
    let mut provider = Provider::start().await;
    let mut raw = Raw::dial_with(provider.address, |headers| {
        headers.insert("machine-id", machine(1).as_str().parse().unwrap());
    })
    .await
    .unwrap();
    assert!(matches!(provider.event(&machine(1)).await, TunnelState::Opened { .. }), "open without settings");
    let call = ask(&provider);
    let (id, frame) = raw.receive().await;
    assert!(matches!(frame, down::Frame::NewStream(new) if new.protocol_revision == 0));
    raw.send(id, whole(b"\x12\x00")).await;
    raw.send(id, close(0, "")).await;
    assert_eq!(within(call).await.unwrap().unwrap(), PowerManagement { ipmi: None, api: true });
    let next = ask(&provider);
    loop {
        match raw.receive().await {
            (2, down::Frame::HalfClose(())) => break,
            (_, down::Frame::WindowUpdate(_)) => panic!("a window_update in revision zero"),
            _ => {}
        }
    }
    next.abort();
}

#[tokio::test]
async fn every_way_to_end_a_call_reaches_the_caller() {
    let mut provider = Provider::start().await;
    let mut raw = provider.open(&machine(1)).await;
    // The answer may come in pieces, without headers, and without trailers.
    let bare = up::Frame::CloseStream(CloseStream::default());
    for (frames, want) in [
        (vec![whole(b"\x12\x00"), bare.clone()], Ok(true)),
        (vec![up::Frame::ResponseHeaders(Metadata::default()), whole(b""), close(0, "")], Ok(false)),
        (
            vec![
                up::Frame::ResponseMessage(MessageData { size: 2, data: vec![0x12].into() }),
                up::Frame::MoreResponseData(vec![0]),
                close(0, ""),
            ],
            Ok(true),
        ),
        (vec![whole(b"\x12\x00"), close(13, "error getting bmc ip port")], Err("error getting bmc ip port")),
        (vec![close(2, "nope")], Err("nope")),
        (vec![bare], Err("misbehaved")),
        (vec![whole(b""), whole(b"")], Err("misbehaved")),
        (vec![whole(&[0x0a, 0xff]), close(0, "")], Err("does not decode")),
        (vec![whole(b"\x0a\x03\x0a\x01x"), close(0, "")], Err("ipmi.address makes no sense")),
    ] {
        let call = ask(&provider);
        let id = loop {
            // A call that failed for its frames is cancelled, which shows up before the next one.
            match raw.receive().await {
                (id, down::Frame::HalfClose(())) => break id,
                (_, frame) => assert!(!matches!(frame, down::Frame::WindowUpdate(0))),
            }
        };
        for frame in frames {
            raw.send(id, frame).await;
        }
        match (within(call).await.unwrap(), want) {
            (Ok(answer), Ok(api)) => assert_eq!(answer, PowerManagement { ipmi: None, api }),
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (got, want) => panic!("got {got:?}, want {want:?}"),
        }
        // Late frames of an ended stream are ignored.
        raw.send(id, close(2, "late")).await;
        raw.send(id, up::Frame::WindowUpdate(7)).await;
    }
    assert!(provider.tunnels.is_open(&machine(1)));
}

#[tokio::test]
async fn a_deadline_sends_exactly_one_cancel_and_a_normal_end_none() {
    let mut provider = Provider::start().await;
    let mut raw = provider.open(&machine(1)).await;
    let error = provider.tunnels.hello(&machine(1), Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(error, CallError::Timeout { .. }) && error.retry() == Retry::Later);
    let (id, ..) = raw.accept().await;
    let frame = raw.receive().await;
    assert!(frame.0 == id && cancelled(&frame.1), "{frame:?}");
    raw.send(id, close(2, "context canceled")).await;
    for _ in 0..2 {
        let tunnels = provider.tunnels.clone();
        let call = tokio::spawn(async move { tunnels.hello(&machine(1), PATIENCE).await });
        // `accept` fails on a second cancel, or on one after the normal end.
        let (id, ..) = raw.accept().await;
        raw.answer(id, b"").await;
        within(call).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_caller_that_leaves_cancels_its_call() {
    let mut provider = Provider::start().await;
    let mut raw = provider.open(&machine(1)).await;
    let call = ask(&provider);
    let (id, ..) = raw.accept().await;
    call.abort();
    let frame = raw.receive().await;
    assert!(frame.0 == id && cancelled(&frame.1), "{frame:?}");
}

#[tokio::test]
async fn a_long_request_waits_for_slow_credit_and_holds_nobody_up() {
    let mut provider = Provider::start().await;
    let raw = Raw::dial(provider.address, machine(1).as_str()).await.unwrap();
    raw.send(-1, settings(&[0, 1], 0)).await;
    let mut raw = raw;
    assert!(matches!(provider.event(&machine(1)).await, TunnelState::Opened { .. }));
    let tunnels = provider.tunnels.clone();
    let password = Secret::new("p".repeat(100_000));
    let long = tokio::spawn(async move { tunnels.set_power_management(&machine(1), "u", &password, PATIENCE).await });
    let (long_id, frame) = raw.receive().await;
    assert!(matches!(frame, down::Frame::NewStream(_)));
    // Hello's empty request costs no credit.
    let tunnels = provider.tunnels.clone();
    let hello = tokio::spawn(async move { tunnels.hello(&machine(1), PATIENCE).await });
    let (id, ..) = raw.accept().await;
    raw.answer(id, b"").await;
    within(hello).await.unwrap().unwrap();

    let mut received = 0;
    let mut credit = 1;
    loop {
        raw.send(long_id, up::Frame::WindowUpdate(credit)).await;
        let (id, frame) = raw.receive().await;
        assert_eq!(id, long_id);
        let got = match frame {
            down::Frame::RequestMessage(first) => first.data.len(),
            down::Frame::MoreRequestData(more) => more.len(),
            down::Frame::HalfClose(()) => break,
            other => panic!("unexpected {other:?}"),
        };
        assert!(got <= credit as usize && got <= 16_384);
        received += got;
        credit = (credit * 2).min(16_384);
    }
    assert!(received > 100_000);
    raw.answer(long_id, b"").await;
    within(long).await.unwrap().unwrap();
    raw.send(long_id, up::Frame::WindowUpdate(u32::MAX)).await;
    assert!(provider.tunnels.is_open(&machine(1)));
}

#[tokio::test]
async fn an_answer_beyond_our_window_fails_its_call_alone() {
    let mut provider = Provider::start().await;
    let mut raw = provider.open(&machine(1)).await;
    let call = ask(&provider);
    let (bad, ..) = raw.accept().await;
    let tunnels = provider.tunnels.clone();
    let other = tokio::spawn(async move { tunnels.hello(&machine(1), PATIENCE).await });
    let (good, ..) = raw.accept().await;
    raw.send(bad, whole(&[0; 70_000])).await;
    let error = within(call).await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Misbehaved { fault: StreamFault::WindowExceeded, .. }), "{error}");
    let frame = raw.receive().await;
    assert!(frame.0 == bad && cancelled(&frame.1), "{frame:?}");
    raw.answer(good, b"").await;
    within(other).await.unwrap().unwrap();
    assert_eq!(provider.refused(Refused::StreamFault), 1);
}

#[tokio::test]
async fn an_agents_error_keeps_its_code_and_says_whether_to_retry() {
    let mut provider = Provider::start().await;
    let mut raw = provider.open(&machine(1)).await;
    for (code, retry) in [(9, Retry::Later), (12, Retry::Never), (99, Retry::Later)] {
        let call = ask(&provider);
        let (id, ..) = raw.accept().await;
        raw.send(id, close(code, "words")).await;
        let error = within(call).await.unwrap().unwrap_err();
        assert_eq!(error.retry(), retry);
        let CallError::Refused { code: got, .. } = error else { panic!("{error}") };
        assert_eq!(got, Code::from_i32(code));
    }
}

#[tokio::test]
async fn passwords_are_in_no_error() {
    let provider = Provider::start().await;
    let password = Secret::new("hunter2hunter2".to_owned());
    let error = provider.tunnels.set_power_management(&machine(1), "talos-agent", &password, PATIENCE).await;
    assert!(!format!("{error:?}").contains("hunter2"));
}
