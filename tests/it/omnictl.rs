//! Omni's own command line, if it is on the PATH, against the lab's Omni.

use std::process::Command;
use std::time::Duration;

use pilotlight::lab::omni::controller::machine_configs;
use pilotlight::lab::omni::token;
use pilotlight::lab::omni::{Omni, Options};
use pilotlight::proto::siderolink::ProvisionRequest;
use pilotlight::proto::siderolink::provision_service_client::ProvisionServiceClient;
use pilotlight::proto::specs::infra_machine_config_spec::AcceptanceStatus;
use pilotlight::proto::specs::{InfraMachineConfigSpec, InfraProviderStatusSpec, ProviderJoinConfigSpec};
use pilotlight::resource::{Kind, LABEL_INFRA_PROVIDER_ID, LABEL_IS_STATIC_INFRA_PROVIDER, Resource};
use tonic::transport::Channel;

const ID: &str = "metal-1";
const UUID: &str = "4c4c4544-0044-4810-8031-b4c04f333132";

struct Omnictl<'a> {
    omni: &'a Omni,
    home: tempfile::TempDir,
}

impl Omnictl<'_> {
    /// Runs it as the first administrator; its output, or what it complains of.
    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let ran = Command::new("omnictl")
            .args(arguments)
            .env("HOME", self.home.path())
            .env("OMNI_ENDPOINT", self.omni.endpoint())
            .env("OMNI_SERVICE_ACCOUNT_KEY", self.omni.admin().key_string.reveal())
            .env_remove("SIDERO_SERVICE_ACCOUNT_KEY")
            .output()
            .unwrap();
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        if ran.status.success() { Ok(text(&ran.stdout)) } else { Err(text(&ran.stderr)) }
    }
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
    let join = ProvisionRequest { node_uuid: UUID.into(), join_token, ..Default::default() };
    let channel = Channel::from_shared(omni.endpoint()).unwrap().connect().await.unwrap();
    ProvisionServiceClient::new(channel).provision(join).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn omnictl_gets_applies_deletes_and_makes_providers() {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join("omnictl").is_file()));
    if !found {
        crate::peers::say("skipped: omnictl is missing (Omni's download page has it)");
        return;
    }
    let omni = Omni::start(Options::loopback(ID)).await.unwrap();
    machine(&omni).await;
    let omnictl = Omnictl { omni: &omni, home: tempfile::tempdir().unwrap() };

    for (arguments, expected) in [
        (&["get", "rd"][..], "inframachines.omni.sidero.dev"),
        (&["get", "inframachines"], UUID),
        (&["get", "im", UUID, "-o", "yaml"], "preferredpowerstate: 1"),
        (&["get", "links", "-o", "json"], "\"nodesubnet\""),
        (&["get", "namespaces"], "infra-provider:metal-1"),
        (&["get", "sysversions", "-n", "ephemeral", "-o", "yaml"], "backendapiversion: 3"),
        (&["infraprovider", "list"], "Metal"),
        (&["infraprovider", "create", "virtual"], "OMNI_SERVICE_ACCOUNT_KEY="),
        (&["infraprovider", "renewkey", "virtual"], "OMNI_SERVICE_ACCOUNT_KEY="),
        (&["get", "infraproviders"], "virtual"),
    ] {
        let output = omnictl.run(arguments).unwrap_or_else(|complaint| panic!("{arguments:?}: {complaint}"));
        assert!(output.contains(expected), "{arguments:?}: {output}");
    }

    let file = omnictl.home.path().join("config.yaml");
    let config = |acceptance: u32| {
        format!(
            "metadata:\n  namespace: default\n  type: InfraMachineConfigs.omni.sidero.dev\n  id: {UUID}\nspec:\n  \
             acceptancestatus: {acceptance}\n  cordoned: true\n"
        )
    };
    std::fs::write(&file, config(1)).unwrap();
    omnictl.run(&["apply", "-f", file.to_str().unwrap()]).unwrap();
    let stored: InfraMachineConfigSpec = omni.state().get(&machine_configs(), UUID).unwrap().decode().unwrap();
    assert!(stored.acceptance_status() == AcceptanceStatus::Accepted && stored.cordoned);
    let accepted = omni
        .controller()
        .wait(UUID, |known| known.filter(|known| known.acceptance == AcceptanceStatus::Accepted).map(drop));
    tokio::time::timeout(Duration::from_secs(10), accepted).await.unwrap();
    std::fs::write(&file, config(2)).unwrap();
    let complaint = omnictl.run(&["apply", "-f", file.to_str().unwrap()]).unwrap_err();
    assert!(complaint.contains("was accepted already"), "{complaint}");

    omnictl.run(&["delete", "infraproviders", "virtual"]).unwrap();
    let providers = Kind::omni("InfraProviders");
    assert!(omni.state().get(&providers, "virtual").is_err());
    assert!(omni.state().get(&Kind::omni("ProviderJoinConfigs"), "virtual").is_err(), "cleaned up after");
    let complaint = omnictl.run(&["delete", "inframachines", UUID]).unwrap_err();
    assert!(complaint.contains("PermissionDenied"), "{complaint}");
    omni.shutdown().await;
}
