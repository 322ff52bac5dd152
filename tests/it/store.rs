//! The store on disk: against a model, against kill -9, against what crashes leave behind, over its socket.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use pilotlight::ipc;
use pilotlight::store::sled_store::SledStore;
use pilotlight::store::socket::{StoreClient, serve};
use pilotlight::store::{Batch, Error, MAX_VALUE, Opened, Store, Tree};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

type Model = BTreeMap<(Tree, String), Vec<u8>>;

#[derive(Clone, Debug)]
enum Move {
    Commit(Vec<(Tree, String, Option<Vec<u8>>)>),
    Reopen,
    Export,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let tree = proptest::sample::select(Tree::ALL.to_vec());
    let value = proptest::option::weighted(0.7, proptest::collection::vec(any::<u8>(), 0..40));
    let op = (tree, "[a-c/]{1,2}", value);
    let step = prop_oneof![
        8 => proptest::collection::vec(op, 0..6).prop_map(Move::Commit),
        1 => Just(Move::Reopen),
        1 => Just(Move::Export),
    ];
    proptest::collection::vec(step, 1..16)
}

async fn assert_holds(store: &dyn Store, model: &Model) {
    for tree in Tree::ALL {
        let want: Vec<_> = model
            .iter()
            .filter(|((found, _), _)| *found == tree)
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect();
        assert_eq!(store.list(tree).await.unwrap(), want);
        for (key, value) in want {
            assert_eq!(store.get(tree, &key).await.unwrap(), Some(value));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_store_is_a_map_that_survives_reopening(moves in moves()) {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let mut store = SledStore::open(dir.path()).unwrap();
            let mut model = Model::new();
            for step in moves {
                match step {
                    Move::Commit(ops) => {
                        let mut batch = Batch::new();
                        for (tree, key, value) in ops {
                            batch = match &value {
                                Some(value) => batch.put(tree, key.clone(), value.clone()),
                                None => batch.remove(tree, key.clone()),
                            };
                            match value {
                                Some(value) => drop(model.insert((tree, key), value)),
                                None => drop(model.remove(&(tree, key))),
                            }
                        }
                        store.commit(batch).await.unwrap();
                    }
                    Move::Reopen => {
                        drop(store);
                        store = SledStore::open(dir.path()).unwrap();
                        assert_eq!(store.health().await.unwrap().opened, Opened::Clean);
                    }
                    Move::Export => store.export().await.unwrap(),
                }
                assert_holds(&store, &model).await;
            }
        });
    }
}

const CHILD: &str = "PILOTLIGHT_TEST_STORE_CHILD";

/// The other half of the next test: commits numbered records from four tasks and prints each number once it is
/// acknowledged, until it is killed. Without its variable it is an empty test.
#[test]
fn child_that_commits_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let store = SledStore::open(&dir).unwrap();
    block_on(async {
        let first = store.list(Tree::View).await.unwrap().len();
        let mut tasks = tokio::task::JoinSet::new();
        for lane in 0..4 {
            let store = store.clone();
            tasks.spawn(async move {
                // Bounded, should nobody kill it.
                for n in 0..20_000 {
                    let key = format!("{first:08}-{lane}-{n:08}");
                    // Now and then one of several chunks.
                    let value = key.repeat(if n % 16 == 0 { 3000 } else { 8 });
                    let both = Batch::new().put(Tree::View, &*key, value.clone()).put(Tree::Intent, &*key, value);
                    store.commit(both).await.unwrap();
                    println!("acked {key}");
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    });
}

#[test]
fn every_acknowledged_commit_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acked = Vec::new();
    for round in 0..24 {
        let mut random = [0; 2];
        getrandom::fill(&mut random).unwrap();
        let kill_after = usize::from(u16::from_le_bytes(random) % 300);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["store::child_that_commits_until_it_is_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut take = |limit: usize| {
            for _ in 0..limit {
                match lines.next() {
                    Some(line) => {
                        // The harness prints the test's name in front of its first line.
                        if let Some((_, key)) = line.unwrap().split_once("acked ") {
                            acked.push(key.to_owned());
                        }
                    }
                    None => break,
                }
            }
        };
        take(kill_after + 3);
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had printed before it died counts, too; a line cut by the kill has a short key and is left out.
        take(usize::MAX);
        if acked.last().is_some_and(|key| key.len() != 19) {
            acked.pop();
        }
        let store = SledStore::open(dir.path()).unwrap();
        block_on(async {
            assert!(matches!(store.health().await.unwrap().opened, Opened::Clean | Opened::SnapshotsDiscarded));
            let there: BTreeMap<_, _> = store.list(Tree::View).await.unwrap().into_iter().collect();
            let missing: Vec<_> = acked.iter().filter(|key| !there.contains_key(*key)).collect();
            assert!(missing.is_empty(), "round {round}: acknowledged and lost: {missing:?}");
            let twins: BTreeMap<_, _> = store.list(Tree::Intent).await.unwrap().into_iter().collect();
            assert_eq!(there, twins, "round {round}: a batch is torn");
        });
    }
    assert!(acked.len() > 100, "only {} commits were acknowledged in all rounds", acked.len());
}

async fn filled(dir: &Path, count: usize) {
    let store = SledStore::open(dir).unwrap();
    for n in 0..count {
        store.commit(Batch::new().put(Tree::Bmc, format!("{n:04}"), n.to_string())).await.unwrap();
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_second_holder_is_told_who_is_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    let error = SledStore::open(dir.path()).err().unwrap();
    assert!(matches!(error, Error::Locked { .. }));
    assert_eq!(error.to_string(), format!("another process holds the store at {}", dir.path().display()));
    drop(store);
    SledStore::open(dir.path()).unwrap();
}

#[tokio::test]
async fn leftovers_of_a_crash_do_not_keep_it_from_opening() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 50).await;
    let database = dir.path().join("sled");
    fs::write(database.join("snap.0000000000000ABC.generating"), b"half").unwrap();
    fs::write(database.join("snap.0000000000FFFFFF"), b"").unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!(store.health().await.unwrap().opened, Opened::Clean);
    assert_eq!(store.list(Tree::Bmc).await.unwrap().len(), 50);
    drop(store);
    fs::write(database.join("snap.0000000000FFFFFF"), [7; 300]).unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!(store.health().await.unwrap().opened, Opened::SnapshotsDiscarded);
    assert_eq!(store.list(Tree::Bmc).await.unwrap().len(), 50);
}

#[tokio::test]
async fn a_database_beyond_repair_is_moved_aside_and_the_export_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=3 {
        filled(dir.path(), 50).await;
        let database = dir.path().join("sled");
        // A configuration of another engine version: nothing opens it.
        fs::write(database.join("conf"), b"segment_size: 1024\nuse_compression: true\nversion: 9.9\n1234").unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        let health = store.health().await.unwrap();
        assert_eq!(health.opened, Opened::Imported { records: 50 }, "round {round}");
        let records = store.list(Tree::Bmc).await.unwrap();
        assert_eq!(records.len(), 50);
        assert_eq!(records[49], ("0049".to_owned(), b"49".to_vec()));
        drop(store);
        // What was imported stays.
        let store = SledStore::open(dir.path()).unwrap();
        assert_eq!(store.health().await.unwrap().opened, Opened::Clean);
        assert_eq!(store.list(Tree::Bmc).await.unwrap().len(), 50);
    }
    let damaged = fs::read_dir(dir.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("sled.damaged"));
    assert_eq!(damaged.count(), 2, "no more than two are kept");
    fs::write(dir.path().join("sled/conf"), b"segment_size: 1024\nuse_compression: true\nversion: 9.9\n1234").unwrap();
    fs::remove_file(dir.path().join("export.jsonl")).unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!(store.health().await.unwrap().opened, Opened::Lost);
}

