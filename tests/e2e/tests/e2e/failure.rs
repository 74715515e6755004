//! What a container is made of breaks: it ends with an error, never hangs, and leaves
//! nothing behind.

use bulkhead_e2e::{BUSYBOX, Cell, case, host};
use rustix::process::{Pid, Signal, kill_process};

fn kill(pid: u32) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .expect("a PID");
    kill_process(pid, Signal::KILL).expect("kill");
}

/// A container whose client, logs and wait are all watching.
fn ends(cell: &Cell, line: &str, breaks: impl FnOnce(&str)) {
    let name = cell.name("c");
    let mut client = cell.running(&format!("--name {name} {line}")).start();
    client.expect("ready");
    let id = cell.inspect(&name)["Id"]
        .as_str()
        .expect("an ID")
        .to_owned();
    let waiting = cell.line(&format!("wait {id}")).start();
    let logs = cell.line(&format!("logs -f {id}")).start();
    breaks(&id);
    let code = client.finish().code;
    assert_ne!(code, 0, "the client says that it did not end well");
    waiting.finish();
    logs.finish();
    cell.until_state(&id, "exited");
    let state = cell.inspect(&id)["State"].clone();
    let broken = state["ExitCode"] == 137
        || state["Error"]
            .as_str()
            .is_some_and(|error| !error.is_empty());
    assert!(broken, "{state}");
    // It can be started again: nothing of the first life is in the way.
    cell.cli(&format!("start {id}")).ok();
    cell.until_state(&id, "running");
    cell.cli(&format!("rm -f {id}")).ok();
    cell.nothing_left_of(&id);
}

const READY: &str = "busybox sh -c 'echo ready; exec sleep 600'";

case!(hyperv the_worker_is_killed, |cell| {
    ends(cell, READY, |id| kill(host::workers(id)[0].pid));
});

case!(hyperv the_machine_is_killed, |cell| {
    ends(cell, READY, |id| {
        let worker = host::workers(id)[0].pid;
        let family = host::family(worker);
        let machine = family.iter().find(|one| one.comm.starts_with("qemu"));
        // An engine without a process of its own has died with the case before.
        kill(machine.map_or(worker, |machine| machine.pid));
    });
});

// The agent is PID 1 of its kernel: no signal from inside reaches it, and its end, whatever
// the cause, is this panic.
case!(hyperv the_guests_kernel_panics, |cell| {
    let line = format!("--privileged -i {BUSYBOX} sh -c 'echo ready; sleep 2; echo c >/proc/sysrq-trigger; sleep 600'");
    let name = cell.name("c");
    let mut client = cell.running(&format!("--name {name} {line}")).start();
    client.expect("ready");
    let id = cell.inspect(&name)["Id"].as_str().expect("an ID").to_owned();
    assert_ne!(client.finish().code, 0);
    cell.until_state(&id, "exited");
    assert!(host::workers(&id).is_empty());
    cell.cli(&format!("rm {id}")).ok();
    cell.nothing_left_of(&id);
});

case!(ours the_supervisor_is_killed, |cell| {
    ends(cell, READY, |id| {
        let supervisors: Vec<_> = host::processes()
            .into_iter()
            .filter(|one| one.command.contains("containerd-shim-bulkhead-v2") && one.command.contains(id))
            .collect();
        assert!(!supervisors.is_empty(), "a supervisor");
        for supervisor in supervisors {
            kill(supervisor.pid);
        }
    });
});

case!(process the_payload_is_killed_from_outside, |cell| {
    ends(cell, READY, |id| {
        let sleep = host::members(id).into_iter().find(|one| one.comm == "sleep");
        kill(sleep.expect("the payload").pid);
    });
});
