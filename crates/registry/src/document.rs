//! Manifests and indexes: what strangers wrote about an image, with bounds.

use bulkhead_image::{Digest, Platform};
use serde::{Deserialize, Serialize};

use crate::error::{RegistryError, Result};
use crate::repository::Document;

/// Largest manifest or index, bytes: what registries take.
pub(crate) const MAX_MANIFEST: usize = 4 << 20;
/// Largest config, bytes.
pub(crate) const MAX_CONFIG: usize = 8 << 20;
/// Most layers of an image.
const MAX_LAYERS: usize = 127;
/// Most entries of an index.
const MAX_ENTRIES: usize = 10_000;

pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(crate) const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
pub(crate) const DOCKER_TAR: &str = "application/vnd.docker.image.rootfs.diff.tar";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const OCI_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// What we understand, for `Accept`.
pub(crate) const ACCEPTED: [&str; 4] = [DOCKER_MANIFEST, DOCKER_LIST, OCI_INDEX, OCI_MANIFEST];

/// A reference to a blob or document by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) size: u64,
    pub(crate) digest: Digest,
    /// Where else it is: layers that may not be passed on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) urls: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<DescribedPlatform>,
}

/// What an index says of an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DescribedPlatform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(
        default,
        rename = "os.version",
        skip_serializing_if = "String::is_empty"
    )]
    pub(crate) os_version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) variant: String,
}

/// An image's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// Manifests of one image for several platforms.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// What a document is.
#[derive(Debug, Clone)]
pub(crate) enum Parsed {
    Manifest(Box<Manifest>),
    Index(Index),
}

/// The members that tell what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: String,
}

impl Document {
    /// Its media type: the document's own word, or else the server's.
    pub(crate) fn kind(&self) -> Result<String> {
        let outline: Outline = serde_json::from_slice(&self.bytes).map_err(malformed)?;
        if outline.schema_version == 1 {
            return Err(RegistryError::Unsupported(
                "image manifests of schema version 1 are not supported: push the image again \
                 with a newer client"
                    .to_owned(),
            ));
        }
        if outline.schema_version != 2 {
            return Err(RegistryError::InvalidAnswer(format!(
                "invalid manifest: schema version {}",
                outline.schema_version
            )));
        }
        // Both are known to lie; that they agree is what a document of one meaning does.
        let own = outline.media_type;
        let known = |text: &str| ACCEPTED.contains(&text);
        if known(&own) && known(&self.media_type) && own != self.media_type {
            return Err(RegistryError::InvalidAnswer(format!(
                "manifest is of media type {own}, but was sent as {}",
                self.media_type
            )));
        }
        Ok(if own.is_empty() {
            self.media_type.clone()
        } else {
            own
        })
    }

    /// Parses it, and checks that it is an image's.
    pub(crate) fn parse(&self) -> Result<Parsed> {
        let parsed = self.parse_any()?;
        if let Parsed::Manifest(manifest) = &parsed {
            manifest.check()?;
        }
        Ok(parsed)
    }

    /// Parses it, whatever it is a manifest of.
    pub(crate) fn parse_any(&self) -> Result<Parsed> {
        match self.kind()?.as_str() {
            DOCKER_LIST | OCI_INDEX => {
                let index: Index = serde_json::from_slice(&self.bytes).map_err(malformed)?;
                if index.manifests.len() > MAX_ENTRIES {
                    return Err(RegistryError::InvalidAnswer(format!(
                        "manifest list has more than {MAX_ENTRIES} entries"
                    )));
                }
                Ok(Parsed::Index(index))
            }
            DOCKER_MANIFEST | OCI_MANIFEST => {
                let manifest: Manifest = serde_json::from_slice(&self.bytes).map_err(malformed)?;
                Ok(Parsed::Manifest(Box::new(manifest)))
            }
            other => Err(RegistryError::Unsupported(format!(
                "unsupported manifest media type {other:?}"
            ))),
        }
    }
}

