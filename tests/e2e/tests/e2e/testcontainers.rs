//! testcontainers: what other people's integration tests do to an engine.

use std::path::Path;

use bulkhead_e2e::{BUSYBOX, Daemon, case, programs};

case!(docker its_users_tests_pass, |cell| {
    let Some(python) = programs::python() else {
        return;
    };
    // Nobody says an isolation there: it is the daemon's.
    let option = format!("isolation={}", cell.isolation_name());
    let options = ["--exec-opt", &option];
    let reference = bulkhead_e2e::daemon::is_reference();
    let cell = cell.on(Daemon::start(if reference { &[] } else { &options }));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/containers.py");
    let words = [
        script.display().to_string(),
        BUSYBOX.to_owned(),
        cell.label().to_owned(),
        cell.isolation_name().to_owned(),
    ];
    cell.program(&python, &words)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // Its reaper is an image of a registry.
        .env("TESTCONTAINERS_RYUK_DISABLED", "true")
        .output()
        .ok()
        .says("all as expected");
});
