//! Images made by the kit: a busybox from the host's own, and archives in the forms that
//! `load` takes. Every byte is made here, so a case knows what has to come out.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};
use sha2::Digest;

static PROBE: OnceLock<&'static str> = OnceLock::new();

/// Where the probe program is; known to test programs only.
pub(crate) fn set_probe(path: &'static str) {
    PROBE.get_or_init(|| path);
}

/// The time of all files that do not say another: 2001-09-09.
pub const TIME: u64 = 1_000_000_000;

/// A tar archive in the making.
pub struct Tar {
    builder: tar::Builder<Vec<u8>>,
    directories: BTreeSet<PathBuf>,
}

impl Default for Tar {
    fn default() -> Self {
        Self::new()
    }
}

/// Owner, mode, time and extended attributes of an entry.
#[derive(Debug, Clone)]
pub struct Meta {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Meta {
    /// root's, at [`TIME`].
    #[must_use]
    pub fn mode(mode: u32) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            mtime: TIME,
            xattrs: BTreeMap::new(),
        }
    }

    /// Another owner.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// One more extended attribute.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs.insert(name.to_owned(), value.to_owned());
        self
    }
}

impl Tar {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self {
            builder: tar::Builder::new(Vec::new()),
            directories: BTreeSet::new(),
        }
    }

    fn header(&mut self, kind: tar::EntryType, meta: &Meta, size: usize) -> tar::Header {
        if !meta.xattrs.is_empty() {
            let names: Vec<String> = meta
                .xattrs
                .keys()
                .map(|name| format!("SCHILY.xattr.{name}"))
                .collect();
            let pairs = names.iter().map(String::as_str);
            let pairs = pairs.zip(meta.xattrs.values().map(Vec::as_slice));
            self.builder
                .append_pax_extensions(pairs)
                .expect("into memory");
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(meta.mode);
        header.set_uid(meta.uid);
        header.set_gid(meta.gid);
        header.set_mtime(meta.mtime);
        header.set_size(u64::try_from(size).expect("fits"));
        header
    }

    /// A directory.
    pub fn directory(&mut self, path: &str, meta: &Meta) -> &mut Self {
        let mut header = self.header(tar::EntryType::Directory, meta, 0);
        self.directories.insert(path.into());
        let path = format!("{path}/");
        let done = self
            .builder
            .append_data(&mut header, path, std::io::empty());
        done.expect("into memory");
        self
    }

    /// A regular file.
    pub fn file(&mut self, path: &str, meta: &Meta, content: &[u8]) -> &mut Self {
        let mut header = self.header(tar::EntryType::Regular, meta, content.len());
        let done = self.builder.append_data(&mut header, path, content);
        done.expect("into memory");
        self
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        let mut header = self.header(tar::EntryType::Symlink, &Meta::mode(0o777), 0);
        let done = self.builder.append_link(&mut header, path, target);
        done.expect("into memory");
        self
    }

    /// Another name for a file.
    pub fn hard_link(&mut self, path: &str, target: &str, meta: &Meta) -> &mut Self {
        let mut header = self.header(tar::EntryType::Link, meta, 0);
        let done = self.builder.append_link(&mut header, path, target);
        done.expect("into memory");
        self
    }

    /// A device node (`kind` Char or Block) or a FIFO.
    pub fn node(
        &mut self,
        path: &str,
        kind: tar::EntryType,
        meta: &Meta,
        device: (u32, u32),
    ) -> &mut Self {
        let mut header = self.header(kind, meta, 0);
        header.set_device_major(device.0).expect("gnu header");
        header.set_device_minor(device.1).expect("gnu header");
        let done = self
            .builder
            .append_data(&mut header, path, std::io::empty());
        done.expect("into memory");
        self
    }

    /// What a Debian package installs, but for its documentation.
    pub fn package(&mut self, package: &Path) -> &mut Self {
        let files = crate::programs::files(package);
        let mut archive = tar::Archive::new(files.as_slice());
        for entry in archive.entries().expect("a package's archive") {
            let mut entry = entry.expect("a package's entry");
            let path = entry.path().expect("a path").into_owned();
            let relative = path.strip_prefix(".").unwrap_or(&path);
            let left_out = ["usr/share/doc", "usr/share/man", "usr/share/lintian"];
            let root = relative.as_os_str().is_empty();
            if root || left_out.iter().any(|part| relative.starts_with(part)) {
                continue;
            }
            // The directories of other packages: Docker takes no name twice.
            if entry.header().entry_type().is_dir() && !self.directories.insert(relative.to_owned())
            {
                continue;
            }
            let mut header = entry.header().clone();
            let done = match entry.link_name().expect("a link's target") {
                Some(target) => self.builder.append_link(&mut header, relative, target),
                None => self.builder.append_data(&mut header, relative, &mut entry),
            };
            done.expect("into memory");
        }
        self
    }

    /// An entry whose header is exactly this: no library would write a hostile one.
    pub fn raw(
        &mut self,
        name: &[u8],
        link: &[u8],
        kind: tar::EntryType,
        size: u64,
        content: &[u8],
    ) -> &mut Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(TIME);
        header.set_size(size);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.builder.append(&header, content).expect("into memory");
        self
    }

    /// The archive.
    #[must_use]
    pub fn done(self) -> Vec<u8> {
        self.builder.into_inner().expect("into memory")
    }
}

