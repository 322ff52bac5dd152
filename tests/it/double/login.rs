//! How keys of people come to be: registered, confirmed by whom they name, revoked.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use pgp::composed::ArmorOptions;
use pilotlight::lab::omni::account::ServiceAccount;
use pilotlight::lab::omni::controller::machine_configs;
use pilotlight::lab::omni::role::Role;
use pilotlight::proto::auth::auth_service_client::AuthServiceClient;
use pilotlight::proto::auth::public_key::Plain;
use pilotlight::proto::auth::{
    AwaitPublicKeyConfirmationRequest, ConfirmPublicKeyRequest, Identity, PublicKey, RegisterPublicKeyRequest,
    RevokePublicKeyRequest,
};
use pilotlight::proto::cosi;
use pilotlight::proto::specs::InfraMachineConfigSpec;
use pilotlight::resource::Kind;
use pilotlight::time::UnixTime;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use sha2::{Digest as _, Sha256};
use tonic::{Code, Request};

use super::client::*;

const ALICE: &str = "alice@example.com";
const BOB: &str = "bob@example.com";
const HOUR: Duration = Duration::from_secs(3_600);

fn register(email: &str, public_key: PublicKey) -> RegisterPublicKeyRequest {
    RegisterPublicKeyRequest {
        public_key: Some(public_key),
        identity: Some(Identity { email: email.to_owned() }),
        ..Default::default()
    }
}

fn pgp(account: &ServiceAccount) -> PublicKey {
    let pgp_data = account.public_key.to_armored_bytes(ArmorOptions::default()).unwrap();
    PublicKey { pgp_data, ..Default::default() }
}

fn confirm(id: &str, id_token: &str) -> Request<ConfirmPublicKeyRequest> {
    let mut request = Request::new(ConfirmPublicKeyRequest { public_key_id: id.to_owned() });
    request.metadata_mut().insert("authorization", format!("Bearer {id_token}").parse().unwrap());
    request
}

#[tokio::test]
async fn a_registered_key_signs_once_its_user_has_confirmed_it_and_until_it_is_revoked() {
    let (omni, _) = omni().await;
    omni.invite(ALICE, Role::Operator);
    omni.invite(BOB, Role::Admin);
    let key = ServiceAccount::person(ALICE, Role::Operator, HOUR).unwrap();
    let alice = Client::connect(&omni, &key).await;
    let mut auth = AuthServiceClient::new(alice.channel.clone());
    let answer = auth.register_public_key(register("Alice@Example.com", pgp(&key))).await.unwrap().into_inner();
    assert_eq!(answer.public_key_id, key.fingerprint);
    assert!(answer.login_url.starts_with(&omni.endpoint()) && answer.login_url.contains(&key.fingerprint));
    let machines = Kind::omni("InfraMachines");
    let said = of(alice.list(&machines, cosi::ListOptions::default()).await.unwrap_err());
    assert_eq!(said, (Code::Unauthenticated, "invalid signature".into()), "nobody has confirmed it");

    let awaited = AwaitPublicKeyConfirmationRequest { public_key_id: key.fingerprint.clone() };
    let awaited = tokio::spawn({
        let mut auth = auth.clone();
        async move { auth.await_public_key_confirmation(awaited).await }
    });
    let (of_alice, of_bob) = (omni.log_in(ALICE).unwrap(), omni.log_in(BOB).unwrap());
    let of_stranger = omni.log_in("eve@example.com").unwrap();
    for (why, id, id_token, code) in [
        ("nobody is logged in", &key.fingerprint, "nonsense", Code::Unauthenticated),
        ("it is another's key", &key.fingerprint, of_bob.reveal(), Code::Unknown),
        ("who is logged in has no account", &key.fingerprint, of_stranger.reveal(), Code::PermissionDenied),
        ("there is no such key", &"0".repeat(40), of_alice.reveal(), Code::PermissionDenied),
        ("no key is named", &String::new(), of_alice.reveal(), Code::InvalidArgument),
    ] {
        let refused = auth.confirm_public_key(confirm(id, id_token)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{why}");
    }
    assert!(!awaited.is_finished());
    auth.confirm_public_key(confirm(&key.fingerprint, of_alice.reveal())).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), awaited).await.expect("it is confirmed").unwrap().unwrap();
    let config = fresh(&machine_configs(), UUID, &InfraMachineConfigSpec::default());
    alice.create(config, "").await.unwrap();

    // A key may be less than its user, and never more.
    for (role, may_write) in [("Reader", false), ("Admin", true)] {
        let key = ServiceAccount::person(ALICE, Role::Operator, HOUR).unwrap();
        let asked =
            RegisterPublicKeyRequest { role: role.to_owned(), skip_user_role: true, ..register(ALICE, pgp(&key)) };
        auth.register_public_key(asked).await.unwrap();
        auth.confirm_public_key(confirm(&key.fingerprint, of_alice.reveal())).await.unwrap();
        let client = Client::connect(&omni, &key).await;
        let config = fresh(&machine_configs(), role, &InfraMachineConfigSpec::default());
        assert_eq!(client.create(config, "").await.is_ok(), may_write, "{role}");
        let admin_only = client.list(&Kind::omni("BMCConfigs"), cosi::ListOptions::default()).await;
        assert_eq!(admin_only.unwrap_err().code(), Code::PermissionDenied, "{role}");
    }
    let king = RegisterPublicKeyRequest { role: "King".into(), skip_user_role: true, ..register(ALICE, pgp(&key)) };
    assert_eq!(auth.register_public_key(king).await.unwrap_err().code(), Code::Unknown);

    let revoke = || RevokePublicKeyRequest { public_key_id: key.fingerprint.clone() };
    let method = "/auth.AuthService/RevokePublicKey";
    assert_eq!(auth.revoke_public_key(revoke()).await.unwrap_err().code(), Code::Unauthenticated);
    let admin = Client::connect(&omni, omni.admin()).await;
    let others = auth.revoke_public_key(admin.signed(method, revoke())).await.unwrap_err();
    assert_eq!(others.code(), Code::PermissionDenied);
    auth.revoke_public_key(alice.signed(method, revoke())).await.unwrap();
    let said = alice.list(&machines, cosi::ListOptions::default()).await.unwrap_err();
    assert_eq!(said.code(), Code::Unauthenticated);
    omni.shutdown().await;
}

