//! Omni's own command line against the lab's Omni, in the test and as `pilotlight lab` serves it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pilotlight::lab::omni::controller::machine_configs;
use pilotlight::lab::omni::join_tokens::join_token_statuses;
use pilotlight::lab::omni::token;
use pilotlight::lab::omni::{Omni, Options};
use pilotlight::proto::siderolink::ProvisionRequest;
use pilotlight::proto::siderolink::provision_service_client::ProvisionServiceClient;
use pilotlight::proto::specs::infra_machine_config_spec::AcceptanceStatus;
use pilotlight::proto::specs::{InfraMachineConfigSpec, InfraProviderStatusSpec, ProviderJoinConfigSpec};
use pilotlight::resource::{Kind, LABEL_INFRA_PROVIDER_ID, LABEL_IS_STATIC_INFRA_PROVIDER, Resource};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tonic::transport::Channel;

use crate::{go, peers};

/// What a machine shows of its tunnel's key.
const WIREGUARD_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const ID: &str = "metal-1";
const UUID: &str = "4c4c4544-0044-4810-8031-b4c04f333132";

/// The version that is built.
const OMNICTL: &str = "peer 3: omnictl v1.9.3";
/// Longer than any command takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Omni's command line with a key and a home of its own.
struct Omnictl {
    program: PathBuf,
    endpoint: String,
    key: String,
    home: tempfile::TempDir,
    commands: std::cell::Cell<u32>,
}

impl Omnictl {
    fn new(program: PathBuf, endpoint: String, key: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        Self { program, endpoint, key: key.to_owned(), home, commands: Default::default() }
    }

    /// Runs it; its output, or what it complains of.
    async fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let ran = Command::new(&self.program)
            .args(arguments)
            .env("HOME", self.home.path())
            .env("OMNI_ENDPOINT", &self.endpoint)
            .env("OMNI_SERVICE_ACCOUNT_KEY", &self.key)
            .env_remove("SIDERO_SERVICE_ACCOUNT_KEY")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let ran = tokio::time::timeout(PATIENCE, ran).await.expect("omnictl ends").unwrap();
        self.commands.set(self.commands.get() + 1);
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        if ran.status.success() { Ok(text(&ran.stdout)) } else { Err(text(&ran.stderr)) }
    }

    /// Runs each, whose output has the text beside it.
    async fn say(&self, commands: &[(&[&str], &str)]) {
        for (arguments, expected) in commands {
            let output = self.run(arguments).await.unwrap_or_else(|complaint| panic!("{arguments:?}: {complaint}"));
            assert!(output.contains(expected), "{arguments:?}: {output}");
        }
    }

    /// Applies what `yaml` says.
    async fn apply(&self, yaml: &str) -> Result<String, String> {
        let file = self.home.path().join("resource.yaml");
        std::fs::write(&file, yaml).unwrap();
        self.run(&["apply", "-f", file.to_str().unwrap()]).await
    }
}

/// What a person says about a machine: 1 accepts it, 2 rejects it.
fn config(uuid: &str, acceptance: u32) -> String {
    format!(
        "metadata:\n  namespace: default\n  type: InfraMachineConfigs.omni.sidero.dev\n  id: {uuid}\nspec:\n  \
         acceptancestatus: {acceptance}\n  cordoned: true\n"
    )
}

