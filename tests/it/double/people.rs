//! People's side of the double: roles, service accounts, definitions, views in YAML, an old Omni, and the knobs.

use std::time::Duration;

use pgp::composed::ArmorOptions;
use pilotlight::lab::omni::account::ServiceAccount;
use pilotlight::lab::omni::accounts::{identities, public_keys};
use pilotlight::lab::omni::dynamic::machine_classes;
use pilotlight::lab::omni::people::Impossible;
use pilotlight::lab::omni::role::Role;
use pilotlight::lab::omni::{Generation, Omni, Options};
use pilotlight::proto::cosi;
use pilotlight::proto::management::management_service_client::ManagementServiceClient;
use pilotlight::proto::management::{CreateServiceAccountRequest, MachinePowerOffRequest, RenewServiceAccountRequest};
use pilotlight::proto::meta::ResourceDefinitionSpec;
use pilotlight::proto::specs::{
    ConfigPatchSpec, ConnectionParamsSpec, InfraMachineBmcConfigSpec, InfraProviderSpec, InfraProviderStatusSpec,
    MachineClassSpec, MachineRequestSpec, infra_machine_bmc_config_spec, machine_class_spec,
};
use pilotlight::resource::{Kind, LABEL_INFRA_PROVIDER_ID, Resource};
use tonic::Code;

use super::client::*;

const DAY: Duration = Duration::from_secs(86_400);

pub async fn person(omni: &Omni, role: Role) -> Client {
    let account = ServiceAccount::person(role.as_str(), role, DAY).unwrap();
    omni.add_account(&account);
    Client::connect(omni, &account).await
}

fn yaml(resource: &cosi::Resource) -> &str {
    &resource.spec.as_ref().unwrap().yaml_spec
}

#[tokio::test]
async fn people_see_what_their_role_lets_them() {
    let (omni, provider) = omni().await;
    let admin = Client::connect(&omni, omni.admin()).await;
    let (operator, reader) = (person(&omni, Role::Operator).await, person(&omni, Role::Reader).await);
    let nobody = person(&omni, Role::None).await;
    let machines = Kind::omni("InfraMachines");
    let everything = cosi::ListOptions::default;
    for client in [&admin, &operator, &reader] {
        client.list(&machines, everything()).await.unwrap();
        client.list(&Kind::private("MachineStatus", ID), everything()).await.unwrap();
        let denied = client.create(fresh(&machines, UUID, &InfraProviderSpec {}), "").await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied);
    }
    assert_eq!(nobody.list(&machines, everything()).await.unwrap_err().code(), Code::PermissionDenied);
    nobody.get(&Kind::new("ephemeral", "SysVersions.system.sidero.dev"), "current").await.unwrap();
    admin.list(&Kind::omni("BMCConfigs"), everything()).await.unwrap();
    let denied = operator.list(&Kind::omni("BMCConfigs"), everything()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);

    let configs = Kind::new("default", "InfraMachineConfigs.omni.sidero.dev");
    let config = || fresh(&configs, UUID, &pilotlight::proto::specs::InfraMachineConfigSpec::default());
    assert_eq!(reader.create(config(), "").await.unwrap_err().code(), Code::PermissionDenied);
    operator.create(config(), "").await.unwrap();
    assert_eq!(provider.get(&configs, UUID).await.unwrap_err().code(), Code::PermissionDenied);

    omni.faults().suspend(true);
    let own = Kind::private("MachineStatus", ID);
    let write = || fresh(&own, "a", &InfraProviderStatusSpec::default());
    assert_eq!(provider.create(write(), "").await.unwrap_err().code(), Code::PermissionDenied);
    provider.list(&machines, everything()).await.unwrap();
    omni.faults().suspend(false);
    provider.create(write(), "").await.unwrap();
    omni.shutdown().await;
}

