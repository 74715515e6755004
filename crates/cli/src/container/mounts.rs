//! `--mount` and `--volume`.

use serde_json::{Map, Value, json};

use super::values::comma_fields;
use crate::flags::bool_value;
use crate::format::units;

/// Checks a `--mount` value.
pub fn check(value: &str) -> Result<String, String> {
    parse_mount(value).map(|_| value.to_owned())
}

/// Puts the current directory before a relative path that begins with a dot.
pub fn absolute(path: &str) -> String {
    if !path.starts_with('.') {
        return path.to_owned();
    }
    match std::path::absolute(path) {
        Ok(whole) => clean(&whole.to_string_lossy()),
        Err(_) => path.to_owned(),
    }
}

/// Removes `.`, `..` and doubled slashes from an absolute path, without looking at it.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Options of one kind of mount, made on first use.
fn options<'a>(mount: &'a mut Map<String, Value>, kind: &str) -> &'a mut Map<String, Value> {
    let slot = mount.entry(kind).or_insert_with(|| json!({}));
    if !slot.is_object() {
        *slot = json!({});
    }
    match slot {
        Value::Object(map) => map,
        // Made an object just above.
        _ => unreachable!(),
    }
}

/// A `--mount` value as the API takes it.
pub fn parse_mount(text: &str) -> Result<Value, String> {
    let mut mount = Map::new();
    let mut kind = "volume".to_owned();
    let mut target = String::new();
    let boolean = |key: &str, value: &str| {
        bool_value(value).ok_or_else(|| format!("invalid value for {key}: {value}"))
    };
    let mut read_only = false;
    for field in comma_fields(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), value),
            None => {
                let key = field.to_lowercase();
                if !matches!(
                    key.as_str(),
                    "readonly" | "ro" | "volume-nocopy" | "bind-nonrecursive"
                ) {
                    return Err(format!("invalid field '{field}' must be a key=value pair"));
                }
                (key, "true")
            }
        };
        match key.as_str() {
            "type" => kind = value.to_lowercase(),
            "source" | "src" => {
                mount.insert("Source".to_owned(), absolute(value).into());
            }
            "target" | "dst" | "destination" => target = value.to_owned(),
            "readonly" | "ro" => read_only = boolean(&key, value)?,
            "consistency" => {
                mount.insert("Consistency".to_owned(), value.to_lowercase().into());
            }
            "bind-propagation" => {
                options(&mut mount, "BindOptions")
                    .insert("Propagation".to_owned(), value.to_lowercase().into());
            }
            "bind-nonrecursive" => {
                let on = boolean(&key, value)?;
                options(&mut mount, "BindOptions").insert("NonRecursive".to_owned(), on.into());
            }
            "bind-recursive" => {
                let name = match value {
                    "enabled" => continue,
                    "disabled" => "NonRecursive",
                    "writable" => "ReadOnlyNonRecursive",
                    "readonly" => "ReadOnlyForceRecursive",
                    _ => {
                        return Err(format!(
                            "invalid value for {key}: {value} (must be \"enabled\", \
                             \"disabled\", \"writable\", or \"readonly\")"
                        ));
                    }
                };
                options(&mut mount, "BindOptions").insert(name.to_owned(), true.into());
            }
            "volume-subpath" => {
                options(&mut mount, "VolumeOptions").insert("Subpath".to_owned(), value.into());
            }
            "volume-nocopy" => {
                let on = boolean(&key, value)?;
                options(&mut mount, "VolumeOptions").insert("NoCopy".to_owned(), on.into());
            }
            "volume-label" => {
                let (k, v) = value.split_once('=').unwrap_or((value, ""));
                let labels = options(options(&mut mount, "VolumeOptions"), "Labels");
                labels.insert(k.to_owned(), v.into());
            }
            "volume-driver" => {
                let driver = options(options(&mut mount, "VolumeOptions"), "DriverConfig");
                driver.insert("Name".to_owned(), value.into());
            }
            "volume-opt" => {
                let (k, v) = value.split_once('=').unwrap_or((value, ""));
                let driver = options(options(&mut mount, "VolumeOptions"), "DriverConfig");
                options(driver, "Options").insert(k.to_owned(), v.into());
            }
            "image-subpath" => {
                options(&mut mount, "ImageOptions").insert("Subpath".to_owned(), value.into());
            }
            "tmpfs-size" => {
                let size = units::ram_in_bytes(value)
                    .map_err(|_| format!("invalid value for {key}: {value}"))?;
                options(&mut mount, "TmpfsOptions").insert("SizeBytes".to_owned(), size.into());
            }
            "tmpfs-mode" => {
                let mode = u32::from_str_radix(value, 8)
                    .map_err(|_| format!("invalid value for {key}: {value}"))?;
                options(&mut mount, "TmpfsOptions").insert("Mode".to_owned(), mode.into());
            }
            _ => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
    }
    if kind.is_empty() {
        return Err("type is required".to_owned());
    }
    if target.is_empty() {
        return Err("target is required".to_owned());
    }
    for (name, of) in [
        ("VolumeOptions", "volume"),
        ("ImageOptions", "image"),
        ("BindOptions", "bind"),
        ("TmpfsOptions", "tmpfs"),
    ] {
        if mount.contains_key(name) && kind != of {
            return Err(format!(
                "cannot mix '{of}-*' options with mount type '{kind}'"
            ));
        }
    }
    check_recursion(&mount, read_only)?;
    mount.insert("Type".to_owned(), kind.into());
    mount.insert("Target".to_owned(), target.into());
    if read_only {
        mount.insert("ReadOnly".to_owned(), true.into());
    }
    Ok(Value::Object(mount))
}

