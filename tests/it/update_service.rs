//! The update service as a process of its own, with a real web server as its source and the test in init's place.

mod site;

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::Command;

use ed25519_dalek::SigningKey;
use pilotlight::slots::{Slot, Version};
use pilotlight::supervise::control::Request as Asked;
use pilotlight::update::Manifest;
use pilotlight::update::protocol::{Asked as Besides, LARGEST_PART, Phase, Request, Response, Url};
use pilotlight::update::service::{Upload, client, compatible};

use crate::peers;
use site::{CHUNK, Server, TheBox, bundle, image, key, manifest, version};

const MIB: u64 = 1 << 20;

fn fetch(url: String) -> Request {
    Request::Fetch(Url::new(url), Besides::default())
}

/// What init is asked when all goes well.
fn in_order(new: &str) -> [Asked; 3] {
    [Asked::Status, Asked::Withdraw(Slot::B), Asked::Try { slot: Slot::B, version: version(new), asked: false }]
}

#[tokio::test]
async fn a_download_whose_server_dies_goes_on_and_touches_one_slot_alone() {
    let Some(mut server) = Server::start("2m") else { return };
    let the_box = TheBox::start("1.0.0");
    let image = image(6 * MIB);
    let whole = bundle(&manifest("1.1.0", &image), &image);
    server.offer("new.bundle", &whole);
    let before = the_box.slot_a();
    the_box.ask(fetch(server.url("new.bundle"))).await;
    let held = the_box.until_held(MIB).await;
    server.kill();
    the_box.until(|job| matches!(job.phase, Phase::Waiting { .. })).await;
    server.restart();
    let job = the_box.until(|job| job.ended()).await;
    assert_eq!((job.phase, job.held, job.total), (Phase::Written(Slot::B), 6 * MIB, 6 * MIB));
    assert_eq!(the_box.slot_b(image.len()), image);
    assert_eq!(the_box.slot_a(), before, "the slot that runs");
    assert_eq!(the_box.asked(), in_order("1.1.0"));
    // What was written when the server died is not asked for again.
    let head = whole.len() as u64 - 6 * MIB;
    let resumed = server.ranges().into_iter().find(|first| *first > head + CHUNK).expect("it went on");
    assert!(resumed >= head + held, "asked from {resumed} on, {held} octets were held behind {head}");
}

#[tokio::test]
async fn a_service_that_is_killed_goes_on_without_fetching_anything_twice() {
    let Some(server) = Server::start("2m") else { return };
    let mut the_box = TheBox::start("1.0.0");
    let image = image(6 * MIB);
    let whole = bundle(&manifest("1.1.0", &image), &image);
    server.offer("new.bundle", &whole);
    the_box.ask(fetch(server.url("new.bundle") + "?token=hunter2")).await;
    let held = the_box.until_held(MIB).await;
    the_box.kill();
    assert_ne!(the_box.slot_b(512), image[..512], "an unfinished slot does not load");
    the_box.restart();
    let job = the_box.until(|job| job.ended()).await;
    assert_eq!(job.phase, Phase::Written(Slot::B));
    assert_eq!(the_box.slot_b(image.len()), image);
    let head = whole.len() as u64 - 6 * MIB;
    // Head of the bundle, body, (killed) head of the bundle, the rest of the body, the first chunk.
    let ranges = server.ranges();
    assert_eq!(ranges.len(), 5, "{ranges:?}");
    assert_eq!([ranges[0], ranges[1], ranges[2], ranges[4]], [0, head + CHUNK, 0, head]);
    assert!(ranges[3] >= head + held, "{ranges:?}: {held} were held");
    assert!(!the_box.log().contains("hunter2") && !job.from.contains("hunter2"), "{}", the_box.log());
    // What is done is not done again.
    the_box.kill();
    the_box.restart();
    assert!(the_box.state().await.job.is_none());
}

/// Where a proxy leads out, the bundle's server is reached through it alone: this one has no other way.
#[tokio::test]
async fn a_download_goes_through_the_proxy_that_the_environment_names() {
    let Some(server) = Server::start("0") else { return };
    let (proxy, targets) = site::proxy_to(server.port());
    let the_box = TheBox::start_behind("1.0.0", &proxy);
    let image = image(MIB);
    server.offer("new.bundle", &bundle(&manifest("1.1.0", &image), &image));
    // TEST-NET-3 of RFC 5737: nobody answers there.
    the_box.ask(fetch("http://203.0.113.9:8080/new.bundle".into())).await;
    assert_eq!(the_box.until(|job| job.ended()).await.phase, Phase::Written(Slot::B));
    assert_eq!(the_box.slot_b(image.len()), image);
    assert!(targets.try_iter().all(|target| target == "CONNECT 203.0.113.9:8080 HTTP/1.1"));
}

