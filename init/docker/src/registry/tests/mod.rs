//! Pulls from a real registry on loopback into a store on a loop device.

mod names;
pub(crate) mod pool;
pub(crate) mod server;

use std::sync::Arc;

use store::{Digest, Image, Reference, Store};
use tokio::sync::mpsc;

use self::pool::TestStore;
use self::server::{Gate, Layout, Manner, PASSWORD, Server, USER, noise};
use super::{Credentials, Event, Pull, Pulled, RegistryError, Session};

fn credentials(password: &str) -> Option<Credentials> {
    let json = serde_json::json!({"username": USER, "password": password}).to_string();
    Credentials::from_json(json.as_bytes()).unwrap()
}

/// Pulls from 127.0.0.1; what came of it and what was told meanwhile.
async fn pull_as(
    store: &Arc<Store>,
    port: u16,
    name: &str,
    who: Option<Credentials>,
) -> (Result<Pulled, RegistryError>, Vec<Event>) {
    let reference: Reference = format!("127.0.0.1:{port}/{name}").parse().unwrap();
    let pull = match Session::new(&reference, who, &[]) {
        Ok(session) => Pull::begin(session).await,
        Err(error) => Err(error),
    };
    let pull = match pull {
        Ok(pull) => pull,
        Err(error) => return (Err(error), Vec::new()),
    };
    let (events, mut coming) = mpsc::channel(64);
    let listening = async {
        let mut told = Vec::new();
        while let Some(event) = coming.recv().await {
            told.push(event);
        }
        told
    };
    tokio::join!(pull.run(store.clone(), events), listening)
}

async fn pull(store: &Arc<Store>, port: u16, name: &str) -> Result<Pulled, RegistryError> {
    pull_as(store, port, name, None).await.0
}

fn image(store: &Store, port: u16, name: &str) -> Image {
    store.resolve(&format!("127.0.0.1:{port}/{name}")).unwrap()
}

