//! What the options of a log have every entry say of its container: some of its labels and
//! environment, and a tag.

use std::collections::{BTreeMap, HashMap};

use regex::Regex;

use super::model::Record;

/// Digits of a short ID.
const SHORT: usize = 12;

/// Options with what they name: by name, or by an expression.
struct Chosen {
    names: Vec<String>,
    expression: Option<Regex>,
}

impl Chosen {
    fn read(options: &HashMap<String, String>, key: &str) -> Result<Self, String> {
        let option = |key: &str| options.get(key).filter(|value| !value.is_empty());
        let names = option(key).map(|names| names.split(',').map(str::to_owned).collect());
        let key = format!("{key}-regex");
        let expression = option(&key)
            .map(|text| Regex::new(text).map_err(|error| format!("invalid {key}: {error}")))
            .transpose()?;
        Ok(Self {
            names: names.unwrap_or_default(),
            expression,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|one| one == name)
            || self
                .expression
                .as_ref()
                .is_some_and(|one| one.is_match(name))
    }
}

/// The attributes of a container's entries.
///
/// # Errors
/// For a person: an option that cannot be read.
pub(super) fn of(
    record: &Record,
    options: &HashMap<String, String>,
) -> Result<BTreeMap<String, String>, String> {
    let (labels, env) = (
        Chosen::read(options, "labels")?,
        Chosen::read(options, "env")?,
    );
    let mut attributes = BTreeMap::new();
    for (name, value) in record.config.labels.iter().flatten() {
        if labels.has(name) {
            attributes.insert(name.clone(), value.clone());
        }
    }
    for variable in record.config.env.iter().flatten() {
        if let Some((name, value)) = variable.split_once('=')
            && env.has(name)
        {
            attributes.insert(name.to_owned(), value.to_owned());
        }
    }
    if let Some(template) = options.get("tag") {
        let tag = fill(template, |field| field_of(record, field))?;
        if !tag.is_empty() {
            attributes.insert("tag".to_owned(), tag);
        }
    }
    Ok(attributes)
}

/// Refuses what [`of`] could not read.
///
/// # Errors
/// For a person.
pub(super) fn check(options: &HashMap<String, String>) -> Result<(), String> {
    Chosen::read(options, "labels")?;
    Chosen::read(options, "env")?;
    let known = |field: &str| FIELDS.contains(&field).then(String::new);
    options
        .get("tag")
        .map_or(Ok(()), |template| fill(template, known).map(drop))
}

const FIELDS: [&str; 8] = [
    "ID",
    "FullID",
    "Name",
    "ImageID",
    "ImageFullID",
    "ImageName",
    "Command",
    "DaemonName",
];

fn field_of(record: &Record, field: &str) -> Option<String> {
    let short = |id: &str| id.chars().take(SHORT).collect();
    let image = record.image_id.clone();
    Some(match field {
        "ID" => short(&record.id),
        "FullID" => record.id.clone(),
        "Name" => record.name.clone(),
        "ImageID" => short(image.trim_start_matches("sha256:")),
        "ImageFullID" => image,
        "ImageName" => record.config.image.clone().unwrap_or_default(),
        "Command" => {
            let mut words = vec![record.path.clone()];
            words.extend(record.args.iter().cloned());
            words.join(" ")
        }
        "DaemonName" => "docker".to_owned(),
        _ => return None,
    })
}

/// Fills in the fields of a template, `{{.Name}}`.
fn fill(template: &str, field: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let invalid = || {
            format!(
                "invalid log tag '{template}': it may have {}, each in double braces and with a dot",
                FIELDS.join(", ")
            )
        };
        let (inside, behind) = after.split_once("}}").ok_or_else(invalid)?;
        let name = inside.trim().strip_prefix('.').ok_or_else(invalid)?;
        out.push_str(before);
        out.push_str(&field(name).ok_or_else(invalid)?);
        rest = behind;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_fields() {
        let field = |name: &str| (name == "Name").then(|| "web".to_owned());
        assert_eq!(
            fill("a/{{.Name}}-{{ .Name }}b", field).unwrap(),
            "a/web-webb"
        );
        assert_eq!(fill("plain }}", field).unwrap(), "plain }}");
        for wrong in ["{{.Name", "{{Name}}", "{{.Nope}}", "{{}}"] {
            assert!(fill(wrong, field).is_err(), "{wrong}");
        }
    }

    #[test]
    fn options_are_checked() {
        let options = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
        assert!(check(&options("tag", "{{.ImageName}}/{{.ID}}")).is_ok());
        assert!(check(&options("labels", "a,b")).is_ok());
        for (key, value) in [
            ("tag", "{{.Nope}}"),
            ("env-regex", "("),
            ("labels-regex", "["),
        ] {
            assert!(check(&options(key, value)).is_err(), "{key}");
        }
    }
}
