//! Which volumes and directories of the host a container asks for: `-v` in all its forms,
//! `--mount`, the image's `VOLUME`, and `--volumes-from`.
//!
//! Only what is written is looked at here; whether a volume or a directory is there is known
//! elsewhere. What it amounts to is a list of [`MountRequest`], one per path in the container.

use std::collections::HashMap;

use bollard_stubs::models::{ContainerConfig, HostConfig, Mount as ApiMount, MountType};

use crate::Invalid;
use crate::mounts::{clean_destination, user_tmpfs_destinations};

/// What dockerd says of a named volume that no option was given for.
const VOLUME_MODE: &str = "z";

/// A mount that a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// Where in the container: absolute, without `.` and `..`.
    pub destination: String,
    /// What.
    pub source: MountSource,
    /// Whether the container may not write to it.
    pub read_only: bool,
    /// The options behind the second colon of `-v`, as written.
    pub mode: String,
    /// What is mounted below the source comes along.
    pub recursive: bool,
    /// Read-only holds for what is mounted below the source too.
    pub read_only_recursive: bool,
    /// Where it was asked for.
    pub origin: MountOrigin,
}

/// Where a mount was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountOrigin {
    /// `-v`.
    Bind,
    /// `--mount`.
    Mount,
    /// `-v /path`, or the image's `VOLUME`.
    Volumes,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A file or directory of the host.
    Host {
        /// Absolute.
        path: String,
        /// Made when it is missing, instead of being an error.
        create: bool,
        /// How mounts travel: one of `private`, `rprivate`, `slave`, `rslave`, `shared`,
        /// `rshared`. `None` where nothing was said.
        propagation: Option<String>,
    },
    /// A volume.
    Volume {
        /// `None` for one of its own that nobody named.
        name: Option<String>,
        /// Its driver; empty for the default.
        driver: String,
        /// Options of the driver, for a volume that is to be made.
        options: HashMap<String, String>,
        /// Its labels, for a volume that is to be made.
        labels: HashMap<String, String>,
        /// Whether what the image has at the destination goes into it when it is empty.
        copy: bool,
        /// The directory in it that is mounted, relative.
        subpath: Option<String>,
    },
    /// The files of an image, which nobody writes to.
    Image {
        /// Which.
        reference: String,
        /// The directory or file in it that is mounted, relative.
        subpath: Option<String>,
    },
}

/// A `--volumes-from`: the container, and whether its mounts become read-only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumesFrom {
    /// Its ID or name.
    pub container: String,
    /// `:ro`.
    pub read_only: bool,
}

/// Every mount that is asked for, `-v` first, then `--mount`, then the paths without a source
/// that neither of them covers.
///
/// # Errors
/// What makes no sense, in Docker's words.
pub fn requested_mounts(
    config: &ContainerConfig,
    host_config: &HostConfig,
) -> Result<Vec<MountRequest>, Invalid> {
    let tmpfs = user_tmpfs_destinations(host_config)?;
    let mut out: Vec<MountRequest> = Vec::new();
    let driver = host_config.volume_driver.clone().unwrap_or_default();
    let mut add = |request: MountRequest| {
        let taken = out
            .iter()
            .any(|other| other.destination == request.destination)
            || tmpfs.contains(&request.destination);
        if taken {
            return Err(Invalid::DuplicateMount(request.destination));
        }
        out.push(request);
        Ok(())
    };
    for raw in host_config.binds.iter().flatten() {
        add(parse_bind(raw, &driver)?)?;
    }
    for mount in host_config.mounts.iter().flatten() {
        if let Some(request) = parse_mount(mount)? {
            add(request)?;
        }
    }
    for destination in config.volumes.iter().flatten() {
        let request = own_volume(destination, &driver)?;
        // The paths of the image's volumes are defaults: anything else there wins.
        let _ = add(request);
    }
    Ok(out)
}

/// Refuses mounts whose own mounts would have to be seen by the host from within a VM.
pub(crate) fn refuse_to_share(
    config: &ContainerConfig,
    host_config: &HostConfig,
) -> Result<(), Invalid> {
    for request in requested_mounts(config, host_config)? {
        if let MountSource::Host { propagation, .. } = request.source
            && let Some(propagation) = propagation
            && matches!(propagation.as_str(), "shared" | "rshared")
        {
            return Err(Invalid::PropagationToHost(propagation));
        }
    }
    Ok(())
}