#[tokio::test]
async fn what_is_not_for_this_box_is_refused_by_name_and_written_nowhere() {
    let mut the_box = TheBox::start("1.2.0");
    let image = image(300_000);
    let good = manifest("1.3.0", &image);
    let offered = |of: &Manifest| bundle(of, &image);
    let foreign = Manifest { compatible: "toaster-mk2".into(), ..good.clone() };
    let minimum = Manifest { minimum: Some(version("1.2.5")), ..good.clone() };
    let foreign_key = [pilotlight::update::sign(&good, &SigningKey::from_bytes(&[9; 32])), image.clone()].concat();
    let mut tampered = offered(&good);
    tampered[60] ^= 1;
    let truncated = offered(&good)[..200].to_vec();
    the_box.failed("1.2.9");
    let cases: [(Vec<u8>, &str); 9] = [
        (tampered, "tampered with"),
        (truncated, "truncated"),
        (b"#!/bin/sh\nthis is a script and no bundle".to_vec(), "not a Pilotlight bundle"),
        (foreign_key, "does not trust"),
        (offered(&foreign), "is for toaster-mk2"),
        (offered(&manifest("1.1.9", &image)), "older than 1.2.0"),
        (offered(&minimum), "needs version 1.2.5"),
        (offered(&manifest("1.2.9", &image)), "failed its trial"),
        (offered(&manifest("1.2.0", &image)), "runs already"),
    ];
    let (a, b) = (the_box.slot_a(), the_box.slot_b(300_000));
    for (octets, reason) in cases {
        fs::write(the_box.stick().join("pilotlight-x.bundle"), octets).expect("a stick");
        the_box.ask(Request::Stick("pilotlight-x.bundle".into(), Besides::default())).await;
        let job = the_box.until(|job| job.ended()).await;
        assert!(matches!(&job.phase, Phase::Failed(why) if why.contains(reason)), "{reason}: {:?}", job.phase);
    }
    assert!(the_box.asked().iter().all(|asked| *asked == Asked::Status), "{:?}", the_box.asked());
    assert_eq!((the_box.slot_a(), the_box.slot_b(300_000)), (a.clone(), b), "nothing was written");

    // What is wrong with the image shows while it is written: the slot does not load then.
    let mut in_the_middle = offered(&good);
    let at = in_the_middle.len() - 100_000;
    in_the_middle[at] ^= 1;
    let cut = offered(&good)[..250_000].to_vec();
    let large = {
        let image = site::image(site::SLOT + 1);
        bundle(&manifest("1.3.0", &image), &image)
    };
    for (octets, reason) in [(in_the_middle, "tampered with"), (cut, "truncated"), (large, "the image")] {
        fs::write(the_box.stick().join("pilotlight-x.bundle"), octets).expect("a stick");
        the_box.ask(Request::Stick("pilotlight-x.bundle".into(), Besides::default())).await;
        let job = the_box.until(|job| job.ended()).await;
        assert!(matches!(&job.phase, Phase::Failed(why) if why.contains(reason)), "{reason}: {:?}", job.phase);
        assert_ne!(the_box.slot_b(512), image[..512]);
    }
    assert!(!the_box.asked().iter().any(|asked| matches!(asked, Asked::Try { .. })));
    assert_eq!(the_box.slot_a(), a);

    // Asked for, the older one is taken, and init is told that it was.
    fs::write(the_box.stick().join("pilotlight-x.bundle"), offered(&manifest("1.1.9", &image))).expect("a stick");
    let besides = Besides { downgrade: true, restart: true, ..Besides::default() };
    the_box.ask(Request::Stick("pilotlight-x.bundle".into(), besides)).await;
    let job = the_box.until(|job| job.ended()).await;
    assert_eq!(job.phase, Phase::Written(Slot::B));
    the_box.until_asked(&Asked::Reboot).await;
    let tried = Asked::Try { slot: Slot::B, version: version("1.1.9"), asked: true };
    assert!(the_box.asked().contains(&tried), "{:?}", the_box.asked());
    the_box.kill();
}

#[tokio::test]
async fn an_upload_passes_in_parts_and_one_update_runs_at_a_time() {
    let the_box = TheBox::start("1.0.0");
    let image = image(2 * MIB + 77);
    let whole = bytes::Bytes::from(bundle(&manifest("1.1.0", &image), &image));
    let client = client(&the_box.socket());
    let mut upload = Upload::begin(&client, Besides::default()).await.expect("it begins");
    let other = client.call(&fetch("http://127.0.0.1:9/x".into())).await.expect("it answers");
    assert!(matches!(other, Response::Refused(why) if why.contains("already")));
    for part in whole.chunks(LARGEST_PART) {
        assert!(upload.part(bytes::Bytes::copy_from_slice(part)).await.expect("it is taken"));
    }
    upload.end().await.expect("it ends");
    assert_eq!(the_box.until(|job| job.ended()).await.phase, Phase::Written(Slot::B));
    assert_eq!(the_box.slot_b(image.len()), image);

    // An upload that is given up in the middle frees the service; the next goes on from what is there.
    let image: Vec<u8> = site::image(2 * MIB).iter().map(|octet| !octet).collect();
    let whole = bundle(&manifest("1.1.1", &image), &image);
    let mut upload = Upload::begin(&client, Besides::default()).await.expect("it begins");
    for part in whole[..whole.len() / 2].chunks(LARGEST_PART) {
        assert!(upload.part(bytes::Bytes::copy_from_slice(part)).await.expect("it is taken"));
    }
    upload.abandon().await;
    assert_eq!(the_box.until(|job| job.ended()).await.phase, Phase::Cancelled);
    let mut upload = Upload::begin(&client, Besides::default()).await.expect("it begins");
    for part in whole.chunks(LARGEST_PART) {
        if !upload.part(bytes::Bytes::copy_from_slice(part)).await.expect("it is taken") {
            break;
        }
    }
    upload.end().await.expect("it ends");
    assert_eq!(the_box.until(|job| job.ended()).await.phase, Phase::Written(Slot::B));
    assert_eq!(the_box.slot_b(image.len()), image);
}