/// The failure's text; the store holds nothing of it.
fn refused(store: &Store, outcome: Result<Pulled, RegistryError>) -> String {
    assert!(store.images().is_empty());
    outcome.unwrap_err().to_string()
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_again_by_digest() {
    let (pool, server) = (TestStore::new(), Server::start());
    let layout = Layout::new(&[b"one", b"two", &noise(100_000), b"four"]);
    server.push(&layout, "team/box:1");
    let store = pool.store();
    let (pulled, told) = pull_as(&store, server.port, "team/box:1", None).await;
    let pulled = pulled.unwrap();
    assert!(pulled.changed);
    assert_eq!(pulled.digest, layout.top);
    for layer in &layout.layers {
        let place = |event: Event| told.iter().position(|seen| *seen == event).unwrap();
        let places = [
            Event::Waiting,
            Event::Downloaded,
            Event::Extracting,
            Event::Complete,
        ]
        .map(|of| place(of(*layer)));
        assert!(places.is_sorted(), "{places:?}");
    }
    let found = image(&store, server.port, "team/box:1");
    assert_eq!(found.id.0, layout.config);
    assert_eq!(found.layers.len(), 4);
    let by_digest = format!("team/box@{}", layout.top);
    assert_eq!(image(&store, server.port, &by_digest).id, found.id);
    // The second time nothing is fetched.
    for again in ["team/box:1", &by_digest] {
        let (pulled, told) = pull_as(&store, server.port, again, None).await;
        assert!(!pulled.unwrap().changed);
        assert!(
            told.iter().all(|event| matches!(event, Event::Exists(_))),
            "{told:?}"
        );
    }
    store.remove_image(&found.id, true).unwrap();
    assert!(pull(&store, server.port, &by_digest).await.unwrap().changed);
    assert!(image(&store, server.port, &by_digest).references.is_empty());
}

#[tokio::test]
async fn of_an_index_the_image_for_this_machine_is_taken_and_no_other() {
    let (pool, server) = (TestStore::new(), Server::start());
    let ours = Layout::new(&[b"ours"]).with_platforms("amd64");
    let theirs = Layout::new(&[b"theirs"]).with_platforms("arm64");
    server.push(&theirs, "box:theirs");
    server.push(&ours, "box:ours");
    let store = pool.store();
    let text = refused(&store, pull(&store, server.port, "box:theirs").await);
    assert!(text.contains("no matching manifest for linux/amd64"), "{text}");
    assert_eq!(
        pull(&store, server.port, "box:ours").await.unwrap().digest,
        ours.top
    );
    assert_eq!(image(&store, server.port, "box:ours").id.0, ours.config);
}

#[tokio::test]
async fn an_unknown_tag_or_name_is_told_in_dockers_words() {
    let (pool, server) = (TestStore::new(), Server::start());
    server.push(&Layout::new(&[b"one"]), "box:1");
    let nowhere = format!("box@{}", Digest::of(b"nowhere"));
    for name in ["box:2", "chest:1", &nowhere] {
        let text = refused(&pool.store(), pull(&pool.store(), server.port, name).await);
        assert!(text.contains(name) && text.contains("manifest unknown"), "{text}");
    }
}

#[tokio::test]
async fn a_registry_with_passwords_opens_to_the_right_one_only() {
    let (pool, open) = (TestStore::new(), Server::start());
    open.push(&Layout::new(&[b"one"]), "box:1");
    let closed = open.with_password();
    for who in [None, credentials("wrong")] {
        let (outcome, _) = pull_as(&pool.store(), closed.port, "box:1", who).await;
        let text = refused(&pool.store(), outcome);
        assert!(
            text.contains("pull access denied") && text.contains("docker login"),
            "{text}"
        );
    }
    let (outcome, _) = pull_as(&pool.store(), closed.port, "box:1", credentials(PASSWORD)).await;
    assert!(outcome.unwrap().changed);
}

#[tokio::test]
async fn a_token_is_fetched_where_the_registry_asks_for_one() {
    let (pool, server) = (TestStore::new(), Server::start());
    server.push(&Layout::new(&[b"one"]), "box:1");
    let gate = Gate::start(&server, Manner::Tokens);
    let text = refused(&pool.store(), pull(&pool.store(), gate.port, "box:1").await);
    assert!(text.contains("authentication required"), "{text}");
    let (outcome, _) = pull_as(&pool.store(), gate.port, "box:1", credentials(PASSWORD)).await;
    assert!(outcome.unwrap().changed);
    let heads = gate.heads.lock().unwrap();
    let asked = heads.iter().rfind(|head| head.contains("/token?")).unwrap();
    assert!(
        asked.contains("service=a%2C+b&scope=repository%3Abox%3Apull"),
        "{asked}"
    );
    // The password goes to the token service and nowhere else.
    assert!(
        heads
            .iter()
            .all(|head| head.contains("/token?") || !head.contains("Basic"))
    );
}

#[tokio::test]
async fn blobs_that_lie_elsewhere_are_fetched_there_without_the_token() {
    let (pool, server) = (TestStore::new(), Server::start());
    server.push(&Layout::new(&[b"one"]), "box:1");
    let there = Gate::start(&server, Manner::Cuts(0));
    let gate = Gate::start(&server, Manner::Elsewhere(there.port));
    let (outcome, _) = pull_as(&pool.store(), gate.port, "box:1", credentials(PASSWORD)).await;
    assert!(outcome.unwrap().changed);
    let with_token = |gate: &Gate| {
        let heads = gate.heads.lock().unwrap();
        let blobs = heads.iter().filter(|head| head.contains("/blobs/"));
        blobs
            .map(|head| head.contains("authorization:"))
            .collect::<Vec<_>>()
    };
    assert!(with_token(&gate).contains(&true));
    // Config and layer.
    assert_eq!(with_token(&there), [false, false]);
}

#[tokio::test]
async fn two_pulls_of_one_image_at_once_both_succeed() {
    let (pool, server) = (TestStore::new(), Server::start());
    server.push(&Layout::new(&[&noise(200_000), b"two", b"two"]), "box:1");
    let store = pool.store();
    let (one, two) = tokio::join!(
        pull(&store, server.port, "box:1"),
        pull(&store, server.port, "box:1")
    );
    assert_eq!(one.unwrap().digest, two.unwrap().digest);
    assert_eq!(image(&store, server.port, "box:1").layers.len(), 3);
}

#[tokio::test]
async fn a_transfer_that_always_breaks_is_given_up() {
    let (pool, server) = (TestStore::new(), Server::start());
    let layout = Layout::new(&[&noise(1 << 20)]);
    server.push(&layout, "box:1");
    let gate = Gate::start(&server, Manner::Stuck);
    let text = refused(&pool.store(), pull(&pool.store(), gate.port, "box:1").await);
    assert!(text.contains("broke again and again"), "{text}");
}

#[tokio::test]
async fn a_damaged_layer_manifest_or_config_is_refused() {
    let (pool, server) = (TestStore::new(), Server::start());
    let layouts = [b"one", b"two", b"tre"].map(|content| Layout::new(&[content, &noise(50_000)]));
    for (number, layout) in layouts.iter().enumerate() {
        server.push(layout, &format!("box:{number}"));
    }
    server.damage(&layouts[0].layers[1]);
    server.damage(&layouts[1].config);
    server.damage(&layouts[2].top);
    let store = pool.store();
    let by_digest = format!("box@{}", layouts[2].top);
    for (name, part) in [
        ("box:0", &layouts[0].layers[1]),
        ("box:1", &layouts[1].config),
        ("box:2", &layouts[2].top),
        (&by_digest, &layouts[2].top),
    ] {
        let text = refused(&store, pull(&store, server.port, name).await);
        assert!(text.contains(&part.to_string()), "{name}: {text}");
    }
    // Layers that came whole are not kept either.
    assert!(!store.has_layer(&store::ChainId(layouts[0].layers[0])));
}

#[tokio::test]
async fn a_transfer_that_is_cut_goes_on_where_it_was() {
    let (pool, server) = (TestStore::new(), Server::start());
    let layout = Layout::new(&[&noise(1 << 20)]);
    server.push(&layout, "box:1");
    let gate = Gate::start(&server, Manner::Cuts(2));
    assert!(pull(&pool.store(), gate.port, "box:1").await.unwrap().changed);
    let heads = gate.heads.lock().unwrap();
    let ranges = heads.iter().filter(|head| head.contains("range: bytes=")).count();
    assert_eq!(ranges, 2, "{heads:?}");
}

#[tokio::test]
async fn a_registry_that_cannot_be_reached_is_told_with_what_to_look_at() {
    let pool = TestStore::new();
    // Nothing listens on port 1.
    let text = refused(&pool.store(), pull(&pool.store(), 1, "box:1").await);
    assert!(
        text.contains("Cannot reach registry 127.0.0.1:1") && text.contains("refused"),
        "{text}"
    );
    let reference: Reference = "registry.invalid/box:1".parse().unwrap();
    let error = match Session::new(&reference, None, &[]) {
        Ok(session) => Pull::begin(session).await.err().unwrap(),
        Err(error) => error,
    };
    let text = error.to_string();
    assert!(
        text.contains("Cannot reach registry registry.invalid") && text.contains("resolved"),
        "{text}"
    );
}