#[tokio::test]
async fn a_provider_is_made_given_a_key_and_removed() {
    let (omni, _) = omni().await;
    let admin = Client::connect(&omni, omni.admin()).await;
    let providers = Kind::omni("InfraProviders");
    let bad = admin.create(fresh(&providers, "Not A Label", &InfraProviderSpec {}), "").await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    admin.create(fresh(&providers, "virtual", &InfraProviderSpec {}), "").await.unwrap();

    let account = ServiceAccount::create("virtual", DAY).unwrap();
    let armored_pgp_public_key = account.public_key.to_armored_string(ArmorOptions::default()).unwrap();
    let ask = |role: &str, name: &str| CreateServiceAccountRequest {
        armored_pgp_public_key: armored_pgp_public_key.clone(),
        use_user_role: false,
        role: role.into(),
        name: name.into(),
    };
    let method = "/management.ManagementService/CreateServiceAccount";
    let mut management = ManagementServiceClient::new(admin.channel.clone());
    for (role, name) in [("Reader", "infra-provider:virtual"), ("InfraProvider", "virtual"), ("King", "virtual")] {
        let refused = management.create_service_account(admin.signed(method, ask(role, name))).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{role} {name}");
    }
    let good = ask("InfraProvider", "infra-provider:virtual");
    let made = management.create_service_account(admin.signed(method, good.clone())).await.unwrap().into_inner();
    assert_eq!(made.public_key_id, account.fingerprint);
    let again = management.create_service_account(admin.signed(method, good)).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);

    let provider = Client::connect(&omni, &account).await;
    let join_configs = Kind::omni("ProviderJoinConfigs");
    let found = tokio::time::timeout(Duration::from_secs(10), async {
        let mut bells = omni.state().bells([join_configs.clone()]);
        while provider.get(&join_configs, "virtual").await.is_err() {
            bells.rung().await;
        }
    });
    found.await.expect("Omni gives every provider a join config");
    let renewed = ServiceAccount::create("virtual", DAY).unwrap();
    let request = RenewServiceAccountRequest {
        name: "infra-provider:virtual".into(),
        armored_pgp_public_key: renewed.public_key.to_armored_string(ArmorOptions::default()).unwrap(),
    };
    let renew = "/management.ManagementService/RenewServiceAccount";
    let denied = ManagementServiceClient::new(provider.channel.clone())
        .renew_service_account(provider.signed(renew, request.clone()))
        .await;
    assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied, "a provider cannot renew its own key");
    management.renew_service_account(admin.signed(renew, request)).await.unwrap();
    Client::connect(&omni, &renewed).await.get(&join_configs, "virtual").await.unwrap();
    provider.get(&join_configs, "virtual").await.unwrap();

    // The account and its keys stand where people look for them, and go with it.
    let email = "virtual@infra-provider.serviceaccount.omni.sidero.dev";
    let identity = admin.get(&identities(), email).await.unwrap();
    assert!(identity.metadata.unwrap().labels.contains_key("type-service-account"));
    for fingerprint in [&account.fingerprint, &renewed.fingerprint] {
        let key = admin.get(&public_keys(), fingerprint).await.unwrap();
        assert!(yaml(&key).contains(email), "{}", yaml(&key));
    }
    assert_eq!(provider.get(&identities(), email).await.unwrap_err().code(), Code::PermissionDenied);

    let destroy = cosi::TeardownAndDestroyRequest {
        namespace: providers.namespace.clone(),
        r#type: providers.r#type.clone(),
        id: "virtual".into(),
        options: None,
    };
    let destroy = admin.signed("/cosi.resource.State/TeardownAndDestroy", destroy);
    let destroyed =
        tokio::time::timeout(Duration::from_secs(10), async { admin.state().teardown_and_destroy(destroy).await });
    destroyed.await.expect("Omni lets go of it").unwrap();
    assert_eq!(provider.get(&join_configs, "virtual").await.unwrap_err().code(), Code::Unauthenticated);
    let off = MachinePowerOffRequest { machine_id: UUID.into() };
    let off = admin.signed("/management.ManagementService/MachinePowerOff", off);
    assert_eq!(management.machine_power_off(off).await.unwrap_err().code(), Code::FailedPrecondition);
    omni.shutdown().await;
}

