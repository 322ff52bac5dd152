//! What our client says when Omni refuses: each time what is wrong and what to do about it.

use std::time::Duration;

use pilotlight::lab::omni::account::ServiceAccount;
use pilotlight::lab::omni::role::Role;
use pilotlight::lab::omni::{Omni, Options};
use pilotlight::omni::provider::{Registration, provider_status_kind, register};
use pilotlight::omni::{Client, Config, Error, Retry, proxy};
use pilotlight::proto::specs::InfraProviderStatusSpec;
use pilotlight::resource::{Kind, Resource};
use pilotlight::secret::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tonic::Code;

const ID: &str = "metal-1";
const HOUR: Duration = Duration::from_secs(3_600);

fn client(omni: &Omni, account: &ServiceAccount) -> Client {
    let key = Some(account.key_string.clone());
    Client::connect(Config { endpoint: omni.endpoint(), key, provider_id: ID.to_owned(), ..Config::default() }).unwrap()
}

/// What registering comes to.
async fn refused(client: &Client) -> Error {
    register(client.state(), ID, &Registration::default()).await.expect_err("Omni refuses")
}

#[tokio::test]
async fn each_refusal_says_what_to_do() {
    let omni = Omni::start(Options::loopback(ID)).await.unwrap();
    let provider = client(&omni, omni.service_account());
    let told = |error: Error, words: &[&str], retry: Retry| {
        let text = error.explain();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert_eq!(error.retry(), retry, "{text}");
    };

    omni.faults().suspend(true);
    told(refused(&provider).await, &["not allowed", "whether the account is suspended"], Retry::Operator);
    omni.faults().suspend(false);
    let reader = ServiceAccount::person("reader", Role::Reader, HOUR).unwrap();
    omni.add_account(&reader);
    told(refused(&client(&omni, &reader)).await, &["use an infra provider's key"], Retry::Operator);
    let stranger = ServiceAccount::create("metal-9", HOUR).unwrap();
    omni.add_account(&stranger);
    let unknown = refused(&client(&omni, &stranger)).await;
    told(unknown, &["\"metal-9\"", "create it with `omnictl infraprovider create"], Retry::Operator);

    for (code, text, words, retry) in [
        (
            Code::FailedPrecondition,
            "EULA has not been accepted; visit the dashboard",
            &["EULA has not been accepted", "sign in to Omni as an administrator and accept it"][..],
            Retry::Operator,
        ),
        (Code::ResourceExhausted, "write rate", &["asks for patience", "write rate"], Retry::Later),
        (Code::DeadlineExceeded, "too slow", &["no answer in time"], Retry::Later),
        (Code::Unavailable, "moving", &["not reachable", "firewall", "moving"], Retry::Later),
        (Code::Unauthenticated, "invalid signature", &["refused the key", "renewkey"], Retry::Operator),
        (Code::Unimplemented, "unknown service", &["too old"], Retry::Never),
        (Code::DataLoss, "disk on fire", &["DataLoss", "disk on fire"], Retry::Later),
    ] {
        omni.faults().refuse(code, text);
        told(refused(&provider).await, words, retry);
    }
    omni.faults().serve_again();

    let mut taken = Resource::new(provider_status_kind(), ID, &InfraProviderStatusSpec::default());
    taken.labels.insert("omni.sidero.dev/infra-provider-id".into(), ID.into());
    taken.owner = "somebody".into();
    omni.state().create(taken, "somebody").unwrap();
    let stored = provider.state().get(&provider_status_kind(), ID).await.unwrap();
    let conflict = provider.state().update(&stored, "", None).await.unwrap_err();
    told(conflict, &["somebody", "another provider program running under this ID"], Retry::Operator);
    let machines = Kind::omni("InfraMachines");
    let read_only = provider.state().create(Resource::new(machines, "m", &()), "").await.unwrap_err();
    told(read_only, &["read-only for providers", "only finalizers"], Retry::Never);
    let links = Kind::new("default", "Links.omni.sidero.dev");
    let hidden = provider.state().get(&links, "m").await.unwrap_err();
    told(hidden, &["not allowed for this key", "insufficient role"], Retry::Operator);
    omni.shutdown().await;
}

/// What is said of Omni behind a proxy that leads nowhere.
async fn told_of(proxy: String) -> String {
    let variables = proxy::Variables { proxy: Some(Secret::new(proxy)), no_proxy: String::new() };
    let config = Config { endpoint: "http://omni.example:8080".into(), proxy: variables, ..Config::default() };
    let client = Client::connect(config).unwrap();
    client.state().get(&Kind::omni("InfraMachines"), "m").await.unwrap_err().explain()
}

#[tokio::test]
async fn a_proxy_that_keeps_silent_is_not_waited_for_forever() {
    // Nobody accepts: the kernel does, and nothing is ever answered.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let told = told_of(address.to_string()).await;
    assert!(told.contains(&format!("the proxy {address} of HTTPS_PROXY did not answer in time")), "{told}");
}

#[tokio::test]
async fn a_proxy_that_leads_nowhere_is_named_with_its_variable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answers: [&[u8]; 4] = [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", &[b'x'; 9_000], b"HTTP/1.1 503 Full\r\n\r\n", b""];
    let proxy = tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            // The other side may have heard enough.
            let _ = stream.write_all(answer).await;
        }
    });
    for words in [
        "answers no HTTP",
        "answers no HTTP",
        "refuses a tunnel to omni.example:8080: HTTP/1.1 503",
        "cannot be reached",
    ] {
        let told = told_of(address.to_string()).await;
        assert!(told.contains(words) && told.contains(&format!("the proxy {address} of HTTPS_PROXY")), "{told}");
    }
    proxy.await.unwrap();
    let told = told_of(format!("http://{address}")).await;
    assert!(told.contains("of HTTPS_PROXY cannot be reached") && told.contains("refused"), "{told}");
}