/// Reads the `--volumes-from`.
///
/// # Errors
/// A mode that does not exist.
pub fn volumes_from(host_config: &HostConfig) -> Result<Vec<VolumesFrom>, Invalid> {
    host_config
        .volumes_from
        .iter()
        .flatten()
        .map(|text| {
            let (container, mode) = text.split_once(':').unwrap_or((text, ""));
            if container.is_empty() {
                return Err(Invalid::VolumesFrom(format!(
                    "malformed volumes-from specification: {text}"
                )));
            }
            match mode {
                "" | "rw" | "z" | "Z" => Ok(false),
                "ro" => Ok(true),
                _ => Err(Invalid::VolumesFrom(format!("invalid mode: {mode}"))),
            }
            .map(|read_only| VolumesFrom {
                container: container.to_owned(),
                read_only,
            })
        })
        .collect()
}

/// What the options of `-v` say.
#[derive(Debug, Default)]
struct Mode<'a> {
    read_only: bool,
    propagation: Option<&'a str>,
    no_copy: bool,
}

impl<'a> Mode<'a> {
    /// `None` for options that do not exist or contradict each other.
    fn parse(text: &'a str) -> Option<Self> {
        let mut mode = Self::default();
        let (mut access, mut label, mut consistency) = (0, 0, 0);
        for option in text.split(',').filter(|_| !text.is_empty()) {
            match option {
                "rw" | "ro" => {
                    access += 1;
                    mode.read_only = option == "ro";
                }
                "z" | "Z" => label += 1,
                "nocopy" if !mode.no_copy => mode.no_copy = true,
                "consistent" | "cached" | "delegated" => consistency += 1,
                "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared"
                    if mode.propagation.is_none() =>
                {
                    mode.propagation = Some(option);
                }
                _ => return None,
            }
        }
        (access <= 1 && label <= 1 && consistency <= 1).then_some(mode)
    }
}

/// Reads a `-v` (an entry of `HostConfig.Binds`).
fn parse_bind(raw: &str, driver: &str) -> Result<MountRequest, Invalid> {
    let refused = |reason: &str| Invalid::VolumeSpecification {
        raw: raw.to_owned(),
        reason: if reason.is_empty() {
            String::new()
        } else {
            format!(": {reason}")
        },
    };
    let parts: Vec<&str> = raw.split(':').collect();
    if parts.len() > 3 || parts[0].is_empty() {
        return Err(refused(""));
    }
    let (source, destination, options) = match parts[..] {
        [destination] => (None, destination, ""),
        // A path and a mode, without a source, is nothing.
        [_, second] if Mode::parse(second).is_some() => return Err(refused("")),
        [source, destination] => (Some(source), destination, ""),
        [source, destination, options] => (Some(source), destination, options),
        _ => return Err(refused("")),
    };
    let mode = Mode::parse(options).ok_or_else(|| Invalid::MountMode(options.to_owned()))?;
    let on_host = source.filter(|source| source.starts_with('/'));
    let kind = if on_host.is_some() { "bind" } else { "volume" };
    let destination =
        clean_destination(kind, destination).map_err(|error| refused(&error.to_string()))?;
    let not_of_its_kind = match on_host {
        Some(_) if mode.no_copy => Some("VolumeOptions"),
        None if mode.propagation.is_some() => Some("BindOptions"),
        _ => None,
    };
    if let Some(field) = not_of_its_kind {
        let error = Invalid::Mount {
            kind: kind.to_owned(),
            reason: format!("field {field} must not be specified"),
        };
        return Err(refused(&error.to_string()));
    }
    let source = match on_host {
        Some(path) => MountSource::Host {
            path: clean_path(path),
            create: true,
            propagation: propagation(mode.propagation.unwrap_or_default())?,
        },
        None => MountSource::Volume {
            name: source.map(str::to_owned),
            driver: driver.to_owned(),
            options: HashMap::new(),
            labels: HashMap::new(),
            copy: !mode.no_copy,
            subpath: None,
        },
    };
    let shown = match &source {
        MountSource::Volume { name: Some(_), .. } if options.is_empty() => VOLUME_MODE,
        _ => options,
    };
    Ok(MountRequest {
        destination,
        source,
        read_only: mode.read_only,
        mode: shown.to_owned(),
        recursive: true,
        read_only_recursive: true,
        origin: MountOrigin::Bind,
    })
}