#[tokio::test]
async fn specs_are_shown_as_yaml_and_those_of_strangers_as_they_were_sent() {
    let (omni, provider) = omni().await;
    let known = fresh(
        &Kind::omni("InfraProviderStatuses"),
        ID,
        &InfraProviderStatusSpec { name: "a \"b\"".into(), ..Default::default() },
    );
    let stored = provider.create(known, "").await.unwrap();
    assert!(yaml(&stored).starts_with("schema: \"\"\nname: \"a \\\"b\\\"\"\n"), "{}", yaml(&stored));
    let kind = Kind::private("Machine", ID);
    let mut own = fresh(&kind, "a", &InfraProviderStatusSpec::default());
    own.spec.as_mut().unwrap().yaml_spec = "uuid: x\n".into();
    provider.create(own, "").await.unwrap();
    let read = provider.get(&kind, "a").await.unwrap();
    assert_eq!(yaml(&read), "uuid: x\n");

    let definitions = Kind::new("meta", "ResourceDefinitions.meta.cosi.dev");
    let definition = provider.get(&definitions, "inframachines.omni.sidero.dev").await.unwrap();
    assert!(yaml(&definition).contains("printcolumns:\n    -\n        name: \"Acceptance\""), "{}", yaml(&definition));
    let spec: ResourceDefinitionSpec = prost::Message::decode(definition.spec.unwrap().proto_spec).unwrap();
    assert!(spec.all_aliases.contains(&"inframachine".to_owned()) && !spec.print_columns.is_empty());
    assert!(provider.list(&definitions, cosi::ListOptions::default()).await.unwrap().len() > 30);
    omni.shutdown().await;
}

#[tokio::test]
async fn cached_kinds_lag_and_are_not_filtered() {
    let (omni, provider) = omni().await;
    let kind = Kind::omni("ConfigPatchRequests");
    let patch = |id: &str| fresh(&kind, id, &ConfigPatchSpec { data: "machine: {}".into(), ..Default::default() });
    omni.faults().stop_cache();
    provider.create(patch("a"), "").await.unwrap();
    assert_eq!(provider.get(&kind, "a").await.unwrap_err().code(), Code::NotFound, "no read of one's own write");
    assert!(provider.list(&kind, cosi::ListOptions::default()).await.unwrap().is_empty());
    omni.faults().run_cache();
    provider.get(&kind, "a").await.unwrap();
    let foreign = pilotlight::resource::Resource::new(kind.clone(), "foreign", &ConfigPatchSpec::default());
    omni.state().create(foreign, "").unwrap();
    assert_eq!(provider.list(&kind, cosi::ListOptions::default()).await.unwrap(), ["a", "foreign"]);
    assert_eq!(provider.destroy(&kind, "foreign", "").await.unwrap_err().code(), Code::NotFound);
    omni.shutdown().await;
}

#[tokio::test]
async fn an_old_omni_has_parameters_and_neither_join_configs_nor_teardown() {
    let omni = Omni::start(Options { generation: Generation::Old, ..Options::loopback(ID) }).await.unwrap();
    let provider = Client::connect(&omni, omni.service_account()).await;
    let definitions = Kind::new("meta", "ResourceDefinitions.meta.cosi.dev");
    let absent = provider.get(&definitions, "providerjoinconfigs.omni.sidero.dev").await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);
    let params = Kind::new("default", "ConnectionParams.omni.sidero.dev");
    let params = provider.get(&params, "siderolink-config").await.unwrap();
    let params: ConnectionParamsSpec = prost::Message::decode(params.spec.unwrap().proto_spec).unwrap();
    let kind = Kind::private("Machine", ID);
    provider.create(fresh(&kind, "a", &InfraProviderStatusSpec::default()), "").await.unwrap();
    assert_eq!(provider.teardown(&kind, "a").await.unwrap_err().code(), Code::Unimplemented);

    use pilotlight::lab::omni::token;
    use pilotlight::proto::siderolink::ProvisionRequest;
    use pilotlight::proto::siderolink::provision_service_client::ProvisionServiceClient;
    let extra = token::ExtraData::from([("omni.sidero.dev/infra-provider-id".to_owned(), ID.to_owned())]);
    let mut link = ProvisionServiceClient::new(provider.channel.clone());
    let with = |token| ProvisionRequest {
        node_public_key: WIREGUARD_KEY.into(),
        node_uuid: UUID.into(),
        join_token: Some(token),
        ..Default::default()
    };
    let denied = link.provision(with(token::for_provider(&params.join_token, ID))).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "it knows no token of a provider's own");
    link.provision(with(token::v1(&params.join_token, extra))).await.unwrap();
    omni.shutdown().await;
}

