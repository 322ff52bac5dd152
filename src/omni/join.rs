//! How machines join an Omni that is too old for ProviderJoinConfig: its ConnectionParams, rendered to the same.
//!
//! Such an Omni gives away its default join token, which a provider wraps into a token of version 1 that names it.
//!
//! Source: contract omni-wire.md sections 7.1 and 7.2.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::watch::StandIn;
use crate::proto::specs::{ConnectionParamsSpec, JoinConfig, ProviderJoinConfigSpec};
use crate::resource::{Kind, LABEL_INFRA_PROVIDER_ID, NAMESPACE_DEFAULT, Resource};

/// The one ConnectionParams.
const ID: &str = "siderolink-config";
/// Omni's own address inside the tunnel.
const INSIDE: &str = "[fdae:41e4:649b:9303::1]";

/// What stands in for ProviderJoinConfigs where Omni does not define them.
pub fn stand_in(provider_id: &str) -> StandIn {
    StandIn {
        definition: "providerjoinconfigs.omni.sidero.dev",
        kind: Kind::new(NAMESPACE_DEFAULT, "ConnectionParams.omni.sidero.dev"),
        provider_id: provider_id.to_owned(),
        translate,
    }
}

/// The ProviderJoinConfig of `provider_id` that a newer Omni would have; `None` for what holds too little to join by.
fn translate(params: &Resource, provider_id: &str) -> Option<Resource> {
    if params.id != ID {
        return None;
    }
    let spec: ConnectionParamsSpec = params.decode().ok()?;
    let (events, logs) = (u16::try_from(spec.events_port).ok()?, u16::try_from(spec.logs_port).ok()?);
    if spec.join_token.is_empty() || spec.api_endpoint.is_empty() || events == 0 || logs == 0 {
        return None;
    }
    let token = token(&spec.join_token, provider_id);
    let tunnel = if spec.use_grpc_tunnel { "grpc_tunnel=true&" } else { "" };
    let url = format!("{}?{tunnel}jointoken={}", spec.api_endpoint, form_encoded(&token));
    let kernel_args = vec![
        format!("siderolink.api={url}"),
        format!("talos.events.sink={INSIDE}:{events}"),
        format!("talos.logging.kernel=tcp://{INSIDE}:{logs}"),
    ];
    let config = format!(
        "apiVersion: v1alpha1\nkind: SideroLinkConfig\napiUrl: {url}\n---\n\
         apiVersion: v1alpha1\nkind: EventSinkConfig\nendpoint: '{INSIDE}:{events}'\n---\n\
         apiVersion: v1alpha1\nkind: KmsgLogConfig\nname: omni-kmsg\nurl: tcp://{INSIDE}:{logs}\n"
    );
    let join = ProviderJoinConfigSpec {
        config: Some(JoinConfig { kernel_args, config }),
        join_token: spec.join_token.clone(),
    };
    let mut resource = Resource::new(Kind::omni("ProviderJoinConfigs"), provider_id, &join);
    resource.version = params.version;
    resource.created = params.created;
    resource.updated = params.updated;
    resource.labels.insert(LABEL_INFRA_PROVIDER_ID.to_owned(), provider_id.to_owned());
    Some(resource)
}

/// A join token of version 1 for `provider_id`; a secret that is a token already stays as it is.
fn token(secret: &str, provider_id: &str) -> String {
    if secret.starts_with("v1:") || secret.starts_with("v2:") {
        return secret.to_owned();
    }
    let extra = BTreeMap::from([(LABEL_INFRA_PROVIDER_ID, provider_id)]);
    // A provider's ID is a DNS label, so that Go's escapes of `<`, `>` and `&` do not occur.
    let signed = serde_json::to_string(&extra).expect("a map of texts is JSON");
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length will do");
    mac.update(signed.as_bytes());
    let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
    format!("v1:{}", BASE64_STANDARD.encode(format!(r#"{{"extra_data":{signed},"signature":"{signature}"}}"#)))
}

/// `text` as the value of a form's field.
fn form_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, octet| {
        match octet {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(octet)),
            b' ' => out.push('+'),
            // Writing into a String cannot fail.
            _ => drop(write!(out, "%{octet:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::omni::provider::decode_join_config;

    fn params(spec: &ConnectionParamsSpec) -> Resource {
        let mut resource = Resource::new(stand_in("metal-1").kind, ID, spec);
        resource.version = Some(4);
        resource
    }

    fn spec() -> ConnectionParamsSpec {
        ConnectionParamsSpec {
            api_endpoint: "https://omni.example:8090/".into(),
            join_token: "unit-test-token".into(),
            events_port: 8091,
            logs_port: 8092,
            ..ConnectionParamsSpec::default()
        }
    }

    #[test]
    fn connection_parameters_become_the_join_config_of_a_newer_omni() {
        let resource = translate(&params(&spec()), "metal-1").unwrap();
        assert_eq!((resource.id.as_str(), resource.version), ("metal-1", Some(4)));
        let join = decode_join_config(&resource).unwrap();
        // The MAC of the contract's first vector, under the other version.
        let token = "v1%3AeyJleHRyYV9kYXRhIjp7Im9tbmkuc2lkZXJvLmRldi9pbmZyYS1wcm92aWRlci1pZCI6Im1ldGFsLTEifSwic2lnbmF0dXJlIjoiNURzejBtbFZyVEtFdkRBcDlRRHplRm1uK29xVGliQVF3bEVTeVdQeGx3TT0ifQ%3D%3D";
        let url = format!("https://omni.example:8090/?jointoken={token}");
        assert_eq!(
            join.kernel_args.reveal(),
            &[
                format!("siderolink.api={url}"),
                "talos.events.sink=[fdae:41e4:649b:9303::1]:8091".to_owned(),
                "talos.logging.kernel=tcp://[fdae:41e4:649b:9303::1]:8092".to_owned(),
            ]
        );
        assert!(join.config.reveal().contains(&format!("apiUrl: {url}\n---\n")));
        assert_eq!(join.config.reveal().matches("apiVersion: v1alpha1").count(), 3);
        let tunnelled = translate(&params(&ConnectionParamsSpec { use_grpc_tunnel: true, ..spec() }), "metal-1");
        let join = decode_join_config(&tunnelled.unwrap()).unwrap();
        assert!(join.kernel_args.reveal()[0].contains("?grpc_tunnel=true&jointoken=v1%3A"));
    }

    #[test]
    fn parameters_that_nobody_can_join_by_are_none() {
        for spoil in [
            (|spec: &mut ConnectionParamsSpec| spec.join_token.clear()) as fn(&mut ConnectionParamsSpec),
            |spec| spec.api_endpoint.clear(),
            |spec| spec.events_port = 0,
            |spec| spec.logs_port = 70_000,
        ] {
            let mut spoilt = spec();
            spoil(&mut spoilt);
            assert!(translate(&params(&spoilt), "metal-1").is_none());
        }
        let other = Resource { id: "other".into(), ..params(&spec()) };
        assert!(translate(&other, "metal-1").is_none());
    }
}
