//! What a container sees and keeps on disk.

use std::path::PathBuf;

use bulkhead_isolation::{InjectedFile, Rootfs};

use crate::harness::{TestBox, host};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_survives_a_restart() {
    let Some(host) = host() else { return };
    let script = "if [ -e /kept ]; then cat /kept; ls /bin/true; else echo kept > /kept; rm \
                  /bin/true; fi";
    let request = TestBox::new(host, &["sh", "-c", script]);
    assert_eq!(request.run().await.0, 0);
    let (code, out, _) = request.run().await;
    assert_eq!((code, out.as_str()), (1, "kept\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_given_with_their_mode() {
    let Some(host) = host() else { return };
    let script = "cat /etc/hosts; echo more >> /etc/hosts; stat -c %a /etc/hosts";
    let mut request = TestBox::new(host, &["sh", "-c", script]);
    let source = request.directory.path().join("hosts");
    std::fs::write(&source, "127.0.0.1 localhost\n").unwrap();
    request.request.injected_files.push(InjectedFile {
        source: source.clone(),
        destination: "/etc/hosts".into(),
    });
    let (code, out, err) = request.run().await;
    assert_eq!(out, "127.0.0.1 localhost\n644\n", "{err}");
    assert_eq!(code, 0);
    assert_eq!(
        std::fs::read_to_string(source).unwrap(),
        "127.0.0.1 localhost\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_layers_as_docker_allows() {
    let Some(host) = host() else { return };
    let mut request = TestBox::new(host, &["cat", "/second"]);
    let mut layers: Vec<PathBuf> = vec![host.layers[1].clone(); 126];
    layers.insert(0, host.layers[0].clone());
    let Rootfs::Layers { writable, .. } = &request.request.rootfs else {
        unreachable!()
    };
    request.request.rootfs = Rootfs::Layers {
        layers,
        writable: writable.clone(),
    };
    let (code, out, err) = request.run().await;
    assert_eq!(
        (code, out.as_str()),
        (0, "from the second layer\n"),
        "{err}"
    );
}