/// A path of `Config.Volumes`, which images may have from the root without saying so.
fn own_volume(destination: &str, driver: &str) -> Result<MountRequest, Invalid> {
    Ok(MountRequest {
        destination: clean_destination("volume", &format!("/{destination}"))?,
        source: MountSource::Volume {
            name: None,
            driver: driver.to_owned(),
            options: HashMap::new(),
            labels: HashMap::new(),
            copy: true,
            subpath: None,
        },
        read_only: false,
        mode: String::new(),
        recursive: true,
        read_only_recursive: true,
        origin: MountOrigin::Volumes,
    })
}

/// Reads a `--mount`; `None` for one of type tmpfs, which needs nothing from outside.
fn parse_mount(mount: &ApiMount) -> Result<Option<MountRequest>, Invalid> {
    let kind = mount
        .typ
        .as_ref()
        .map_or(String::new(), ToString::to_string);
    let refused = |reason: String| Invalid::Mount {
        kind: kind.clone(),
        reason,
    };
    let target = mount.target.as_deref().unwrap_or_default();
    if target.is_empty() {
        return Err(refused("field Target must not be empty".to_owned()));
    }
    let destination = clean_destination(&kind, target)?;
    let unused = |field: &str| refused(format!("field {field} must not be specified"));
    if mount.typ != Some(MountType::BIND) && mount.bind_options.is_some() {
        return Err(unused("BindOptions"));
    }
    if mount.typ != Some(MountType::VOLUME) && mount.volume_options.is_some() {
        return Err(unused("VolumeOptions"));
    }
    if mount.typ != Some(MountType::TMPFS) && mount.tmpfs_options.is_some() {
        return Err(unused("TmpfsOptions"));
    }
    if mount.typ != Some(MountType::IMAGE) && mount.image_options.is_some() {
        return Err(unused("ImageOptions"));
    }
    let text = mount.source.as_deref().unwrap_or_default();
    let mut read_only = mount.read_only == Some(true);
    let mut recursive = true;
    let mut read_only_recursive = true;
    let source = match mount.typ {
        Some(MountType::TMPFS) if text.is_empty() => return Ok(None),
        Some(MountType::TMPFS) => return Err(unused("Source")),
        Some(MountType::BIND) => {
            if text.is_empty() {
                return Err(refused("field Source must not be empty".to_owned()));
            }
            if !text.starts_with('/') {
                return Err(refused(format!(
                    "invalid mount path: '{text}' mount path must be absolute"
                )));
            }
            let options = mount.bind_options.clone().unwrap_or_default();
            recursive = options.non_recursive != Some(true);
            read_only_recursive = options.read_only_non_recursive != Some(true);
            let wanted = options.propagation.map_or(String::new(), |p| p.to_string());
            MountSource::Host {
                path: clean_path(text),
                create: options.create_mountpoint == Some(true),
                propagation: propagation(&wanted)?,
            }
        }
        Some(MountType::VOLUME) => {
            let options = mount.volume_options.clone().unwrap_or_default();
            if text.is_empty() && read_only {
                return Err(refused(
                    "must not set ReadOnly mode when using anonymous volumes".to_owned(),
                ));
            }
            let subpath = options.subpath.filter(|path| !path.is_empty());
            if let Some(subpath) = &subpath {
                if text.is_empty() {
                    return Err(refused(
                        "must not set Subpath when using anonymous volumes".to_owned(),
                    ));
                }
                if !is_local(subpath) {
                    return Err(refused(
                        "subpath must be a relative path within the volume".to_owned(),
                    ));
                }
            }
            let config = options.driver_config.unwrap_or_default();
            MountSource::Volume {
                name: Some(text.to_owned()).filter(|name| !name.is_empty()),
                driver: config.name.unwrap_or_default(),
                options: config.options.unwrap_or_default(),
                labels: options.labels.unwrap_or_default(),
                copy: options.no_copy != Some(true) && subpath.is_none(),
                subpath,
            }
        }
        Some(MountType::IMAGE) => {
            if text.is_empty() {
                return Err(refused("field Source must not be empty".to_owned()));
            }
            let options = mount.image_options.clone().unwrap_or_default();
            let subpath = options.subpath.filter(|path| !path.is_empty());
            if subpath.as_deref().is_some_and(|path| !is_local(path)) {
                return Err(refused(
                    "subpath must be a relative path within the image".to_owned(),
                ));
            }
            read_only = true;
            MountSource::Image {
                reference: text.to_owned(),
                subpath,
            }
        }
        _ => return Err(refused("mount type unknown".to_owned())),
    };
    Ok(Some(MountRequest {
        destination,
        source,
        read_only,
        mode: match mount.typ {
            Some(MountType::VOLUME) => VOLUME_MODE.to_owned(),
            _ => String::new(),
        },
        recursive,
        read_only_recursive,
        origin: MountOrigin::Mount,
    }))
}

