//! What the double checks before it stores or answers: schemas, patches, schematics.

use pilotlight::lab::omni::dynamic::{config_patches, machine_classes, request_sets};
use pilotlight::lab::omni::role::Role;
use pilotlight::proto::management::management_service_client::ManagementServiceClient;
use pilotlight::proto::management::{
    CreateSchematicFromRawRequest, ValidateConfigRequest, ValidateJsonSchemaRequest, ValidateJsonSchemaResponse,
};
use pilotlight::proto::specs::{
    ConfigPatchSpec, InfraProviderStatusSpec, MachineClassSpec, MachineRequestSetSpec, machine_class_spec,
};
use pilotlight::resource::{Kind, LABEL_INFRA_PROVIDER_ID, Resource};
use tonic::{Code, Status};

use super::client::*;
use super::people::person;

const SCHEMA: &str = r#"{"type": "object", "required": ["cores"], "properties": {"cores": {"type": "integer"}}}"#;

async fn compare(client: &Client, schema: &str, data: &str) -> Result<ValidateJsonSchemaResponse, Status> {
    let request = ValidateJsonSchemaRequest { data: data.into(), schema: schema.into() };
    let request = client.signed("/management.ManagementService/ValidateJSONSchema", request);
    ManagementServiceClient::new(client.channel.clone()).validate_json_schema(request).await.map(|a| a.into_inner())
}

async fn check(client: &Client, config: &str) -> Result<(), Status> {
    let request = ValidateConfigRequest { config: config.into() };
    let request = client.signed("/management.ManagementService/ValidateConfig", request);
    ManagementServiceClient::new(client.channel.clone()).validate_config(request).await.map(drop)
}

#[tokio::test]
async fn schemas_and_patches_are_checked_for_everybody_who_signs() {
    let (omni, provider) = omni().await;
    for client in [&provider, &person(&omni, Role::None).await] {
        assert!(compare(client, SCHEMA, "cores: 4").await.unwrap().errors.is_empty());
        let told = compare(client, SCHEMA, "cores: many").await.unwrap().errors.remove(0);
        assert_eq!((told.data_path.as_str(), told.errors.len()), ("/cores", 0));
        assert!(told.schema_path.ends_with("#/properties/cores") && told.cause.contains("integer"), "{told:?}");
        let told = compare(client, SCHEMA, "").await.unwrap().errors.remove(0);
        assert_eq!((told.data_path.as_str(), told.cause.as_str()), ("/cores", "property is required"));
        for (schema, data) in [("{", ""), (r#"{"type": 7}"#, ""), (SCHEMA, "a: [")] {
            assert_eq!(compare(client, schema, data).await.unwrap_err().code(), Code::Unknown, "{schema} {data}");
        }
        check(client, "machine:\n  network:\n    hostname: a\n").await.unwrap();
        let (code, text) = of(check(client, "cluster: {id: x}").await.unwrap_err());
        assert!(code == Code::InvalidArgument && text.contains("overriding \"cluster.id\" is not allowed"), "{text}");
    }
    let unsigned = ValidateConfigRequest::default();
    let refused = ManagementServiceClient::new(provider.channel.clone()).validate_config(unsigned).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    omni.shutdown().await;
}

#[tokio::test]
async fn what_a_provider_wants_to_know_is_checked_by_its_own_schema() {
    let (omni, _) = omni().await;
    let operator = person(&omni, Role::Operator).await;
    let status = InfraProviderStatusSpec { schema: SCHEMA.into(), ..Default::default() };
    let mut maker = Resource::new(Kind::omni("InfraProviderStatuses"), "virtual", &status);
    maker.labels.insert(LABEL_INFRA_PROVIDER_ID.into(), "virtual".into());
    omni.state().create(maker, "").unwrap();
    let class = |data: &str| {
        let provision = machine_class_spec::Provision {
            provider_id: "virtual".into(),
            provider_data: data.into(),
            ..Default::default()
        };
        let spec = MachineClassSpec { auto_provision: Some(provision), ..Default::default() };
        fresh(&machine_classes(), "large", &spec)
    };
    let set = |data: &str| {
        let spec = MachineRequestSetSpec {
            provider_id: "virtual".into(),
            provider_data: data.into(),
            talos_version: "1.11.0".into(),
            ..Default::default()
        };
        fresh(&request_sets(), "web", &spec)
    };
    for of_data in [&class as &dyn Fn(&str) -> _, &set] {
        let (code, text) = of(operator.create(of_data("cores: many"), "").await.unwrap_err());
        assert!(code == Code::InvalidArgument && text.contains("\n- /cores: want integer"), "{text}");
        let mut stored = operator.create(of_data("cores: 4"), "").await.unwrap();
        stored.spec = of_data("ram: 4").spec;
        let (code, text) = of(operator.update(stored, "", None).await.unwrap_err());
        assert!(code == Code::InvalidArgument && text.contains("\n- /cores: property is required"), "{text}");
    }
    omni.shutdown().await;
}

#[tokio::test]
async fn patches_that_take_what_is_omnis_and_schematics_with_unknown_keys_are_refused() {
    let (omni, provider) = omni().await;
    let operator = person(&omni, Role::Operator).await;
    let patch =
        |data: &str| fresh(&config_patches(), "p", &ConfigPatchSpec { data: data.into(), ..Default::default() });
    let refused = operator.create(patch("machine: {type: worker}"), "").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    operator.create(patch("machine: {}"), "").await.unwrap();
    let schematic = async |yaml: &str| {
        let request =
            CreateSchematicFromRawRequest { raw_schematic: yaml.as_bytes().to_vec(), talos_version: String::new() };
        let request = provider.signed("/management.ManagementService/CreateSchematicFromRaw", request);
        ManagementServiceClient::new(provider.channel.clone()).create_schematic_from_raw(request).await
    };
    schematic("customization: {extraKernelArgs: [a=b]}").await.unwrap();
    let (code, text) = of(schematic("customization: {kernelArgs: [a=b]}").await.unwrap_err());
    assert!(code == Code::InvalidArgument && text.contains("kernelArgs"), "{text}");
    omni.shutdown().await;
}
