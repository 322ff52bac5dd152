//! Sections 3.1 to 3.3: versions, owners, phases, finalizers.

use pilotlight::proto::cosi;
use tokio::task::yield_now;

use super::{Row, row};
use crate::raw_state::{At, said};

fn meta(resource: &mut cosi::Resource) -> &mut cosi::Metadata {
    resource.metadata.as_mut().unwrap()
}

async fn create_spoilt(at: At, spoil: fn(&mut cosi::Resource)) -> String {
    let mut resource = at.fresh("a");
    spoil(&mut resource);
    said(&at.create(resource, "").await)
}

/// Stores `a` under `owner`, then writes it back as `change` has it.
async fn write(
    at: At,
    owner: &str,
    claimed: &str,
    phase: Option<&str>,
    change: impl FnOnce(&mut cosi::Resource),
) -> String {
    let mut resource = at.create(at.fresh("a"), owner).await.unwrap();
    change(&mut resource);
    said(&at.update(resource, claimed, phase).await)
}

async fn version(at: &At) -> String {
    at.get("a").await.unwrap().metadata.unwrap().version
}

fn hold(resource: &mut cosi::Resource) {
    meta(resource).finalizers.push("me".into());
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub fn rows() -> Vec<Row> {
    vec![
        row(
            "an absent resource is not found",
            "Get NotFound, Update NotFound, Destroy NotFound, Teardown NotFound, TeardownAndDestroy NotFound",
            |at| async move {
                let mut absent = at.fresh("a");
                meta(&mut absent).version = "1".into();
                format!(
                    "Get {}, Update {}, Destroy {}, Teardown {}, TeardownAndDestroy {}",
                    said(&at.get("a").await),
                    said(&at.update(absent, "", None).await),
                    said(&at.destroy("a", "").await),
                    said(&at.teardown("a", "").await),
                    said(&at.teardown_and_destroy("a", "").await),
                )
            },
        ),
        row("an empty version is an error", "Unknown", |at| {
            create_spoilt(at, |resource| meta(resource).version.clear())
        }),
        row("an empty phase is an error", "Unknown", |at| create_spoilt(at, |resource| meta(resource).phase.clear())),
        row("metadata must be there", "Unknown", |at| create_spoilt(at, |resource| resource.metadata = None)),
        row("a spec must be there", "Unknown", |at| create_spoilt(at, |resource| resource.spec = None)),
        row("an empty spec is fine", "ok", |at| {
            create_spoilt(at, |resource| resource.spec = Some(cosi::Spec::default()))
        }),
        row("absent times are fine", "ok", |at| {
            create_spoilt(at, |resource| {
                meta(resource).created = None;
                meta(resource).updated = None;
            })
        }),
        row("the version sent with Create is ignored", "1", |at| async move {
            let mut resource = at.fresh("a");
            meta(&mut resource).version = "7".into();
            at.create(resource, "").await.unwrap().metadata.unwrap().version
        }),
        row("versions grow by one, and start again after a destruction", "1 2 3 1", |at| async move {
            at.create(at.fresh("a"), "").await.unwrap();
            let mut seen = vec![version(&at).await];
            for _ in 0..2 {
                at.edit("a", |resource| drop(meta(resource).labels.insert("x".into(), "y".into()))).await.unwrap();
                seen.push(version(&at).await);
            }
            at.destroy("a", "").await.unwrap();
            at.create(at.fresh("a"), "").await.unwrap();
            seen.push(version(&at).await);
            seen.join(" ")
        }),
        row("an update that changes nothing counts", "2", |at| async move {
            at.create(at.fresh("a"), "").await.unwrap();
            at.edit("a", |_| ()).await.unwrap();
            version(&at).await
        }),
        row("Create answers with what is stored", "true", |at| async move {
            let answer = at.create(at.fresh("a"), "me").await.unwrap();
            (answer == at.get("a").await.unwrap()).to_string()
        }),
        row("Update answers with what is stored", "true", |at| async move {
            at.create(at.fresh("a"), "me").await.unwrap();
            let answer = at.edit("a", hold).await.unwrap();
            (answer == at.get("a").await.unwrap()).to_string()
        }),
        row(
            "the server says when a resource was created, the client when it was updated",
            "created by the server, updated by the client",
            |at| async move {
                let stored = at.create(at.fresh("a"), "").await.unwrap().metadata.unwrap();
                let by = |time: Option<prost_types::Timestamp>, sent| {
                    if time.unwrap().seconds == sent { "client" } else { "server" }
                };
                format!(
                    "created by the {}, updated by the {}",
                    by(stored.created, 1_000),
                    by(stored.updated, 1_700_000_000)
                )
            },
        ),
        row("an update keeps the time of creation and sets its own", "kept, set", |at| async move {
            let first = at.create(at.fresh("a"), "").await.unwrap().metadata.unwrap();
            let second = at.edit("a", |resource| meta(resource).created = None).await.unwrap().metadata.unwrap();
            let created = if first.created == second.created { "kept" } else { "changed" };
            let updated = if second.updated.unwrap().seconds == 1_700_000_000 { "sent" } else { "set" };
            format!("{created}, {updated}")
        }),
        row("the owner in the call's options becomes the resource's", "me", |at| async move {
            at.create(at.fresh("a"), "me").await.unwrap().metadata.unwrap().owner
        }),
        row("a new resource may name the same owner", "ok", |at| async move {
            let mut resource = at.fresh("a");
            meta(&mut resource).owner = "me".into();
            said(&at.create(resource, "me").await)
        }),
        row("a new resource may not name another owner", "Unknown", |at| async move {
            let mut resource = at.fresh("a");
            meta(&mut resource).owner = "you".into();
            said(&at.create(resource, "me").await)
        }),
        row("what exists is not created again", "AlreadyExists", |at| async move {
            at.create(at.fresh("a"), "").await.unwrap();
            said(&at.create(at.fresh("a"), "").await)
        }),
        row("what exists under another owner is not created again either", "AlreadyExists", |at| async move {
            at.create(at.fresh("a"), "you").await.unwrap();
            said(&at.create(at.fresh("a"), "me").await)
        }),
        row("only the owner updates", "PermissionDenied `is owned by \"`", |at| write(at, "me", "you", None, |_| ())),
        row("nobody updates what is owned", "PermissionDenied `is owned by \"`", |at| {
            write(at, "me", "", None, |_| ())
        }),
        row("an owner does not update what nobody owns", "PermissionDenied `is owned by \"`", |at| {
            write(at, "", "me", None, |_| ())
        }),
        row("an old version conflicts", "FailedPrecondition `update conflict: expected version`", |at| async move {
            let old = at.create(at.fresh("a"), "").await.unwrap();
            at.edit("a", hold).await.unwrap();
            said(&at.update(old, "", None).await)
        }),
        row("a version of the future conflicts", "FailedPrecondition `update conflict: expected version`", |at| {
            write(at, "", "", None, |resource| meta(resource).version = "2".into())
        }),
        row("an undefined version conflicts", "FailedPrecondition `update conflict: expected version`", |at| {
            write(at, "", "", None, |resource| meta(resource).version = "undefined".into())
        }),
        row("the owner is checked before the version", "PermissionDenied `is owned by \"`", |at| {
            write(at, "me", "you", None, |resource| meta(resource).version = "2".into())
        }),
        row("the phase that is expected must be the stored one", "InvalidArgument `is not in phase`", |at| {
            write(at, "", "", Some("tearingDown"), |_| ())
        }),
        row("the phase that is expected is not the one sent", "ok", |at| {
            write(at, "", "", Some("running"), |resource| meta(resource).phase = "tearingDown".into())
        }),
        row("without an expected phase any will do", "ok", |at| async move {
            at.create(at.fresh("a"), "").await.unwrap();
            at.teardown("a", "").await.unwrap();
            said(&at.edit("a", |resource| meta(resource).phase = "running".into()).await)
        }),
        row("a phase that is none is an error", "Unknown", |at| write(at, "", "", Some("walking"), |_| ())),
        row(
            "the version is checked before the phase",
            "FailedPrecondition `update conflict: expected version`",
            |at| write(at, "", "", Some("tearingDown"), |resource| meta(resource).version = "2".into()),
        ),
        row(
            "an update replaces the whole resource",
            "labels 0, annotations 1, finalizers 1, spec new",
            |at| async move {
                at.create(at.labelled("a", &[("x", "y")]), "").await.unwrap();
                let written = at.edit("a", |resource| {
                    meta(resource).labels.clear();
                    meta(resource).annotations.insert("x".into(), "y".into());
                    hold(resource);
                    resource.spec = Some(cosi::Spec { proto_spec: "new".into(), yaml_spec: String::new() });
                });
                let cosi::Resource { metadata, spec } = written.await.unwrap();
                let (metadata, spec) = (metadata.unwrap(), spec.unwrap());
                format!(
                    "labels {}, annotations {}, finalizers {}, spec {}",
                    metadata.labels.len(),
                    metadata.annotations.len(),
                    metadata.finalizers.len(),
                    String::from_utf8_lossy(&spec.proto_spec)
                )
            },
        ),
        row("finalizers are a set", "me", |at| async move {
            let mut resource = at.fresh("a");
            meta(&mut resource).finalizers = vec!["me".into(), "me".into()];
            at.create(resource, "").await.unwrap().metadata.unwrap().finalizers.join(" ")
        }),
        row("an owner can give a resource away", "you", |at| async move {
            let mut resource = at.create(at.fresh("a"), "me").await.unwrap();
            meta(&mut resource).owner = "you".into();
            at.update(resource, "me", None).await.map_or_else(|s| said::<()>(&Err(s)), |r| r.metadata.unwrap().owner)
        }),
        row("only the owner destroys", "PermissionDenied `is owned by \"`", |at| async move {
            at.create(at.fresh("a"), "me").await.unwrap();
            said(&at.destroy("a", "you").await)
        }),
        row("what is held is not destroyed", "FailedPrecondition `has pending finalizers`", |at| async move {
            let mut resource = at.fresh("a");
            hold(&mut resource);
            at.create(resource, "").await.unwrap();
            said(&at.destroy("a", "").await)
        }),
        row("the owner is checked before the finalizers", "PermissionDenied `is owned by \"`", |at| async move {
            let mut resource = at.fresh("a");
            hold(&mut resource);
            at.create(resource, "me").await.unwrap();
            said(&at.destroy("a", "you").await)
        }),
        row("a running resource can be destroyed", "ok", |at| async move {
            at.create(at.fresh("a"), "").await.unwrap();
            said(&at.destroy("a", "").await)
        }),
        row(
            "Teardown sets the phase once and says whether nobody holds it",
            "true true tearingDown 2",
            |at| async move {
                at.create(at.fresh("a"), "").await.unwrap();
                let (first, second) = (at.teardown("a", "").await.unwrap(), at.teardown("a", "").await.unwrap());
                let metadata = at.get("a").await.unwrap().metadata.unwrap();
                format!("{first} {second} {} {}", metadata.phase, metadata.version)
            },
        ),
        row("Teardown of what is held", "false", |at| async move {
            let mut resource = at.fresh("a");
            hold(&mut resource);
            at.create(resource, "").await.unwrap();
            at.teardown("a", "").await.unwrap().to_string()
        }),
        row("only the owner tears down", "PermissionDenied `is owned by \"`", |at| async move {
            at.create(at.fresh("a"), "me").await.unwrap();
            said(&at.teardown("a", "you").await)
        }),
        row("TeardownAndDestroy removes at once what nobody holds", "ok, NotFound", |at| async move {
            at.create(at.fresh("a"), "me").await.unwrap();
            format!("{}, {}", said(&at.teardown_and_destroy("a", "me").await), said(&at.get("a").await))
        }),
        row(
            "TeardownAndDestroy waits until the last one lets go",
            "waits in tearingDown, ok, NotFound",
            |at| async move {
                let mut resource = at.fresh("a");
                hold(&mut resource);
                at.create(resource, "").await.unwrap();
                let removing = tokio::spawn({
                    let at = at.clone();
                    async move { at.teardown_and_destroy("a", "").await }
                });
                let mut phase = String::new();
                while phase != "tearingDown" && !removing.is_finished() {
                    phase = at.get("a").await.unwrap().metadata.unwrap().phase;
                    yield_now().await;
                }
                let waits = if removing.is_finished() { "ended" } else { "waits" };
                at.edit("a", |resource| meta(resource).finalizers.clear()).await.unwrap();
                let removed = removing.await.unwrap();
                format!("{waits} in {phase}, {}, {}", said(&removed), said(&at.get("a").await))
            },
        ),
        row("only the owner tears down and destroys", "PermissionDenied `is owned by \"`", |at| async move {
            at.create(at.fresh("a"), "me").await.unwrap();
            said(&at.teardown_and_destroy("a", "you").await)
        }),
        row("a message of 5 MiB is taken and given back", "5242880", |at| async move {
            let mut resource = at.fresh("a");
            // Random octets would be no better: what is compressed away counts once it is unpacked.
            resource.spec = Some(cosi::Spec { proto_spec: vec![7; 5 << 20].into(), yaml_spec: String::new() });
            at.create(resource, "")
                .await
                .map_or_else(|s| said::<()>(&Err(s)), |r| r.spec.unwrap().proto_spec.len().to_string())
        }),
        row("of a type that nobody defined, the spec's text is kept too", "x: 1", |at| async move {
            let mut resource = at.fresh("a");
            resource.spec = Some(cosi::Spec { proto_spec: "x".into(), yaml_spec: "x: 1".into() });
            at.create(resource, "").await.unwrap();
            at.get("a").await.unwrap().spec.unwrap().yaml_spec
        }),
    ]
}