fn propagation(wanted: &str) -> Result<Option<String>, Invalid> {
    match wanted {
        "" => Ok(None),
        "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" => {
            Ok(Some(wanted.to_owned()))
        }
        _ => Err(Invalid::Propagation(wanted.to_owned())),
    }
}

/// Whether a relative path stays where it begins, whatever is there.
fn is_local(path: &str) -> bool {
    let mut depth = 0_usize;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return false,
            },
            _ => depth += 1,
        }
    }
    !path.starts_with('/')
}

/// As Go's `filepath.Clean`: the name is not looked up, so `..` takes off what is written.
pub(crate) fn clean_path(path: &str) -> String {
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

#[cfg(test)]
mod tests {
    use bollard_stubs::models::{
        MountBindOptions, MountBindOptionsPropagationEnum, MountVolumeOptions,
    };

    use super::*;

    fn binds(list: &[&str]) -> Result<Vec<MountRequest>, Invalid> {
        let host = HostConfig {
            binds: Some(list.iter().map(|bind| (*bind).to_owned()).collect()),
            ..HostConfig::default()
        };
        requested_mounts(&ContainerConfig::default(), &host)
    }

    fn mount(typ: MountType, source: &str, target: &str) -> ApiMount {
        ApiMount {
            typ: Some(typ),
            source: Some(source.to_owned()),
            target: Some(target.to_owned()),
            ..ApiMount::default()
        }
    }

    fn mounts(list: Vec<ApiMount>) -> Result<Vec<MountRequest>, Invalid> {
        let host = HostConfig {
            mounts: Some(list),
            ..HostConfig::default()
        };
        requested_mounts(&ContainerConfig::default(), &host)
    }

    #[test]
    fn every_form_of_a_bind() {
        let found = binds(&[
            "/src/./a/:/dst//x/",
            "/src:/ro:ro,z,rslave",
            "data:/data:nocopy",
            "/own",
        ])
        .unwrap();
        let MountSource::Host { path, create, .. } = &found[0].source else {
            panic!("{:?}", found[0]);
        };
        assert_eq!((path.as_str(), *create), ("/src/a", true));
        assert_eq!(found[0].destination, "/dst/x");
        assert!(found[1].read_only && found[1].mode == "ro,z,rslave");
        assert!(matches!(
            &found[1].source,
            MountSource::Host { propagation: Some(propagation), .. } if propagation == "rslave"
        ));
        assert!(matches!(
            &found[2].source,
            MountSource::Volume { name: Some(name), copy: false, .. } if name == "data"
        ));
        assert!(matches!(
            &found[3].source,
            MountSource::Volume {
                name: None,
                copy: true,
                ..
            }
        ));
    }

    #[test]
    fn binds_that_make_no_sense() {
        for (bind, words) in [
            ("", "invalid volume specification: ''"),
            (":/a", "invalid volume specification: ':/a'"),
            ("/a:/b:ro:x", "invalid volume specification"),
            ("/a:ro", "invalid volume specification: '/a:ro'"),
            ("/a:/b:zz", "invalid mode: zz"),
            ("/a:/b:ro,rw", "invalid mode: ro,rw"),
            ("/a:b", "mount path must be absolute"),
            ("/a:/", "destination can't be '/'"),
            ("v:/b:rslave", "field BindOptions must not be specified"),
            ("/a:/b:rshared,slave", "invalid mode: rshared,slave"),
        ] {
            let error = binds(&[bind]).unwrap_err();
            assert!(error.to_string().contains(words), "{bind}: {error}");
            assert_eq!(error.kind(), crate::InvalidKind::Parameter, "{bind}");
        }
        let twice = binds(&["/a:/x", "v:/x/"]).unwrap_err();
        assert_eq!(twice.to_string(), "Duplicate mount point: /x");
    }

    #[test]
    fn every_form_of_a_mount() {
        let mut bind = mount(MountType::BIND, "/src", "/a");
        bind.read_only = Some(true);
        bind.bind_options = Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::SLAVE),
            non_recursive: Some(true),
            ..MountBindOptions::default()
        });
        let mut volume = mount(MountType::VOLUME, "data", "/b");
        volume.volume_options = Some(MountVolumeOptions {
            subpath: Some("sub/dir".to_owned()),
            labels: Some(HashMap::from([("k".to_owned(), "v".to_owned())])),
            ..MountVolumeOptions::default()
        });
        let found = mounts(vec![
            bind,
            volume,
            mount(MountType::VOLUME, "", "/c"),
            mount(MountType::TMPFS, "", "/d"),
        ])
        .unwrap();
        assert_eq!(found.len(), 3);
        assert!(found[0].read_only && !found[0].recursive);
        assert!(matches!(
            &found[1].source,
            MountSource::Volume { subpath: Some(path), copy: false, .. } if path == "sub/dir"
        ));
        assert!(matches!(
            &found[2].source,
            MountSource::Volume { name: None, .. }
        ));
    }

    #[test]
    fn mounts_that_make_no_sense() {
        let with = |mut mount: ApiMount, change: fn(&mut ApiMount)| {
            change(&mut mount);
            mount
        };
        let cases = [
            (
                mount(MountType::BIND, "", "/a"),
                "field Source must not be empty",
            ),
            (
                mount(MountType::BIND, "rel", "/a"),
                "mount path must be absolute",
            ),
            (
                mount(MountType::BIND, "/a", ""),
                "field Target must not be empty",
            ),
            (
                mount(MountType::BIND, "/a", "/"),
                "destination can't be '/'",
            ),
            (mount(MountType::NPIPE, "/a", "/b"), "mount type unknown"),
            (
                mount(MountType::TMPFS, "/a", "/b"),
                "field Source must not be specified",
            ),
            (
                with(mount(MountType::VOLUME, "", "/b"), |mount| {
                    mount.read_only = Some(true);
                }),
                "must not set ReadOnly mode when using anonymous volumes",
            ),
            (
                with(mount(MountType::VOLUME, "v", "/b"), |mount| {
                    mount.bind_options = Some(MountBindOptions::default());
                }),
                "field BindOptions must not be specified",
            ),
            (
                with(mount(MountType::VOLUME, "v", "/b"), |mount| {
                    mount.volume_options = Some(MountVolumeOptions {
                        subpath: Some("../x".to_owned()),
                        ..MountVolumeOptions::default()
                    });
                }),
                "subpath must be a relative path within the volume",
            ),
        ];
        for (mount, words) in cases {
            let error = mounts(vec![mount.clone()]).unwrap_err();
            assert!(error.to_string().contains(words), "{mount:?}: {error}");
        }
    }

    #[test]
    fn the_images_volumes_give_way() {
        let config = ContainerConfig {
            volumes: Some(vec![
                "/data".to_owned(),
                "/tmpfs".to_owned(),
                "/own".to_owned(),
            ]),
            ..ContainerConfig::default()
        };
        let host = HostConfig {
            binds: Some(vec!["named:/data".to_owned()]),
            tmpfs: Some(HashMap::from([("/tmpfs".to_owned(), String::new())])),
            ..HostConfig::default()
        };
        let found = requested_mounts(&config, &host).unwrap();
        let paths: Vec<_> = found.iter().map(|one| one.destination.as_str()).collect();
        assert_eq!(paths, ["/data", "/own"]);
    }

    #[test]
    fn volumes_of_others() {
        let host = HostConfig {
            volumes_from: Some(vec!["a".to_owned(), "b:ro".to_owned()]),
            ..HostConfig::default()
        };
        let found = volumes_from(&host).unwrap();
        assert!(!found[0].read_only && found[1].read_only);
        let host = HostConfig {
            volumes_from: Some(vec!["a:x".to_owned()]),
            ..HostConfig::default()
        };
        assert_eq!(
            volumes_from(&host).unwrap_err().to_string(),
            "invalid mode: x"
        );
    }
}