#[tokio::test]
async fn a_machine_class_becomes_requests_and_a_static_provider_makes_no_machines() {
    let (omni, provider) = omni().await;
    let operator = person(&omni, Role::Operator).await;
    let class = |id: &str, provider_id: &str| {
        let provision = machine_class_spec::Provision {
            provider_id: provider_id.into(),
            kernel_args: vec!["quiet".into()],
            provider_data: "cores: 4".into(),
            ..Default::default()
        };
        fresh(&machine_classes(), id, &MachineClassSpec { auto_provision: Some(provision), ..Default::default() })
    };
    provider.register().await;
    let (code, text) = of(operator.create(class("metal", ID), "").await.unwrap_err());
    assert!(code == Code::InvalidArgument && text.contains("static infra provider"), "{text}");
    let (code, text) = of(operator.create(class("large", "virtual"), "").await.unwrap_err());
    assert!(code == Code::InvalidArgument && text.contains("failed to get provider"), "{text}");
    let mut maker = Resource::new(Kind::omni("InfraProviderStatuses"), "virtual", &InfraProviderStatusSpec::default());
    maker.labels.insert(LABEL_INFRA_PROVIDER_ID.into(), "virtual".into());
    omni.state().create(maker, "").unwrap();
    let stored = operator.create(class("large", "virtual"), "").await.unwrap();
    let mut changed = stored.clone();
    changed.spec = class("large", ID).spec;
    assert_eq!(operator.update(changed, "", None).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(provider.get(&machine_classes(), "large").await.unwrap_err().code(), Code::PermissionDenied);

    let people = omni.people();
    assert_eq!(people.provision("web", "none", 2, "1.11.0"), Err(Impossible::NoClass("none".into())));
    people.provision("web", "large", 2, "1.11.0").unwrap();
    let requests = Kind::omni("MachineRequests");
    let mut bells = omni.state().bells([requests.clone()]);
    let made = tokio::time::timeout(Duration::from_secs(10), async {
        while omni.state().list(&requests).len() < 2 {
            bells.rung().await;
        }
    });
    made.await.expect("Omni asks for both");
    for request in omni.state().list(&requests) {
        assert_eq!(request.labels[LABEL_INFRA_PROVIDER_ID], "virtual");
        let spec: MachineRequestSpec = request.decode().unwrap();
        assert_eq!((spec.provider_data.as_str(), spec.kernel_args.len()), ("cores: 4", 1));
    }
    omni.shutdown().await;
}

#[tokio::test]
async fn bmc_credentials_that_people_give_reach_the_provider() {
    let (omni, provider) = omni().await;
    provider.register().await;
    let configs = Kind::omni("BMCConfigs");
    let access = InfraMachineBmcConfigSpec {
        ipmi: Some(infra_machine_bmc_config_spec::Ipmi { address: "10.0.0.9".into(), ..Default::default() }),
        api: None,
    };
    use pilotlight::lab::omni::token;
    use pilotlight::proto::siderolink::ProvisionRequest;
    use pilotlight::proto::siderolink::provision_service_client::ProvisionServiceClient;
    let secret = super::life::join_secret(&provider).await;
    let join_token = Some(token::for_provider(&secret, ID));
    let join = ProvisionRequest {
        node_public_key: WIREGUARD_KEY.into(),
        node_uuid: UUID.into(),
        join_token,
        ..Default::default()
    };
    ProvisionServiceClient::new(provider.channel.clone()).provision(join).await.unwrap();
    let mut stream = provider.watch(&configs, None, cosi::WatchOptions::default()).await.unwrap();
    omni.people().bmc(UUID, Some(&access)).unwrap();
    let (what, created) = event(&mut stream).await;
    assert_eq!((what, id_of(&created)), (cosi::EventType::Created, UUID));
    assert!(yaml(created.resource.as_ref().unwrap()).contains("address: \"10.0.0.9\""));
    omni.people().bmc(UUID, None).unwrap();
    assert_eq!(event(&mut stream).await.0, cosi::EventType::Destroyed);
    omni.shutdown().await;
}