/// A machine of a static provider that waits for its user.
async fn machine(omni: &Omni) {
    let mut status = Resource::new(
        Kind::omni("InfraProviderStatuses"),
        ID,
        &InfraProviderStatusSpec { name: "Metal".into(), ..Default::default() },
    );
    status.labels.insert(LABEL_IS_STATIC_INFRA_PROVIDER.into(), String::new());
    status.labels.insert(LABEL_INFRA_PROVIDER_ID.into(), ID.into());
    omni.state().create(status, "").unwrap();
    let config = omni.state().get(&Kind::omni("ProviderJoinConfigs"), ID).unwrap();
    let secret = config.decode::<ProviderJoinConfigSpec>().unwrap().join_token;
    let join_token = Some(token::for_provider(&secret, ID));
    let join = ProvisionRequest {
        node_public_key: WIREGUARD_KEY.into(),
        node_uuid: UUID.into(),
        join_token,
        ..Default::default()
    };
    let channel = Channel::from_shared(omni.endpoint()).unwrap().connect().await.unwrap();
    ProvisionServiceClient::new(channel).provision(join).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn omnictl_gets_applies_deletes_and_makes_providers() {
    let Some(program) = go::program("omnictl") else { return };
    let omni = Omni::start(Options::loopback(ID)).await.unwrap();
    machine(&omni).await;
    let omnictl = Omnictl::new(program, omni.endpoint(), omni.admin().key_string.reveal());

    omnictl
        .say(&[
            (&["get", "rd"], "inframachines.omni.sidero.dev"),
            (&["get", "inframachines"], UUID),
            (&["get", "im", UUID, "-o", "yaml"], "preferredpowerstate: 1"),
            (&["get", "links", "-o", "json"], "\"nodesubnet\""),
            (&["get", "namespaces"], "infra-provider:metal-1"),
            (&["get", "sysversions", "-n", "ephemeral", "-o", "yaml"], "backendapiversion: 2"),
            (&["infraprovider", "list"], "Metal"),
            (&["infraprovider", "create", "virtual"], "OMNI_SERVICE_ACCOUNT_KEY="),
            (&["infraprovider", "renewkey", "virtual"], "OMNI_SERVICE_ACCOUNT_KEY="),
            (&["get", "infraproviders"], "virtual"),
        ])
        .await;

    omnictl.apply(&config(UUID, 1)).await.unwrap();
    let stored: InfraMachineConfigSpec = omni.state().get(&machine_configs(), UUID).unwrap().decode().unwrap();
    assert!(stored.acceptance_status() == AcceptanceStatus::Accepted && stored.cordoned);
    let accepted = omni
        .controller()
        .wait(UUID, |known| known.filter(|known| known.acceptance == AcceptanceStatus::Accepted).map(drop));
    tokio::time::timeout(Duration::from_secs(10), accepted).await.unwrap();
    let complaint = omnictl.apply(&config(UUID, 2)).await.unwrap_err();
    assert!(complaint.contains("was accepted already"), "{complaint}");

    omnictl.run(&["delete", "infraproviders", "virtual"]).await.unwrap();
    let providers = Kind::omni("InfraProviders");
    assert!(omni.state().get(&providers, "virtual").is_err());
    assert!(omni.state().get(&Kind::omni("ProviderJoinConfigs"), "virtual").is_err(), "cleaned up after");
    let complaint = omnictl.run(&["delete", "inframachines", UUID]).await.unwrap_err();
    assert!(complaint.contains("PermissionDenied"), "{complaint}");
    let calls: u64 = omni.calls().values().sum();
    peers::say(&format!("{OMNICTL}: {} commands, {calls} calls", omnictl.commands.get()));
    omni.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn omnictl_manages_join_tokens_power_and_what_providers_want_to_know() {
    let Some(program) = go::program("omnictl") else { return };
    let omni = Omni::start(Options::loopback(ID)).await.unwrap();
    machine(&omni).await;
    let omnictl = Omnictl::new(program, omni.endpoint(), omni.admin().key_string.reveal());

    let plain = omnictl.run(&["jointoken", "create", "rack"]).await.unwrap().trim().to_owned();
    let listed = async |words: [&str; 3]| {
        let mut bells = omni.state().bells([join_token_statuses()]);
        let told = tokio::time::timeout(PATIENCE, async {
            loop {
                let list = omnictl.run(&["jointoken", "list"]).await.unwrap();
                let row = list.lines().find(|line| line.starts_with(&plain)).unwrap_or_default();
                if words == row.split_whitespace().skip(1).filter(|word| *word != "never").collect::<Vec<_>>()[..] {
                    return;
                }
                bells.rung().await;
            }
        });
        told.await.unwrap_or_else(|_| panic!("{words:?}"));
    };
    listed(["rack", "ACTIVE", "0"]).await;
    let join = ProvisionRequest {
        node_public_key: WIREGUARD_KEY.into(),
        node_uuid: "4c4c4544-0000-4810-8031-b4c04f333132".into(),
        join_token: Some(plain.clone()),
        ..Default::default()
    };
    let channel = Channel::from_shared(omni.endpoint()).unwrap().connect().await.unwrap();
    ProvisionServiceClient::new(channel).provision(join).await.unwrap();
    listed(["rack", "ACTIVE", "1"]).await;
    let complaint = omnictl.run(&["jointoken", "revoke", &plain]).await.unwrap_err();
    assert!(complaint.contains("1 of 1 machine won't be able to connect"), "{complaint}");
    omnictl.say(&[(&["jointoken", "revoke", &plain, "--force"], "was revoked")]).await;
    listed(["rack", "REVOKED", "1"]).await;
    omnictl.run(&["jointoken", "unrevoke", &plain]).await.unwrap();
    listed(["rack", "ACTIVE", "1"]).await;
    omnictl.run(&["jointoken", "make-default", &plain]).await.unwrap();
    let complaint = omnictl.run(&["jointoken", "delete", &plain, "--force"]).await.unwrap_err();
    assert!(complaint.contains("deleting default join token is not possible"), "{complaint}");
    omnictl.run(&["jointoken", "create", "a name that is too long"]).await.unwrap_err();

    omnictl.apply(&config(UUID, 1)).await.unwrap();
    let accepted = omni
        .controller()
        .wait(UUID, |known| known.filter(|known| known.acceptance == AcceptanceStatus::Accepted).map(drop));
    tokio::time::timeout(PATIENCE, accepted).await.unwrap();
    let wish = || {
        let config = omni.state().get(&machine_configs(), UUID).unwrap();
        config.decode::<InfraMachineConfigSpec>().unwrap().power_off_request_id
    };
    omnictl.run(&["machine", "shutdown", UUID]).await.unwrap();
    assert!(!wish().is_empty());
    omnictl.run(&["machine", "power-on", UUID]).await.unwrap();
    assert!(wish().is_empty());

    let schema = r#"{"properties": {"cores": {"type": "integer"}}}"#.to_owned();
    let mut maker = Resource::new(
        Kind::omni("InfraProviderStatuses"),
        "virtual",
        &InfraProviderStatusSpec { schema, ..Default::default() },
    );
    maker.labels.insert(LABEL_INFRA_PROVIDER_ID.into(), "virtual".into());
    omni.state().create(maker, "").unwrap();
    let class = |data: &str| {
        format!(
            "metadata:\n  namespace: default\n  type: MachineClasses.omni.sidero.dev\n  id: large\nspec:\n  \
             autoprovision:\n    providerid: virtual\n    providerdata: '{data}'\n"
        )
    };
    let complaint = omnictl.apply(&class("cores: many")).await.unwrap_err();
    assert!(complaint.contains("/cores: want integer"), "{complaint}");
    omnictl.apply(&class("cores: 4")).await.unwrap();
    peers::say(&format!("{OMNICTL}, join tokens, power, classes: {} commands", omnictl.commands.get()));
    omni.shutdown().await;
}

/// Reads the lab's welcome: the endpoint of its Omni and the administrator's key.
async fn welcome(lab: &mut tokio::process::Child) -> (String, String) {
    let mut lines = BufReader::new(lab.stdout.take().unwrap()).lines();
    let (mut endpoint, mut key) = (None, None);
    while endpoint.is_none() || key.is_none() {
        let line = lines.next_line().await.unwrap().expect("the lab starts");
        if let Some(url) = line.strip_prefix("  Omni ") {
            endpoint = Some(url.trim().to_owned());
        } else if let Some(path) = line.strip_prefix("  admin key ") {
            key = Some(std::fs::read_to_string(Path::new(path.trim())).unwrap().trim().to_owned());
        }
    }
    // What else it says is not waited for.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (endpoint.unwrap(), key.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn omnictl_works_against_the_lab() {
    let Some(program) = go::program("omnictl") else { return };
    let mut lab = Command::new(env!("CARGO_BIN_EXE_pilotlight"))
        .args(["lab", "--machines", "1", "--omni-listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (endpoint, key) = tokio::time::timeout(PATIENCE, welcome(&mut lab)).await.expect("the lab starts");
    let omnictl = Omnictl::new(program, endpoint, &key);
    omnictl.say(&[(&["get", "infraproviders"], "lab"), (&["get", "sysversions", "-n", "ephemeral"], "current")]).await;
    omnictl.apply(&config(UUID, 1)).await.unwrap();
    omnictl
        .say(&[
            (&["get", "inframachineconfigs", UUID, "-o", "yaml"], "cordoned: true"),
            (&["delete", "inframachineconfigs", UUID], ""),
            (&["infraprovider", "create", "virtual"], "OMNI_SERVICE_ACCOUNT_KEY="),
            (&["infraprovider", "list"], "virtual"),
        ])
        .await;
    omnictl.run(&["get", "inframachineconfigs", UUID]).await.unwrap_err();
    peers::say(&format!("{OMNICTL} against pilotlight lab: {} commands", omnictl.commands.get()));
    let id = nix::unistd::Pid::from_raw(i32::try_from(lab.id().unwrap()).unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).unwrap();
    assert!(tokio::time::timeout(PATIENCE, lab.wait()).await.expect("the lab ends").unwrap().success());
}
