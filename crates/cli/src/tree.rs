//! Every command there is.

use futures::future::LocalBoxFuture;

use crate::command::{Arity, Command, Ctx};
use crate::container::{
    attach, copy, create, exec, inspect as container_inspect, lifecycle, list, logs, ports,
    prune as container_prune, run, start, stats, update, wait,
};
use crate::error::{CliError, CliResult};
use crate::flags::Parsed;
use crate::image::{build, list as image_list, manage, pull, transfer};
use crate::system::{check, df, events, info, inspect, prune, version};
use crate::{network, registry, volume};

const CONTAINER: Command = Command::group(
    "container",
    "Manage containers",
    &[
        attach::ATTACH,
        copy::COMMIT,
        copy::CP,
        create::CREATE,
        container_inspect::DIFF,
        exec::EXEC.plain(),
        copy::EXPORT,
        container_inspect::INSPECT,
        lifecycle::KILL,
        logs::LOGS,
        list::PS.named("ls", &["ps", "list"]),
        lifecycle::PAUSE,
        ports::PORT,
        container_prune::PRUNE,
        lifecycle::RENAME,
        lifecycle::RESTART,
        lifecycle::RM.named("rm", &["remove"]),
        run::RUN.plain(),
        start::START,
        stats::STATS,
        lifecycle::STOP,
        container_inspect::TOP,
        lifecycle::UNPAUSE,
        update::UPDATE,
        wait::WAIT,
    ],
);

const IMAGE: Command = Command::group(
    "image",
    "Manage images",
    &[
        build::BUILD.plain(),
        image_list::HISTORY,
        transfer::IMPORT,
        manage::INSPECT,
        transfer::LOAD,
        image_list::IMAGES.named("ls", &["list"]),
        manage::PRUNE,
        pull::PULL.plain(),
        pull::PUSH.plain(),
        manage::RMI.named("rm", &["remove"]),
        transfer::SAVE,
        manage::TAG,
    ],
);

const SYSTEM: Command = Command::group(
    "system",
    "Manage the engine",
    &[
        check::CHECK,
        df::DF,
        events::EVENTS,
        info::INFO.plain(),
        prune::PRUNE,
    ],
);

/// Stands in the list for help; [`crate::app`] has handed over to the daemon long before.
const DAEMON: Command = Command::new(
    "daemon",
    "[OPTIONS]",
    "Run the container engine",
    Arity::None,
    run_daemon,
)
.common();

fn run_daemon(_: Ctx, _: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async {
        Err(CliError::msg(
            "the daemon's options follow the word: bulkhead daemon [OPTIONS]",
        ))
    })
}

/// The program itself.
pub fn root() -> Command {
    Command::group(
        crate::command::PROGRAM,
        "Containers with the isolation of your choice",
        ROOT,
    )
}

const ROOT: &[Command] = &[
    run::RUN,
    exec::EXEC,
    list::PS,
    build::BUILD,
    pull::PULL,
    pull::PUSH,
    image_list::IMAGES,
    registry::LOGIN,
    registry::LOGOUT,
    registry::SEARCH,
    version::VERSION,
    info::INFO,
    DAEMON,
    CONTAINER,
    IMAGE,
    network::NETWORK,
    SYSTEM,
    volume::VOLUME,
    attach::ATTACH,
    copy::COMMIT,
    copy::CP,
    create::CREATE,
    container_inspect::DIFF,
    events::EVENTS,
    copy::EXPORT,
    image_list::HISTORY,
    transfer::IMPORT,
    inspect::INSPECT,
    lifecycle::KILL,
    transfer::LOAD,
    logs::LOGS,
    lifecycle::PAUSE,
    ports::PORT,
    lifecycle::RENAME,
    lifecycle::RESTART,
    lifecycle::RM,
    manage::RMI,
    transfer::SAVE,
    start::START,
    stats::STATS,
    lifecycle::STOP,
    manage::TAG,
    container_inspect::TOP,
    lifecycle::UNPAUSE,
    update::UPDATE,
    wait::WAIT,
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn check(command: &Command, path: &str) {
        let mut words = HashSet::new();
        for sub in command.subs {
            for word in [sub.name].iter().chain(sub.aliases) {
                assert!(words.insert(*word), "{path} {word} twice");
            }
            check(sub, &format!("{path} {}", sub.name));
        }
        let (mut longs, mut shorts) = (HashSet::new(), HashSet::new());
        for flag in command.flags.iter().flat_map(|set| set.iter()) {
            assert!(longs.insert(flag.long), "{path} --{} twice", flag.long);
            if let Some(short) = flag.short {
                assert!(shorts.insert(short), "{path} -{short} twice");
            }
        }
        for flag in command.flags.iter().flat_map(|set| set.iter()) {
            if let Some(target) = flag.alias_of {
                assert!(longs.contains(target), "{path} --{} is no alias", flag.long);
            }
        }
    }

    #[test]
    fn names_and_flags_are_unambiguous() {
        check(&root(), "bulkhead");
    }
}