#[tokio::test]
async fn who_registers_learns_nothing_and_fills_nothing() {
    let (omni, client) = omni().await;
    omni.invite(ALICE, Role::Reader);
    let mut auth = AuthServiceClient::new(client.channel.clone());
    let key = ServiceAccount::person("eve@example.com", Role::Reader, HOUR).unwrap();
    let answer = auth.register_public_key(register("eve@example.com", pgp(&key))).await.unwrap().into_inner();
    assert_eq!(answer.public_key_id, key.fingerprint);
    assert_eq!(omni.state().list(&pilotlight::lab::omni::accounts::public_keys()).len(), 2, "only those of the seeds");
    for (why, public_key, code) in [
        ("no key", PublicKey::default(), Code::InvalidArgument),
        ("a key of WebAuthn", PublicKey { webauthn_data: vec![1], ..Default::default() }, Code::Unimplemented),
        ("no text", PublicKey { pgp_data: vec![0xff], ..Default::default() }, Code::InvalidArgument),
    ] {
        let refused = auth.register_public_key(register(ALICE, public_key)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{why}");
    }
    let mut registered = 0;
    let full = loop {
        let (_, public_key) = plain(UnixTime::now() + HOUR);
        match auth.register_public_key(register(ALICE, public_key)).await {
            Ok(_) => registered += 1,
            Err(status) => break status,
        }
    };
    assert_eq!((full.code(), registered), (Code::ResourceExhausted, 64));
    omni.shutdown().await;
}

/// A browser's key pair, and what is registered of it.
fn plain(not_after: UnixTime) -> (EcdsaKeyPair, PublicKey) {
    // SubjectPublicKeyInfo of P-256 (RFC 5480) before the point.
    const PREFIX: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE";
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
    // The point's first octet, 4, ends the prefix: 27 octets make 36 characters.
    let key_pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{PREFIX}{}\n-----END PUBLIC KEY-----\n",
        BASE64_STANDARD.encode(&pair.public_key().as_ref()[1..])
    );
    let plain = Plain { key_pem, not_before: None, not_after: Some(not_after.into()) };
    (pair, PublicKey { plain_key: Some(plain), ..Default::default() })
}

#[tokio::test]
async fn a_browsers_key_lives_for_eight_hours_at_most_and_signs_with_ecdsa() {
    let (omni, client) = omni().await;
    omni.invite(ALICE, Role::Reader);
    let mut auth = AuthServiceClient::new(client.channel.clone());
    for wrong in [UnixTime::now() + 9 * HOUR, UnixTime::default()] {
        let refused = auth.register_public_key(register(ALICE, plain(wrong).1)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let (pair, public_key) = plain(UnixTime::now() + 7 * HOUR);
    let id = auth.register_public_key(register(ALICE, public_key)).await.unwrap().into_inner().public_key_id;
    assert_eq!(id, BASE64_URL_SAFE.encode(Sha256::digest(pair.public_key().as_ref())));
    let id_token = omni.log_in(ALICE).unwrap();
    auth.confirm_public_key(confirm(&id, id_token.reveal())).await.unwrap();

    let get = |payload_method: &str| {
        let now = UnixTime::now().as_secs();
        let payload = format!(r#"{{"headers":{{"x-sidero-timestamp":["{now}"]}},"method":"{payload_method}"}}"#);
        let signature = pair.sign(&SystemRandom::new(), payload.as_bytes()).unwrap();
        let signature = BASE64_STANDARD.encode(signature.as_ref());
        let kind = Kind::omni("ProviderJoinConfigs");
        let (namespace, r#type, id_of_config) = (kind.namespace, kind.r#type, ID.to_owned());
        let get = cosi::GetRequest { namespace, r#type, id: id_of_config, options: None };
        let mut request = Request::new(get);
        let metadata = request.metadata_mut();
        metadata.insert("x-sidero-timestamp", now.to_string().parse().unwrap());
        metadata.insert("x-sidero-payload", payload.parse().unwrap());
        metadata.insert("x-sidero-signature", format!("siderov1 {ALICE} {id} {signature}").parse().unwrap());
        request
    };
    client.state().get(get("/cosi.resource.State/Get")).await.unwrap();
    let refused = client.state().get(get("/cosi.resource.State/List")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut spoilt = get("/cosi.resource.State/Get");
    let other = format!("siderov1 {ALICE} {id} {}", BASE64_STANDARD.encode([7; 64]));
    spoilt.metadata_mut().insert("x-sidero-signature", other.parse().unwrap());
    assert_eq!(client.state().get(spoilt).await.unwrap_err().code(), Code::Unauthenticated);
    omni.shutdown().await;
}