/// A root file system around the host's `/bin/busybox` and the probe, as a tar.
///
/// # Panics
/// When the host has no static busybox.
pub fn busybox_tar() -> &'static [u8] {
    static TAR: OnceLock<Vec<u8>> = OnceLock::new();
    TAR.get_or_init(|| {
        let path = Path::new("/bin/busybox");
        let busybox = std::fs::read(path).expect("/bin/busybox, from package busybox-static");
        let list = Command::new(path)
            .arg("--list")
            .output()
            .expect("busybox --list");
        let plain = Meta::mode(0o644);
        let directory = Meta::mode(0o755);
        let program = Meta::mode(0o755);
        let mut tar = Tar::new();
        for path in ["bin", "etc", "home", "root", "usr", "usr/bin", "var"] {
            tar.directory(path, &directory);
        }
        tar.directory("tmp", &Meta::mode(0o1777));
        tar.directory("home/user", &Meta::mode(0o755).owner(1000, 1000));
        tar.file("bin/busybox", &program, &busybox);
        for applet in String::from_utf8_lossy(&list.stdout).lines() {
            if applet != "busybox" {
                tar.symlink(&format!("bin/{applet}"), "busybox");
            }
        }
        if let Some(probe) = PROBE.get() {
            let bytes = std::fs::read(probe).expect("the probe program");
            tar.file("bin/probe", &program, &bytes);
        }
        tar.file(
            "etc/passwd",
            &plain,
            b"root:x:0:0:root:/root:/bin/sh\n\
              user:x:1000:1000:user:/home/user:/bin/sh\n\
              nobody:x:65534:65534:nobody:/home:/bin/false\n",
        );
        tar.file(
            "etc/group",
            &plain,
            b"root:x:0:\nuser:x:1000:\nextra:x:1234:user\nnogroup:x:65534:\n",
        );
        tar.file("etc/not-executable", &plain, b"#!/bin/sh\n");
        tar.done()
    })
}

/// Lower-case hexadecimal SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    let digest = sha2::Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How a layer is compressed in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Compresses.
    #[must_use]
    pub fn apply(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => bytes.to_owned(),
            Self::Gzip => {
                let mut out =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(bytes).expect("into memory");
                out.finish().expect("into memory")
            }
            Self::Zstd => zstd::encode_all(bytes, 1).expect("into memory"),
        }
    }

    /// What a manifest calls a layer in this form.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

fn config(layers: &[Vec<u8>], command: &[&str]) -> Value {
    let ids: Vec<String> = layers
        .iter()
        .map(|layer| format!("sha256:{}", sha256(layer)))
        .collect();
    json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2001-09-09T01:46:40Z",
        "config": {"Cmd": command, "Env": ["PATH=/bin", "FROM=archive"]},
        "rootfs": {"type": "layers", "diff_ids": ids},
        "history": [],
    })
}

/// What `docker save` writes.
#[must_use]
pub fn docker_archive(tag: &str, layers: &[Vec<u8>], command: &[&str]) -> Vec<u8> {
    let plain = Meta::mode(0o644);
    let config = config(layers, command).to_string();
    let config_name = format!("{}.json", sha256(config.as_bytes()));
    let mut tar = Tar::new();
    let mut names = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let directory = sha256(format!("{tag} {number}").as_bytes());
        tar.directory(&directory, &Meta::mode(0o755));
        let name = format!("{directory}/layer.tar");
        tar.file(&name, &plain, layer);
        names.push(name);
    }
    tar.file(&config_name, &plain, config.as_bytes());
    let manifest = json!([{"Config": config_name, "RepoTags": [tag], "Layers": names}]);
    tar.file("manifest.json", &plain, manifest.to_string().as_bytes());
    tar.done()
}

/// An OCI image layout as a tar.
#[must_use]
pub fn oci_archive(
    tag: &str,
    layers: &[Vec<u8>],
    compression: Compression,
    command: &[&str],
) -> Vec<u8> {
    let plain = Meta::mode(0o644);
    let mut tar = Tar::new();
    for path in ["blobs", "blobs/sha256"] {
        tar.directory(path, &Meta::mode(0o755));
    }
    let mut put = |bytes: &[u8], kind: &str| {
        let digest = sha256(bytes);
        tar.file(&format!("blobs/sha256/{digest}"), &plain, bytes);
        json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let mut descriptors = Vec::new();
    for layer in layers {
        descriptors.push(put(&compression.apply(layer), compression.media_type()));
    }
    let config = put(
        config(layers, command).to_string().as_bytes(),
        "application/vnd.oci.image.config.v1+json",
    );
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": descriptors,
    });
    let mut manifest = put(
        manifest.to_string().as_bytes(),
        "application/vnd.oci.image.manifest.v1+json",
    );
    let short = tag.rsplit(':').next().unwrap_or(tag);
    manifest["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/library/{tag}"),
        "org.opencontainers.image.ref.name": short,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    tar.file("index.json", &plain, index.to_string().as_bytes());
    tar.file("oci-layout", &plain, br#"{"imageLayoutVersion":"1.0.0"}"#);
    tar.done()
}