/// See [`crate::check_document`].
pub(crate) fn check(bytes: &[u8]) {
    for media_type in ACCEPTED {
        let document = Document {
            bytes: bytes.to_vec(),
            digest: Digest::of(bytes),
            media_type: media_type.to_owned(),
        };
        if let Ok(Parsed::Index(index)) = document.parse() {
            let variants = [None, Some("v8".to_owned()), Some(format!("v{}", u32::MAX))];
            for variant in variants {
                // An entry or none; the choice is what is tried.
                let _ = index.choose(&Platform {
                    os: "linux".to_owned(),
                    architecture: "arm64".to_owned(),
                    variant,
                });
            }
        }
    }
}

fn malformed(error: serde_json::Error) -> RegistryError {
    RegistryError::InvalidAnswer(format!("invalid manifest: {error}"))
}

impl Manifest {
    fn check(&self) -> Result<()> {
        if self.layers.len() > MAX_LAYERS {
            return Err(RegistryError::InvalidAnswer(format!(
                "image has more than {MAX_LAYERS} layers"
            )));
        }
        if self.config.size > MAX_CONFIG as u64 {
            return Err(RegistryError::InvalidAnswer(format!(
                "image config is over {MAX_CONFIG} bytes"
            )));
        }
        if !matches!(
            self.config.media_type.as_str(),
            DOCKER_CONFIG | OCI_CONFIG | ""
        ) {
            return Err(RegistryError::Unsupported(format!(
                "invalid manifest: its config is no image's but of media type {:?}",
                self.config.media_type
            )));
        }
        for layer in &self.layers {
            layer.check_layer()?;
        }
        Ok(())
    }
}

impl Descriptor {
    fn check_layer(&self) -> Result<()> {
        match self.media_type.as_str() {
            DOCKER_GZIP | DOCKER_TAR | OCI_TAR | OCI_GZIP | OCI_ZSTD | "" => Ok(()),
            // What containerd wrote for a while.
            "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(()),
            foreign if foreign.contains(".foreign.") || foreign.contains(".nondistributable.") => {
                Err(RegistryError::Unsupported(format!(
                    "cannot pull layer {}: it is only distributed by its vendor ({foreign}), as \
                     those of Windows images are",
                    self.digest
                )))
            }
            other => Err(RegistryError::Unsupported(format!(
                "unsupported layer media type {other:?}"
            ))),
        }
    }
}

impl Index {
    /// The entry for a platform: the best of those that run on it.
    pub(crate) fn choose(&self, wanted: &Platform) -> Result<&Descriptor> {
        let ranks = self.manifests.iter().filter_map(|entry| {
            // Attestations and the like have a platform that nobody asks for.
            let rank = match &entry.platform {
                Some(platform) => platform.rank(wanted)?,
                None => 0,
            };
            Some((rank, entry))
        });
        // The first of the best.
        let best = ranks.reduce(|best, next| if next.0 > best.0 { next } else { best });
        match best {
            Some((_, entry)) => Ok(entry),
            None => Err(RegistryError::NoMatchingPlatform(name(wanted))),
        }
    }
}

/// `linux/arm64/v8`.
pub(crate) fn name(platform: &Platform) -> String {
    let variant = platform.variant.iter().map(|variant| format!("/{variant}"));
    let variant: String = variant.collect();
    format!("{}/{}{variant}", platform.os, platform.architecture)
}

impl DescribedPlatform {
    /// How well it suits; nothing if not at all. Newer variants run what older ones do.
    fn rank(&self, wanted: &Platform) -> Option<u32> {
        if self.os != wanted.os {
            return None;
        }
        let (own, own_variant) = normalized(&self.architecture, &self.variant);
        let wanted_variant = wanted.variant.as_deref().unwrap_or_default();
        let (architecture, variant) = normalized(&wanted.architecture, wanted_variant);
        if own != architecture {
            return None;
        }
        let level = |text: &str| text.trim_start_matches('v').parse::<u32>().ok();
        match (level(own_variant), level(variant)) {
            (Some(own), Some(wanted)) if own <= wanted => Some(own + 1),
            _ if own_variant == variant => Some(1),
            _ => None,
        }
    }
}