#[tokio::test]
async fn a_slot_that_fails_is_named_with_the_kernels_reason() {
    if !peers::require("losetup", "mount") {
        return;
    }
    let Some(full) = site::FullDisk::new() else { return };
    let image = image(2 * MIB);
    for (device, reason) in [(full.file(), "No space left on device"), (full.block(), "Input/output error")] {
        let the_box = TheBox::start("1.0.0");
        the_box.write_to(&device);
        fs::write(the_box.stick().join("pilotlight.bundle"), bundle(&manifest("1.1.0", &image), &image))
            .expect("a stick");
        the_box.ask(Request::Stick("pilotlight.bundle".into(), Besides::default())).await;
        let job = the_box.until(|job| job.ended()).await;
        assert!(matches!(&job.phase, Phase::Failed(why) if why.contains(reason)), "{reason}: {:?}", job.phase);
        let mut first = [1; 512];
        fs::File::open(&device).expect("it is there").read_exact_at(&mut first, 0).expect("it reads");
        assert_ne!(first, image[..512], "it does not load");
        assert!(!the_box.asked().iter().any(|asked| matches!(asked, Asked::Try { .. })));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_takes_a_file_from_curl_and_says_how_it_went() {
    if !peers::require("curl", "curl") {
        return;
    }
    let the_box = TheBox::start("1.0.0");
    let image = image(3 * MIB);
    let path = the_box.path("new.bundle");
    fs::write(&path, bundle(&manifest("1.1.0", &image), &image)).expect("a file");
    let page = the_box.page(site::Open).await;
    let curl = |args: &[&str]| {
        let output = Command::new("curl").args(["-sS", "-w", "\n%{http_code} %{redirect_url}"]).args(args).output();
        String::from_utf8(output.expect("curl runs").stdout).expect("text")
    };
    let file = format!("bundle=@{}", path.display());
    let answer = tokio::task::block_in_place(|| curl(&["-F", "restart=on", "-F", &file, &page.url("/update/file")]));
    assert!(answer.ends_with(&format!("303 {}", page.url("/update"))), "{answer}");
    assert_eq!(the_box.until(|job| job.ended()).await.phase, Phase::Written(Slot::B));
    assert_eq!(the_box.slot_b(image.len()), image);
    the_box.until_asked(&Asked::Reboot).await;
    let shown = tokio::task::block_in_place(|| curl(&[&page.url("/update")]));
    assert!(shown.contains("Version 1.1.0") && shown.contains("It is in slot B"), "{shown}");

    // A program sends it as the body; what is refused is said with the answer.
    fs::write(&path, bundle(&manifest("0.9.0", &image), &image)).expect("a file");
    let put = ["-T", path.to_str().expect("text"), &page.url("/update/file")];
    tokio::task::block_in_place(|| curl(&put));
    let job = the_box.until(|job| job.ended()).await;
    assert!(matches!(&job.phase, Phase::Failed(why) if why.contains("older than 1.0.0")), "{:?}", job.phase);
    let shown = tokio::task::block_in_place(|| curl(&[&page.url("/update")]));
    assert!(shown.contains("Not installed: version 0.9.0 is older"), "{shown}");
    let form = ["-d", "url=ftp%3A%2F%2Fx%2Fy", &page.url("/update/url")];
    let answer = tokio::task::block_in_place(|| curl(&form));
    assert!(answer.contains("no http or https URL") && answer.ends_with("409 "), "{answer}");

    // Who may not change the box changes nothing, and the service hears nothing of it.
    let closed = the_box.page(pilotlight::web::guard::Closed).await;
    let asked = the_box.asked().len();
    for path in ["url", "stick", "file", "cancel", "restart"] {
        let url = closed.url(&format!("/update/{path}"));
        let answer = tokio::task::block_in_place(|| curl(&["-d", "url=http://127.0.0.1/&name=x", &url]));
        assert!(answer.contains("can&#39;t be changed") && answer.ends_with("403 "), "{path}: {answer}");
    }
    assert_eq!(the_box.asked().len(), asked);
}

#[test]
fn the_service_trusts_the_keys_it_is_given() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_pilotlight")).args(["service", "update", "--update-key=abc"]).output();
    let mut text = String::new();
    output.expect("it starts").stderr.as_slice().read_to_string(&mut text).expect("text");
    assert!(text.contains("--update-key") && text.contains("no ed25519 public key"), "{text}");
    assert!(
        Version::parse("1.0.0").is_some() && compatible().starts_with("pilotlight-") && key().to_bytes().len() == 32
    );
}
