//! How a pull or push is getting on, in docker's words.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

/// One message to the client.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// A line that stays.
    Status {
        /// The layer or tag it is about.
        id: Option<String>,
        /// Docker's words.
        text: String,
    },
    /// A layer's line.
    Layer {
        /// Its short digest.
        id: String,
        /// Docker's words.
        text: &'static str,
        /// Done and all, bytes.
        counts: Option<(u64, u64)>,
    },
    /// What programs read.
    Aux(Value),
}

/// Where messages go. Called from many tasks; must not block.
#[derive(Clone)]
pub struct Reporter(Arc<dyn Fn(Message) + Send + Sync>);

impl fmt::Debug for Reporter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Reporter")
    }
}

impl Reporter {
    /// One that calls this.
    pub fn new(report: impl Fn(Message) + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }

    /// One that keeps all to itself.
    pub fn silent() -> Self {
        Self::new(|_| {})
    }

    pub(crate) fn send(&self, message: Message) {
        (self.0)(message);
    }

    pub(crate) fn status(&self, text: impl Into<String>) {
        self.send(Message::Status {
            id: None,
            text: text.into(),
        });
    }

    pub(crate) fn about(&self, id: &str, text: impl Into<String>) {
        self.send(Message::Status {
            id: Some(id.to_owned()),
            text: text.into(),
        });
    }

    pub(crate) fn layer(&self, id: &str, text: &'static str) {
        self.send(Message::Layer {
            id: id.to_owned(),
            text,
            counts: None,
        });
    }

    pub(crate) fn counts(&self, id: &str, text: &'static str, done: u64, all: u64) {
        self.send(Message::Layer {
            id: id.to_owned(),
            text,
            counts: Some((done, all)),
        });
    }
}
