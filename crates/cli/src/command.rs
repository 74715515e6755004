//! What a command is: its name, its flags, how many arguments it takes, and what runs it.

use std::cell::Cell;
use std::rc::Rc;

use futures::future::LocalBoxFuture;

use crate::client::Client;
use crate::config::ConfigFile;
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed};

/// The program's name in messages.
pub const PROGRAM: &str = "bulkhead";

/// What every command is given: how to reach the daemon, and the global options.
#[derive(Clone)]
pub struct Ctx(Rc<Shared>);

struct Shared {
    client: Client,
    config_dir: std::path::PathBuf,
    debug: bool,
    owns_signals: Cell<bool>,
}

impl Ctx {
    /// The context of one invocation.
    pub fn new(client: Client, config_dir: std::path::PathBuf, debug: bool) -> Self {
        Self(Rc::new(Shared {
            client,
            config_dir,
            debug,
            owns_signals: Cell::new(false),
        }))
    }

    /// The connection to the daemon.
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// Reads the client's configuration file; it is empty if there is none.
    pub fn config(&self) -> ConfigFile {
        ConfigFile::load(&self.0.config_dir)
    }

    /// Where the client's configuration file is.
    pub fn config_dir(&self) -> &std::path::Path {
        &self.0.config_dir
    }

    /// `--debug` was given.
    pub fn debug(&self) -> bool {
        self.0.debug
    }

    /// From now on the command decides what SIGINT and SIGTERM do: they no longer end it.
    pub fn own_signals(&self) {
        self.0.owns_signals.set(true);
    }

    /// True after [`Ctx::own_signals`].
    pub fn owns_signals(&self) -> bool {
        self.0.owns_signals.get()
    }
}

/// Runs a command.
pub type Run = fn(Ctx, Parsed) -> LocalBoxFuture<'static, CliResult>;

/// How many arguments a command takes.
#[derive(Clone, Copy, Debug)]
pub enum Arity {
    /// None.
    None,
    /// This many.
    Exactly(usize),
    /// This many or more.
    AtLeast(usize),
    /// This many or fewer.
    AtMost(usize),
    /// Between the two, both included.
    Range(usize, usize),
}

/// Where the top-level help lists a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// With the everyday commands.
    Common,
    /// With the groups of commands.
    Management,
    /// With the others.
    Other,
}

/// A command or a group of commands.
#[derive(Clone, Copy)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// Other names that work.
    pub aliases: &'static [&'static str],
    /// What follows the name in the usage line.
    pub usage: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// Every full spelling, for help; empty if there is only one.
    pub spellings: &'static [&'static str],
    /// Its flags, in sets.
    pub flags: &'static [&'static [Flag]],
    /// How many arguments it takes.
    pub arity: Arity,
    /// Flags may follow arguments.
    pub interspersed: bool,
    /// What runs it; none for a group.
    pub run: Option<Run>,
    /// The commands of a group.
    pub subs: &'static [Command],
    /// Where help lists it.
    pub group: Group,
}

impl Command {
    /// A command without flags.
    pub const fn new(
        name: &'static str,
        usage: &'static str,
        about: &'static str,
        arity: Arity,
        run: Run,
    ) -> Self {
        Self {
            name,
            aliases: &[],
            usage,
            about,
            spellings: &[],
            flags: &[],
            arity,
            interspersed: true,
            run: Some(run),
            subs: &[],
            group: Group::Other,
        }
    }

    /// A group of commands.
    pub const fn group(name: &'static str, about: &'static str, subs: &'static [Command]) -> Self {
        Self {
            name,
            aliases: &[],
            usage: "COMMAND",
            about,
            spellings: &[],
            flags: &[],
            arity: Arity::None,
            interspersed: true,
            run: None,
            subs,
            group: Group::Management,
        }
    }

    /// With flags.
    pub const fn flags(mut self, flags: &'static [&'static [Flag]]) -> Self {
        self.flags = flags;
        self
    }

    /// Its options end at the first argument.
    pub const fn options_first(mut self) -> Self {
        self.interspersed = false;
        self
    }

    /// Listed among the everyday commands.
    pub const fn common(mut self) -> Self {
        self.group = Group::Common;
        self
    }

    /// Not listed among the everyday commands.
    pub const fn plain(mut self) -> Self {
        self.group = Group::Other;
        self
    }

    /// With all its full spellings, for help.
    pub const fn spelled(mut self, spellings: &'static [&'static str]) -> Self {
        self.spellings = spellings;
        self
    }

    /// The same command under another name.
    pub const fn named(mut self, name: &'static str, aliases: &'static [&'static str]) -> Self {
        self.name = name;
        self.aliases = aliases;
        self.group = Group::Other;
        self
    }

    /// True if `word` names this command.
    pub fn answers_to(&self, word: &str) -> bool {
        self.name == word || self.aliases.contains(&word)
    }

    /// The usage line for the command reached by `path` (which ends with the name).
    pub fn usage_line(&self, path: &str) -> String {
        if self.run.is_none() || self.usage.is_empty() {
            return path.to_owned();
        }
        format!("{path} {}", self.usage)
    }

    /// Refuses a wrong number of arguments, in Docker's words.
    pub fn check_arity(&self, path: &str, args: &[String]) -> CliResult {
        let n = args.len();
        let plural = |n: usize| if n == 1 { "argument" } else { "arguments" };
        let (what, hint) = match self.arity {
            Arity::None if n > 0 => ("accepts no arguments".to_owned(), "Run"),
            Arity::Exactly(want) if n != want => {
                (format!("requires {want} {}", plural(want)), "Run")
            }
            Arity::AtLeast(min) if n < min => {
                (format!("requires at least {min} {}", plural(min)), "See")
            }
            Arity::AtMost(max) if n > max => {
                (format!("requires at most {max} {}", plural(max)), "Run")
            }
            Arity::Range(min, max) if n < min || n > max => (
                format!("requires at least {min} and at most {max} {}", plural(max)),
                "Run",
            ),
            _ => return Ok(()),
        };
        Err(CliError::msg(format!(
            "{PROGRAM}: '{path}' {what}\n\nUsage:  {}\n\n{hint} '{path} --help' for more information",
            self.usage_line(path)
        )))
    }
}
