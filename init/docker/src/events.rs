//! What happened, for `/events`: kept for a while and told to those who listen.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::broadcast;

/// Events that are remembered for `since`, and that a slow listener may be behind.
const REMEMBERED: usize = 256;

#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Fields of clients before 1.22 are given beside the newer ones, as Docker does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(rename = "Type")]
    pub kind: &'static str,
    #[serde(rename = "Action")]
    pub action: String,
    #[serde(rename = "Actor")]
    pub actor: Actor,
    pub scope: &'static str,
    pub time: i64,
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Actor {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

pub struct Events {
    sender: broadcast::Sender<Event>,
    past: Mutex<VecDeque<Event>>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sender: broadcast::channel(REMEMBERED).0,
            past: Mutex::default(),
        }
    }
}

impl Events {
    /// Tells an event: `kind` is `container` or `image`, `action` such as `start` or `pull`.
    pub fn tell(&self, kind: &'static str, action: &str, id: &str, attributes: BTreeMap<String, String>) {
        let now = OffsetDateTime::now_utc();
        let legacy = matches!(kind, "container" | "image");
        let event = Event {
            status: legacy.then(|| action.to_owned()),
            id: legacy.then(|| id.to_owned()),
            from: (kind == "container")
                .then(|| attributes.get("image").cloned())
                .flatten(),
            kind,
            action: action.to_owned(),
            actor: Actor {
                id: id.to_owned(),
                attributes,
            },
            scope: "local",
            time: now.unix_timestamp(),
            time_nano: i64::try_from(now.unix_timestamp_nanos()).unwrap_or(i64::MAX),
        };
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if past.len() == REMEMBERED {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Under the lock: a listener sees each event once, either as past or as new.
        let _ = self.sender.send(event);
    }

    /// The remembered events and all that come.
    pub fn listen(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        (past.iter().cloned().collect(), self.sender.subscribe())
    }
}
