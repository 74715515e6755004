//! Small files that the host gives to a container, and gives again when they have changed.

use std::os::unix::fs::PermissionsExt;

use bulkhead_agent_protocol::{FileHeader, MAX_FILE_BYTES, MAX_FILES};
use bulkhead_isolation::{ErrorKind, InjectedFile, IsolationError, Result};

/// The injected files with their bytes.
pub async fn read_files(files: &[InjectedFile]) -> Result<(Vec<FileHeader>, Vec<Vec<u8>>)> {
    if files.len() > MAX_FILES {
        return Err(IsolationError::new(
            ErrorKind::InvalidArgument,
            format!("a VM takes at most {MAX_FILES} files"),
        ));
    }
    let mut headers = Vec::with_capacity(files.len());
    let mut contents = Vec::with_capacity(files.len());
    for file in files {
        let failed =
            |error| IsolationError::other(format!("cannot read {}", file.source.display()), error);
        let metadata = tokio::fs::metadata(&file.source).await.map_err(failed)?;
        if metadata.len() > MAX_FILE_BYTES {
            return Err(IsolationError::new(
                ErrorKind::InvalidArgument,
                format!(
                    "{} is longer than the {} MiB that can be given to a VM",
                    file.source.display(),
                    MAX_FILE_BYTES >> 20
                ),
            ));
        }
        let bytes = tokio::fs::read(&file.source).await.map_err(failed)?;
        headers.push(FileHeader {
            destination: file.destination.clone(),
            mode: metadata.permissions().mode() & 0o7777,
            length: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        });
        contents.push(bytes);
    }
    Ok((headers, contents))
}

/// The files that a container has, as it was given them last.
#[derive(Debug)]
pub struct GivenFiles {
    files: Vec<InjectedFile>,
    contents: Vec<Vec<u8>>,
}

impl GivenFiles {
    /// These, with these bytes.
    pub fn new(files: Vec<InjectedFile>, contents: Vec<Vec<u8>>) -> Self {
        Self { files, contents }
    }

    /// Those whose bytes on the host are others now; [`GivenFiles::given`] is to be told when
    /// the container has them.
    ///
    /// # Errors
    /// As [`read_files`].
    pub async fn changed(&self) -> Result<Changed> {
        let (headers, contents) = read_files(&self.files).await?;
        let mut changed = Changed::default();
        for (index, (header, bytes)) in headers.into_iter().zip(contents).enumerate() {
            if self.contents.get(index) != Some(&bytes) {
                changed.indices.push(index);
                changed.headers.push(header);
                changed.contents.push(bytes);
            }
        }
        Ok(changed)
    }

    /// The container has these now.
    pub fn given(&mut self, changed: Changed) {
        for (index, bytes) in changed.indices.into_iter().zip(changed.contents) {
            if let Some(slot) = self.contents.get_mut(index) {
                *slot = bytes;
            }
        }
    }
}

/// Files to be given again.
#[derive(Debug, Default)]
pub struct Changed {
    indices: Vec<usize>,
    /// What they are.
    pub headers: Vec<FileHeader>,
    /// Their bytes.
    pub contents: Vec<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_has_changed_is_given_again() {
        let directory = tempfile::tempdir().unwrap();
        let files: Vec<InjectedFile> = ["hosts", "hostname"]
            .map(|name| InjectedFile {
                source: directory.path().join(name),
                destination: format!("/etc/{name}").into(),
            })
            .into();
        for file in &files {
            std::fs::write(&file.source, "before").unwrap();
        }
        let (_, contents) = read_files(&files).await.unwrap();
        let mut given = GivenFiles::new(files.clone(), contents);
        assert!(given.changed().await.unwrap().headers.is_empty());
        std::fs::write(&files[1].source, "after").unwrap();
        let changed = given.changed().await.unwrap();
        assert_eq!(changed.headers[0].destination, files[1].destination);
        assert_eq!(changed.contents, [b"after"]);
        given.given(changed);
        assert!(given.changed().await.unwrap().headers.is_empty());
    }
}
