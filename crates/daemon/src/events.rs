//! The event bus: what happened, for `/events`. The newest events are kept for clients
//! that ask for the past; a client that is too slow to follow loses its oldest ones.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_image::Reference;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::broadcast;

/// How many events are kept for `since`.
const KEPT: usize = 1024;
/// How far a follower may lag before it loses events.
const BACKLOG: usize = 1024;

/// One event, as the API prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Old clients: the action. Containers and images only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Old clients: the actor's ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Old clients: the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// `container`, `image`, `network`, `volume`, `daemon`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// What happened.
    #[serde(rename = "Action")]
    pub action: String,
    /// To what.
    #[serde(rename = "Actor")]
    pub actor: Actor,
    /// Always `local`.
    pub scope: String,
    /// Seconds since the epoch.
    pub time: i64,
    /// Nanoseconds since the epoch.
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Actor {
    /// Its ID.
    #[serde(rename = "ID")]
    pub id: String,
    /// What else is known: `name`, `image`, labels, `exitCode`…
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

/// The bus; clones share it.
#[derive(Debug, Clone)]
pub struct EventBus {
    shared: Arc<Mutex<Ring>>,
    sender: broadcast::Sender<Arc<Event>>,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    last_nano: i64,
}

impl Default for EventBus {
    fn default() -> Self {
        Self {
            shared: Arc::default(),
            sender: broadcast::channel(BACKLOG).0,
        }
    }
}

impl EventBus {
    /// Publishes an event.
    pub fn publish(
        &self,
        kind: &str,
        action: &str,
        id: &str,
        attributes: BTreeMap<String, String>,
    ) {
        let old_clients = matches!(kind, "container" | "image");
        let mut ring = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Timestamp::now();
        // Strictly increasing, so that clients can order events and resume after one.
        let nano = i64::try_from(now.as_nanosecond())
            .unwrap_or(i64::MAX)
            .max(ring.last_nano.saturating_add(1));
        ring.last_nano = nano;
        let event = Arc::new(Event {
            status: old_clients.then(|| action.to_owned()),
            id: (old_clients && !id.is_empty()).then(|| id.to_owned()),
            from: (kind == "container")
                .then(|| attributes.get("image").cloned())
                .flatten(),
            kind: kind.to_owned(),
            action: action.to_owned(),
            actor: Actor {
                id: id.to_owned(),
                attributes,
            },
            scope: "local".to_owned(),
            time: nano.div_euclid(1_000_000_000),
            time_nano: nano,
        });
        if ring.events.len() == KEPT {
            ring.events.pop_front();
        }
        ring.events.push_back(Arc::clone(&event));
        // Nobody listening is fine. Sent under the lock, so that a subscriber gets each
        // event exactly once: from the ring or from the channel.
        let _ = self.sender.send(event);
    }

    /// Publishes that everything unused of a kind was removed.
    pub fn pruned(&self, kind: &str, reclaimed: u64) {
        let attributes = BTreeMap::from([("reclaimed".to_owned(), reclaimed.to_string())]);
        self.publish(kind, "prune", "", attributes);
    }

    /// How many follow.
    pub fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }

    /// The events kept so far and a receiver of those to come; none is missed between.
    pub fn subscribe(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let ring = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        (
            ring.events.iter().cloned().collect(),
            self.sender.subscribe(),
        )
    }
}

/// The `filters` of `/events`: every key must match, by any of its values.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    filters: HashMap<String, Vec<String>>,
}

impl EventFilter {
    /// Takes decoded filters (see [`crate::routes::query::filters`]).
    pub fn new(filters: HashMap<String, Vec<String>>) -> Self {
        Self { filters }
    }

    /// Whether an event passes.
    pub fn matches(&self, event: &Event) -> bool {
        self.filters.iter().all(|(key, values)| {
            let mut values = values.iter().peekable();
            match key.as_str() {
                // One event has several labels.
                "label" => values.all(|value| matches_one(event, key, value)),
                _ if values.peek().is_none() => true,
                _ => values.any(|value| matches_one(event, key, value)),
            }
        })
    }
}

fn matches_one(event: &Event, key: &str, value: &str) -> bool {
    let attributes = &event.actor.attributes;
    let is = |kind: &str| {
        event.kind == kind
            && (event.actor.id.starts_with(value)
                || attributes
                    .get("name")
                    .is_some_and(|name| name.starts_with(value)))
    };
    match key {
        // `exec_start: sh` is found by `event=exec_start`.
        "event" => {
            event.action == value
                || event
                    .action
                    .split_once(':')
                    .is_some_and(|(action, _)| action == value)
        }
        "type" => event.kind == value,
        "scope" => event.scope == value,
        "container" | "network" | "volume" | "plugin" | "daemon" | "node" | "secret"
        | "service" | "config" => is(key),
        "image" => {
            let attribute = match event.kind.as_str() {
                "image" => "name",
                _ => "image",
            };
            let image = attributes.get(attribute).map_or("", String::as_str);
            [event.actor.id.as_str(), image]
                .iter()
                .any(|name| *name == value || without_tag(name).is_some_and(|name| name == value))
        }
        "label" => match value.split_once('=') {
            Some((name, wanted)) => attributes.get(name).is_some_and(|have| have == wanted),
            None => attributes.contains_key(value),
        },
        // As dockerd: what it does not know, it does not look at.
        _ => true,
    }
}

/// The repository of a name, as users write it; `None` for what is no name.
fn without_tag(name: &str) -> Option<String> {
    let reference = Reference::parse(name).ok()?;
    Some(reference.familiar_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn kept_and_followed() {
        let bus = EventBus::default();
        bus.publish("container", "create", "a1", attributes(&[("name", "x")]));
        let (past, mut coming) = bus.subscribe();
        bus.publish("container", "start", "a1", attributes(&[("name", "x")]));
        assert_eq!(past.len(), 1);
        let next = coming.try_recv().unwrap();
        assert_eq!(next.action, "start");
        assert!(next.time_nano > past[0].time_nano);
    }

    #[test]
    fn filters() {
        let bus = EventBus::default();
        bus.publish(
            "container",
            "exec_start: sh",
            "a1b2",
            attributes(&[("name", "web_1"), ("image", "busybox:latest"), ("l", "1")]),
        );
        let event = &bus.subscribe().0[0];
        let filter = |key: &str, value: &str| {
            EventFilter::new(HashMap::from([(key.to_owned(), vec![value.to_owned()])]))
                .matches(event)
        };
        assert!(filter("event", "exec_start"));
        assert!(!filter("event", "exec_die"));
        assert!(filter("container", "a1"));
        assert!(filter("container", "web"));
        assert!(filter("container", "web_1"));
        assert!(!filter("container", "eb"));
        assert!(filter("image", "busybox"));
        assert!(filter("image", "busybox:latest"));
        assert!(!filter("image", "busy"));
        assert!(filter("label", "l=1"));
        assert!(!filter("label", "l=2"));
        assert!(!filter("type", "image"));
        let name = "localhost:5000/a/b:1";
        bus.publish("image", "tag", "sha256:12", attributes(&[("name", name)]));
        let event = &bus.subscribe().0[1];
        let image = |value: &str| {
            EventFilter::new(HashMap::from([(
                "image".to_owned(),
                vec![value.to_owned()],
            )]))
            .matches(event)
        };
        assert!(image("localhost:5000/a/b"));
        assert!(image(name));
        assert!(image("sha256:12"));
        assert!(!image("localhost"));
    }
}
