//! Members of JSON bodies as Go's decoder finds them: without regard to case, the last of
//! several counts, and `null` leaves what it stands for unset.
//!
//! The types that a body is read into know the names. A [`GoNames`] is a deserializer over a
//! document that gives its members those names on the way, so that whoever looks into the
//! document later finds them under the names, too.

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};
use serde_json::{Map, Value};

/// Reads a document, and gives its members the names that the type knows.
///
/// # Errors
/// As of any document that is not of the type.
pub fn read<T: DeserializeOwned>(document: &mut Value) -> serde_json::Result<T> {
    T::deserialize(GoNames(document))
}

/// Gives members the names that a type knows, as far as the document is of the type.
pub fn name_members<T: DeserializeOwned>(document: &mut Value) {
    // What is wrong about it is said by whoever reads it.
    let _ = read::<T>(document);
}

struct GoNames<'de>(&'de mut Value);

/// Gives the members of one object the names in `known`.
fn rename(members: &mut Map<String, Value>, known: &[&str]) {
    let exact = |name: &String| known.contains(&name.as_str());
    let as_known = |name: &String| known.iter().find(|one| one.eq_ignore_ascii_case(name));
    members.retain(|name, value| !value.is_null() || as_known(name).is_none());
    if members
        .keys()
        .all(|name| exact(name) || as_known(name).is_none())
    {
        return;
    }
    for (name, value) in std::mem::take(members) {
        let name = match as_known(&name) {
            Some(known) if !exact(&name) => (*known).to_owned(),
            _ => name,
        };
        members.insert(name, value);
    }
}

impl<'de> Deserializer<'de> for GoNames<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Object(members) => visitor.visit_map(Members {
                rest: members.iter_mut(),
                value: None,
            }),
            Value::Array(elements) => visitor.visit_seq(Elements(elements.iter_mut())),
            scalar => (&*scalar).deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        (&*self.0).deserialize_enum(name, variants, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Object(members) => rename(members, fields),
            // serde takes a list for an object with its members in order; nobody means that.
            Value::Array(_) => {
                return Err(serde::de::Error::invalid_type(Unexpected::Seq, &visitor));
            }
            _ => {}
        }
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Members<'de> {
    rest: serde_json::map::IterMut<'de>,
    /// That of the name that was read last.
    value: Option<&'de mut Value>,
}

impl<'de> MapAccess<'de> for Members<'de> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Self::Error> {
        let Some((name, value)) = self.rest.next() else {
            return Ok(None);
        };
        self.value = Some(value);
        seed.deserialize(BorrowedStrDeserializer::new(name))
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, Self::Error> {
        match self.value.take() {
            Some(value) => seed.deserialize(GoNames(value)),
            None => Err(serde::de::Error::custom("a value without a name")),
        }
    }
}

struct Elements<'de>(std::slice::IterMut<'de, Value>);

impl<'de> SeqAccess<'de> for Elements<'de> {
    type Error = serde_json::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Self::Error> {
        let element = self.0.next();
        element
            .map(|value| seed.deserialize(GoNames(value)))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard_stubs::models::{ContainerConfig, HostConfig, NetworkCreateRequest};
    use serde::Deserialize;
    use serde_json::json;

    #[test]
    fn names_without_regard_to_case() {
        let mut body = json!({
            "image": "a", "CMD": ["x"], "env": null, "labels": { "cmd": "stays" },
            "Image": "b", "unknown": null,
        });
        let read: ContainerConfig = read(&mut body).unwrap();
        assert_eq!(read.image.as_deref(), Some("b"));
        assert_eq!(read.cmd.as_deref(), Some(&["x".to_owned()][..]));
        let named = json!({
            "Image": "b", "Cmd": ["x"], "Labels": { "cmd": "stays" }, "unknown": null,
        });
        assert_eq!(body, named);
    }

    #[test]
    fn names_of_what_is_within() {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body {
            host_config: Option<HostConfig>,
        }
        let mut body = json!({ "hostconfig": {
            "memory": 5, "mounts": [{ "type": "bind", "readonly": true }],
            "restartpolicy": { "name": "always" },
        } });
        let read: Body = read(&mut body).unwrap();
        assert_eq!(read.host_config.unwrap().memory, Some(5));
        let named = json!({ "HostConfig": {
            "Memory": 5, "Mounts": [{ "Type": "bind", "ReadOnly": true }],
            "RestartPolicy": { "Name": "always" },
        } });
        assert_eq!(body, named);
        let mut network = json!({ "name": "n", "ipam": { "config": [{ "subnet": "s" }] } });
        name_members::<NetworkCreateRequest>(&mut network);
        assert_eq!(network.pointer("/IPAM/Config/0/Subnet"), Some(&json!("s")));
    }

    #[test]
    fn what_is_of_another_type() {
        for wrong in [
            json!({ "Image": 1 }),
            json!({ "Cmd": "text" }),
            json!(["host"]),
            json!("text"),
        ] {
            assert!(read::<ContainerConfig>(&mut wrong.clone()).is_err());
        }
    }
}