#[tokio::test]
async fn values_up_to_the_limit_live_in_the_log_that_a_commit_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    for n in 0..40 {
        store.commit(Batch::new().put(Tree::View, format!("{:02}", n % 20), vec![n; MAX_VALUE])).await.unwrap();
    }
    let full = (0..60).fold(Batch::new(), |batch, n| batch.put(Tree::Image, format!("{n}"), vec![1; MAX_VALUE]));
    store.commit(full).await.unwrap();
    let over = Batch::new().put(Tree::View, "k", vec![0; MAX_VALUE + 1]);
    assert!(matches!(store.commit(over).await, Err(Error::ValueTooLarge { .. })));
    assert_eq!(fs::read_dir(dir.path().join("sled/blobs")).unwrap().count(), 0);
}

#[tokio::test]
async fn waiting_commits_share_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let store = store.clone();
        tasks.spawn(async move { store.commit(Batch::new().put(Tree::Meta, n.to_string(), "x")).await.unwrap() });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let health = store.health().await.unwrap();
    assert_eq!(health.commits, 200);
    assert!(health.syncs < 150, "{} syncs", health.syncs);
    store.close().await.unwrap();
    assert!(matches!(store.commit(Batch::new().put(Tree::Meta, "late", "x")).await, Err(Error::Closed)));
}

#[tokio::test]
async fn over_its_socket_the_store_is_the_same_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sock");
    let store = SledStore::open(dir.path().join("store")).unwrap();
    let cancel = CancellationToken::new();
    let uid = nix::unistd::geteuid().as_raw();
    let listener = ipc::bind(&path).unwrap();
    let server = tokio::spawn(serve(Arc::new(store.clone()), listener, vec![uid], cancel.clone()));
    let client = StoreClient::connect(&path);
    let mut model = Model::new();
    // More than two pages of a list.
    for n in 0..45_u8 {
        let (key, value) = (format!("{n:03}"), vec![n; MAX_VALUE]);
        client
            .commit(Batch::new().put(Tree::View, key.clone(), value.clone()).put(Tree::Bmc, "last", [n]))
            .await
            .unwrap();
        model.insert((Tree::View, key), value);
        model.insert((Tree::Bmc, "last".to_owned()), vec![n]);
    }
    assert_holds(&client, &model).await;
    assert_holds(&store, &model).await;
    client.export().await.unwrap();
    assert_eq!(client.health().await.unwrap().commits, 45);
    assert!(matches!(client.commit(Batch::new().remove(Tree::Bmc, "")).await, Err(Error::KeyRefused { .. })));
    cancel.cancel();
    server.await.unwrap();

    // The server's process restarts: the client finds it again by itself.
    let listener = ipc::bind(&path).unwrap();
    let server = tokio::spawn(serve(Arc::new(store), listener, vec![uid], CancellationToken::new()));
    assert_holds(&client, &model).await;
    server.abort();
}