/// Architecture and variant with their defaults, as containerd reads them.
fn normalized<'a>(architecture: &'a str, variant: &'a str) -> (&'a str, &'a str) {
    match (architecture, variant) {
        ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", "v1"),
        ("x86_64" | "x86-64" | "amd64", other) => ("amd64", other),
        ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64", "v8"),
        ("aarch64" | "arm64", other) => ("arm64", other),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("i386", _) => ("386", ""),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/');
        let mut next = || parts.next().map(str::to_owned);
        Platform {
            os: next().unwrap(),
            architecture: next().unwrap(),
            variant: next(),
        }
    }

    fn entry(text: &str) -> Descriptor {
        let platform = platform(text);
        Descriptor {
            media_type: DOCKER_MANIFEST.to_owned(),
            size: 1,
            digest: Digest::of(text.as_bytes()),
            urls: Vec::new(),
            platform: Some(DescribedPlatform {
                architecture: platform.architecture,
                os: platform.os,
                os_version: String::new(),
                variant: platform.variant.unwrap_or_default(),
            }),
        }
    }

    #[test]
    fn the_best_platform_is_chosen() {
        let index = Index {
            manifests: [
                "unknown/unknown",
                "windows/amd64",
                "linux/arm/v5",
                "linux/arm/v7",
                "linux/arm64/v8",
                "linux/amd64",
                "linux/386",
            ]
            .map(entry)
            .to_vec(),
        };
        for (wanted, chosen) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64"),
            ("linux/arm64", "linux/arm64/v8"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v5"),
            ("linux/386", "linux/386"),
        ] {
            let found = index.choose(&platform(wanted)).unwrap();
            assert_eq!(found.digest, entry(chosen).digest, "{wanted}");
        }
        let error = index.choose(&platform("linux/riscv64")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no matching manifest for linux/riscv64 in the manifest list entries"
        );
    }

    fn document(media_type: &str, bytes: &str) -> Document {
        Document {
            bytes: bytes.as_bytes().to_vec(),
            digest: Digest::of(bytes.as_bytes()),
            media_type: media_type.to_owned(),
        }
    }

    #[test]
    fn hostile_documents_are_refused() {
        let digest = Digest::of(b"x");
        let config = format!(r#"{{"mediaType":"{DOCKER_CONFIG}","size":1,"digest":"{digest}"}}"#);
        let manifest = |layers: &str| {
            let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layers}]}}"#);
            document(DOCKER_MANIFEST, &text)
        };
        let layer = |media: &str, size: &str| {
            format!(r#"{{"mediaType":"{media}","size":{size},"digest":"{digest}"}}"#)
        };
        assert!(matches!(
            manifest(&layer(OCI_ZSTD, "5")).parse(),
            Ok(Parsed::Manifest(_))
        ));
        let many = vec![layer(DOCKER_GZIP, "1"); 128].join(",");
        let windows = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        for bad in [
            document(DOCKER_MANIFEST, "{"),
            document(DOCKER_MANIFEST, "[]"),
            document(DOCKER_MANIFEST, r#"{"schemaVersion":1}"#),
            document(DOCKER_MANIFEST, r#"{"schemaVersion":3}"#),
            document("text/html", r#"{"schemaVersion":2}"#),
            document(
                DOCKER_MANIFEST,
                &format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}"#),
            ),
            manifest(&layer(DOCKER_GZIP, "-1")),
            manifest(&layer(DOCKER_GZIP, "1e99")),
            manifest(&layer(windows, "1")),
            manifest(&layer("application/x-helm", "1")),
            manifest(&many),
            manifest(&layer(DOCKER_GZIP, "1").replace("sha256:", "md5:")),
        ] {
            assert!(bad.parse().is_err(), "{bad:?}");
        }
    }
}
