//! What templates work on: JSON-like values whose objects keep their order and know whether
//! they stand for a Go struct or for a map, which print and fail differently.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Number;

/// A value in a template.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// The result of looking up a key that a map does not have.
    Missing,
    /// `nil`.
    Nil,
    /// A list or a map that is `nil`, and how it prints.
    NilOf(&'static str),
    /// A boolean.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    Text(Rc<str>),
    /// A list.
    List(Rc<Vec<Value>>),
    /// A struct or a map.
    Object(Rc<Object>),
}

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// The Go type that messages name, for a struct; none for a map.
    pub type_name: Option<&'static str>,
    /// Its entries, in order.
    pub entries: Vec<(String, Value)>,
    /// Methods that take one key: `.Label "x"`.
    pub lookups: Vec<(&'static str, BTreeMap<String, String>)>,
}

/// What messages call an object of an API answer.
pub(super) const API_OBJECT: &str = "interface {}";

/// Fields of the Engine API whose objects are maps with keys of the user's choosing.
const MAPS: &[&str] = &[
    "Labels",
    "Annotations",
    "Sysctls",
    "Tmpfs",
    "StorageOpt",
    "Networks",
    "Ports",
    "PortBindings",
    "ExposedPorts",
    "Volumes",
    "DriverOpts",
    "Options",
    "Data",
    "Attributes",
    "Runtimes",
    "IndexConfigs",
    "Metadata",
    "Details",
    "Containers",
    "Status",
    "Storage",
];

/// Fields that are lists when they are set.
const LISTS: &[&str] = &[
    "Args",
    "Binds",
    "CapAdd",
    "CapDrop",
    "Cmd",
    "DeviceCgroupRules",
    "DeviceRequests",
    "Devices",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "Entrypoint",
    "Env",
    "ExecIDs",
    "ExtraHosts",
    "GroupAdd",
    "Links",
    "MaskedPaths",
    "Mounts",
    "OnBuild",
    "ReadonlyPaths",
    "RepoDigests",
    "RepoTags",
    "SecurityOpt",
    "Shell",
    "Ulimits",
    "VolumesFrom",
];

impl Value {
    /// A string.
    pub fn text(text: impl AsRef<str>) -> Self {
        Self::Text(Rc::from(text.as_ref()))
    }

    /// A whole number.
    pub fn int(n: i64) -> Self {
        Self::Number(n.into())
    }

    /// The value that an API answer stands for in the Docker CLI: objects are structs, but
    /// for those that hold the user's own keys.
    pub fn from_api(json: &serde_json::Value) -> Self {
        Self::convert(json, "")
    }

    fn convert(json: &serde_json::Value, field: &str) -> Self {
        use serde_json::Value as Json;
        match json {
            Json::Null if LISTS.contains(&field) => Self::NilOf("[]"),
            Json::Null if MAPS.contains(&field) => Self::NilOf("map[]"),
            Json::Null => Self::Nil,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => Self::Number(n.clone()),
            Json::String(s) => Self::text(s),
            Json::Array(items) => Self::List(Rc::new(
                items.iter().map(|i| Self::convert(i, field)).collect(),
            )),
            Json::Object(entries) => Self::Object(Rc::new(Object {
                type_name: (!MAPS.contains(&field)).then_some(API_OBJECT),
                entries: entries
                    .iter()
                    .map(|(k, v)| (k.clone(), Self::convert(v, k)))
                    .collect(),
                lookups: Vec::new(),
            })),
        }
    }

    /// True for a row of a list.
    pub(super) fn is_row(&self) -> bool {
        matches!(self, Self::Object(o) if o.type_name.is_some_and(|name| name != API_OBJECT))
    }

    /// A list of strings.
    pub fn texts<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> Self {
        Self::List(Rc::new(items.into_iter().map(Self::text).collect()))
    }

    /// Go's notion of truth: not empty, not zero, not nil.
    pub fn truth(&self) -> bool {
        match self {
            Self::Missing | Self::Nil | Self::NilOf(_) => false,
            Self::Bool(b) => *b,
            Self::Number(n) => n.as_f64() != Some(0.0),
            Self::Text(s) => !s.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Object(o) => o.type_name.is_some() || !o.entries.is_empty(),
        }
    }

    /// The type's name in messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Missing | Self::Nil | Self::NilOf(_) => "nil",
            Self::Bool(_) => "bool",
            Self::Number(n) if n.is_f64() => "float64",
            Self::Number(_) => "int",
            Self::Text(_) => "string",
            Self::List(_) => "[]interface {}",
            Self::Object(o) => o.type_name.unwrap_or("map[string]interface {}"),
        }
    }

    /// As Go prints it with `%v`.
    pub fn print(&self) -> String {
        let mut out = String::new();
        self.print_to(&mut out);
        out
    }

    fn print_to(&self, out: &mut String) {
        match self {
            Self::Missing => out.push_str("<no value>"),
            Self::Nil => out.push_str("<nil>"),
            Self::NilOf(shown) => out.push_str(shown),
            Self::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Self::Number(n) => out.push_str(&number(n)),
            Self::Text(s) => out.push_str(s),
            Self::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(' ');
                    }
                    item.print_to(out);
                }
                out.push(']');
            }
            Self::Object(o) if o.type_name.is_some() => {
                out.push('{');
                for (index, (_, value)) in o.entries.iter().enumerate() {
                    if index > 0 {
                        out.push(' ');
                    }
                    value.print_to(out);
                }
                out.push('}');
            }
            Self::Object(o) => {
                let mut entries: Vec<_> = o.entries.iter().collect();
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                out.push_str("map[");
                for (index, (key, value)) in entries.into_iter().enumerate() {
                    if index > 0 {
                        out.push(' ');
                    }
                    out.push_str(key);
                    out.push(':');
                    value.print_to(out);
                }
                out.push(']');
            }
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Self::Missing | Self::Nil | Self::NilOf(_) => Json::Null,
            Self::Bool(b) => Json::Bool(*b),
            Self::Number(n) => Json::Number(n.clone()),
            Self::Text(s) => Json::String(s.to_string()),
            Self::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Self::Object(o) => Json::Object(
                o.entries
                    .iter()
                    .map(|(k, v)| (k.clone(), v.to_json()))
                    .collect(),
            ),
        }
    }
}

/// Go's `%v` of a number.
fn number(n: &Number) -> String {
    match n.as_f64() {
        Some(f) if n.is_f64() => {
            if f != 0.0 && !(1e-4..1e21).contains(&f.abs()) {
                let text = format!("{f:e}");
                let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                let (sign, digits) = match exponent.strip_prefix('-') {
                    Some(digits) => ('-', digits),
                    None => ('+', exponent),
                };
                format!("{mantissa}e{sign}{digits:0>2}")
            } else {
                f.to_string()
            }
        }
        _ => n.to_string(),
    }
}
