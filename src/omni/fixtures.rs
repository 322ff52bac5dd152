//! Keys for tests, made with GnuPG in the shape of Omni's own.

use base64::Engine as _;

/// Valid from 2026-01-01 for ten years.
pub const KEY: &str = include_str!("../../tests/fixtures/omni/service-account.private.asc");
/// Its public half.
pub const PUBLIC_KEY: &str = include_str!("../../tests/fixtures/omni/service-account.public.asc");
/// Valid from 2026-01-01 for less than six weeks.
pub const EXPIRED_KEY: &str = include_str!("../../tests/fixtures/omni/expired.private.asc");

/// The value of `OMNI_SERVICE_ACCOUNT_KEY` for `armor` under `name`.
pub fn service_account(name: &str, armor: &str) -> String {
    let json = serde_json::json!({ "name": name, "pgp_key": armor });
    base64::engine::general_purpose::STANDARD.encode(json.to_string())
}