fn check_recursion(mount: &Map<String, Value>, read_only: bool) -> Result<(), String> {
    let bind = |name: &str| mount.get("BindOptions").and_then(|b| b.get(name));
    for (name, value) in [
        ("ReadOnlyNonRecursive", "writable"),
        ("ReadOnlyForceRecursive", "readonly"),
    ] {
        if bind(name).is_some() && !read_only {
            return Err(format!(
                "option 'bind-recursive={value}' requires 'readonly' to be specified in conjunction"
            ));
        }
    }
    if bind("ReadOnlyForceRecursive").is_some()
        && bind("Propagation").and_then(Value::as_str) != Some("rprivate")
    {
        return Err(
            "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be \
                    specified in conjunction"
                .to_owned(),
        );
    }
    Ok(())
}

/// What a `--volume` value is.
pub enum Volume {
    /// A path of the container that gets an anonymous volume.
    Anonymous(String),
    /// A bind or a named volume, as `HostConfig.Binds` takes it.
    Bind(String),
}

/// Understands `[SOURCE:]TARGET[:MODE]`.
pub fn parse_volume(text: &str) -> Result<Volume, String> {
    if text.is_empty() {
        return Err("invalid empty volume spec".to_owned());
    }
    let Some((source, rest)) = text.split_once(':') else {
        return Ok(Volume::Anonymous(text.to_owned()));
    };
    // What follows the source is the daemon's to judge.
    let source = match source.strip_prefix('~') {
        Some(below) if below.is_empty() || below.starts_with('/') => {
            format!("{}{below}", std::env::var("HOME").unwrap_or_default())
        }
        _ => absolute(source),
    };
    Ok(Volume::Bind(format!("{source}:{rest}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts() {
        let tmpfs = parse_mount("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770,ro").unwrap();
        assert_eq!(
            tmpfs,
            json!({"TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o1770}, "Type": "tmpfs",
                   "Target": "/t", "ReadOnly": true})
        );
        let volume = parse_mount("src=v,dst=/d,volume-label=a=b,volume-opt=o=x").unwrap();
        assert_eq!(volume["VolumeOptions"]["Labels"]["a"], "b");
        assert_eq!(volume["VolumeOptions"]["DriverConfig"]["Options"]["o"], "x");
        let error = |t: &str| parse_mount(t).unwrap_err();
        assert_eq!(error("type=tmpfs"), "target is required");
        assert_eq!(error("foo"), "invalid field 'foo' must be a key=value pair");
        assert_eq!(error("foo=1,dst=/x"), "unexpected key 'foo' in 'foo=1'");
        assert_eq!(
            error("type=bind,dst=/x,tmpfs-size=1"),
            "cannot mix 'tmpfs-*' options with mount type 'bind'"
        );
        assert!(error("type=bind,src=/a,dst=/b,bind-recursive=readonly").contains("readonly"));
    }

    #[test]
    fn volumes() {
        let bind = |t: &str| match parse_volume(t).unwrap() {
            Volume::Bind(b) => b,
            Volume::Anonymous(a) => panic!("{a}"),
        };
        assert_eq!(bind("/a:/b:ro"), "/a:/b:ro");
        assert_eq!(bind("name:/b"), "name:/b");
        let here = std::env::current_dir().unwrap();
        assert_eq!(bind("./x:/b"), format!("{}/x:/b", here.display()));
        assert!(matches!(parse_volume("/a").unwrap(), Volume::Anonymous(_)));
        assert!(parse_volume("").is_err());
    }
}
