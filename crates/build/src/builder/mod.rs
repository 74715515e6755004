//! A build: the stages that the target needs, each a chain of steps.

mod arguments;
mod copy;
mod go;
mod instructions;
mod mounts;
mod run;
mod schedule;
mod stage;
mod voice;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bulkhead_image::ImageId;

use crate::dockerfile::{Dockerfile, Instruction, Step, parse_trigger};
use crate::seam::{Base, BuildError, Host, Secrets};
use crate::tree::ContextTree;
use crate::words;

use arguments::Arguments;
use schedule::Schedule;
use stage::Stage;
use voice::Voice;

/// Most triggers of one base image.
const MAX_TRIGGERS: usize = 1000;

/// What is to be built, and how.
#[derive(Debug)]
pub struct Options {
    /// The Dockerfile.
    pub dockerfile: Vec<u8>,
    /// The context.
    pub context: Arc<ContextTree>,
    /// `--build-arg`.
    pub arguments: BTreeMap<String, Option<String>>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--target`.
    pub target: Option<String>,
    /// `--platform`.
    pub platform: Option<String>,
    /// `--no-cache`.
    pub no_cache: bool,
    /// Says after each step that was run how long it took. Docker's builder does not, and
    /// clients know its lines.
    pub times: bool,
    /// `--cache-from`.
    pub cache_from: Vec<String>,
    /// Whether containers of finished steps are removed.
    pub remove: bool,
    /// Whether that of a failed step is removed as well.
    pub force_remove: bool,
    /// `--secret`.
    pub secrets: Secrets,
    /// How many stages are worked on at a time.
    pub parallel: usize,
}

/// A finished build.
#[derive(Debug, Clone, PartialEq)]
pub struct Built {
    /// The image.
    pub image: ImageId,
}

/// What all stages of a build share.
struct Build<'a> {
    host: &'a dyn Host,
    options: &'a Options,
    file: &'a Dockerfile,
    /// `SOURCE_DATE_EPOCH`.
    epoch: Option<i64>,
    /// As each stage begins with them.
    arguments: Arguments,
    cache_sources: Vec<Base>,
    schedule: Schedule,
    /// The arguments that some stage has declared.
    declared: Mutex<BTreeSet<String>>,
    /// Whether each line names its stage.
    named: bool,
}

/// Builds an image.
///
/// # Errors
/// [`BuildError`]. [`BuildError::Parse`] and a bad target come before anything was done.
pub fn build(host: &dyn Host, options: &Options) -> Result<Built, BuildError> {
    if options.dockerfile.is_empty() {
        return Err(BuildError::Invalid(
            "the Dockerfile cannot be empty".to_owned(),
        ));
    }
    let mut file = Dockerfile::parse(&options.dockerfile)?;
    if let Some(target) = &options.target {
        let stage = file.stage(target, file.stages.len()).ok_or_else(|| {
            BuildError::Invalid(format!(
                "failed to reach build target {target} in Dockerfile"
            ))
        })?;
        file.stages.truncate(stage + 1);
    }
    check_stage_names(&file)?;
    add_labels(&mut file, &options.labels);
    let epoch = epoch(options)?;
    let mut cache_sources = Vec::new();
    if !options.no_cache {
        for name in &options.cache_from {
            // As docker: what is not there is of no use, and no error.
            cache_sources.extend(host.image(name, None).ok());
        }
    }
    let mut arguments = Arguments::new(options.arguments.clone());
    declare_globals(host, &file, &mut arguments)?;
    let schedule = Schedule::new(&file, options.parallel, |stage| {
        // What is wrong with it is told when the stage begins.
        words::expand(&stage.base, file.escape, &arguments.globals()).ok()
    });
    let needed = file.stages.len() - schedule.unneeded().len();
    let build = Build {
        host,
        options,
        file: &file,
        epoch,
        arguments,
        cache_sources,
        schedule,
        declared: Mutex::default(),
        named: needed > 1,
    };
    build.run()
}

/// The `ARG`s before the first stage.
fn declare_globals(
    host: &dyn Host,
    file: &Dockerfile,
    arguments: &mut Arguments,
) -> Result<(), BuildError> {
    let steps = count_steps(file);
    for (step, number) in file.arguments.iter().zip(1..) {
        host.say(&format!("Step {number}/{steps} : {}\n", step.text));
        let Instruction::Arg(pairs) = &step.instruction else {
            continue;
        };
        for (name, default) in pairs {
            let default = match default {
                Some(default) => {
                    let value = words::expand(default, file.escape, &arguments.globals());
                    Some(value.map_err(BuildError::Invalid)?)
                }
                None => None,
            };
            arguments.declare_global(name, default);
        }
    }
    Ok(())
}

/// All steps of a file. Those of stages that are not built count: a step's number is its
/// place in the file.
fn count_steps(file: &Dockerfile) -> usize {
    let of_stages = file.stages.iter().map(|stage| stage.steps.len() + 1);
    file.arguments.len() + of_stages.sum::<usize>()
}

/// The labels of the request are more steps of the last stage, in the order of their names.
fn add_labels(file: &mut Dockerfile, labels: &BTreeMap<String, String>) {
    let Some(stage) = file.stages.last_mut() else {
        return;
    };
    stage.steps.extend(labels.iter().map(|(name, value)| Step {
        text: format!("LABEL {name}={value}"),
        line: 0,
        instruction: Instruction::Label(vec![(literal(name), literal(value))]),
    }));
}

/// Refuses two stages of one name: which of them a later one means is not to be guessed.
fn check_stage_names(file: &Dockerfile) -> Result<(), BuildError> {
    let mut seen = BTreeSet::new();
    for name in file.stages.iter().filter_map(|stage| stage.name.as_ref()) {
        let name = name.to_ascii_lowercase();
        if !seen.insert(name.clone()) {
            return Err(BuildError::Invalid(format!(
                "{name} stage name already used"
            )));
        }
    }
    Ok(())
}

/// A text that stays as it is when it is expanded.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\"'\"'"))
}

fn epoch(options: &Options) -> Result<Option<i64>, BuildError> {
    let Some(Some(text)) = options.arguments.get("SOURCE_DATE_EPOCH") else {
        return Ok(None);
    };
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = || BuildError::Invalid(format!("invalid SOURCE_DATE_EPOCH: {text}"));
    let seconds: i64 = text.parse().map_err(|_| invalid())?;
    jiff::Timestamp::from_second(seconds).map_err(|_| invalid())?;
    if seconds < 0 {
        return Err(invalid());
    }
    Ok(Some(seconds))
}

impl Build<'_> {
    fn run(self) -> Result<Built, BuildError> {
        let build = &self;
        std::thread::scope(|scope| {
            while let Some(index) = self.schedule.next() {
                let work = move || {
                    let mut settled = Settled {
                        build,
                        index,
                        outcome: Err(BuildError::Cancelled),
                    };
                    build
                        .host
                        .within(&mut || settled.outcome = build.stage(index));
                };
                let thread = std::thread::Builder::new().name(format!("stage {index}"));
                if let Err(error) = thread.spawn_scoped(scope, work) {
                    let error = BuildError::files("start a thread")(error);
                    self.schedule.settle(index, Err(error));
                    self.host.cancel();
                }
            }
        });
        let unneeded = self.schedule.unneeded();
        let base = self.schedule.into_result()?;
        for index in unneeded {
            let name = stage_name(self.file, index);
            self.host
                .say(&format!("Stage {name} was not built: nothing needs it\n"));
        }
        let mut declared = self
            .declared
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        // Who declares an argument in a stage that is not built means it.
        for step in self.file.stages.iter().flat_map(|stage| &stage.steps) {
            if let Instruction::Arg(pairs) = &step.instruction {
                declared.extend(pairs.iter().map(|(name, _)| name.clone()));
            }
        }
        let unused = self.arguments.unused(&declared);
        if !unused.is_empty() {
            self.host.say(&format!(
                "[Warning] One or more build-args [{}] were not consumed\n",
                unused.join(" ")
            ));
        }
        match base {
            Some(base) => {
                // The last one that is told counts.
                self.host.announce(&base.id);
                Ok(Built { image: base.id })
            }
            None => Err(BuildError::Invalid(
                "No image was generated. Is your Dockerfile empty?".to_owned(),
            )),
        }
    }

    fn stage(&self, index: usize) -> Result<Option<Base>, BuildError> {
        let described = &self.file.stages[index];
        let steps = count_steps(self.file);
        let before = self.file.stages[..index].iter();
        let mut number = self.file.arguments.len()
            + before.map(|stage| stage.steps.len() + 1).sum::<usize>()
            + 1;
        let name = self
            .named
            .then(|| (stage_name(self.file, index), described.steps.len() + 1));
        let voice = Voice::new(self.host, name);
        let begin_step = |voice: &Voice<'_>, number: usize, text: &str| {
            voice.next_step();
            voice.say(&format!("Step {number}/{steps} : {text}\n"));
        };
        begin_step(&voice, number, &described.text);
        let base = self.base(index)?;
        let mut stage = Stage::new(self, index, voice, base);
        stage.say_image();
        let triggers = stage.take_triggers();
        if !triggers.is_empty() {
            if triggers.len() > MAX_TRIGGERS {
                return Err(BuildError::Invalid(
                    "the base image has too many ONBUILD triggers".to_owned(),
                ));
            }
            let plural = if triggers.len() == 1 { "" } else { "s" };
            let count = triggers.len();
            stage
                .voice
                .say(&format!("# Executing {count} build trigger{plural}\n"));
            for trigger in triggers {
                let (text, instruction) =
                    parse_trigger(&trigger, self.file.escape).map_err(BuildError::Invalid)?;
                stage.dispatch(&text, &instruction)?;
                stage.say_image();
            }
        }
        for step in &described.steps {
            if self.host.is_cancelled() {
                return Err(BuildError::Cancelled);
            }
            number += 1;
            begin_step(&stage.voice, number, &step.text);
            let began = Instant::now();
            let cached = stage.dispatch(&step.text, &step.instruction)?;
            stage.say_image();
            let takes_time = matches!(
                step.instruction,
                Instruction::Run(..) | Instruction::Copy(_) | Instruction::Add(_)
            );
            if self.options.times && takes_time && !cached {
                let seconds = began.elapsed().as_secs_f64();
                stage
                    .voice
                    .say(&format!("Step {number} took {seconds:.1}s\n"));
            }
        }
        let base = stage.into_base();
        if let Some(base) = &base
            && index + 1 < self.file.stages.len()
        {
            self.host.announce(&base.id);
        }
        Ok(base)
    }

    /// Notes that a stage has declared an argument.
    fn declare(&self, name: &str) {
        self.declared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned());
    }

    /// What `FROM` means: an earlier stage, nothing, or an image.
    fn base(&self, index: usize) -> Result<Option<Base>, BuildError> {
        let described = &self.file.stages[index];
        let globals = self.arguments.globals();
        let expand = |text: &str| {
            words::expand(text, self.file.escape, &globals).map_err(BuildError::Invalid)
        };
        let name = expand(&described.base)?;
        if name.is_empty() {
            return Err(BuildError::Invalid(format!(
                "base name ({}) should not be blank",
                described.base
            )));
        }
        if let Some(stage) = self.file.base_stage(&name, index) {
            return self.finished_stage(&name, stage).map(Some);
        }
        if name == "scratch" {
            return Ok(None);
        }
        let platform = match &described.platform {
            Some(platform) => Some(expand(platform)?).filter(|platform| !platform.is_empty()),
            None => None,
        };
        let platform = platform.or_else(|| self.options.platform.clone());
        Ok(Some(self.host.image(&name, platform.as_deref())?))
    }

    fn finished_stage(&self, name: &str, index: usize) -> Result<Base, BuildError> {
        self.schedule
            .result(index)?
            .ok_or_else(|| BuildError::Invalid(format!("stage {name} has no image")))
    }

    /// What `--from` means in a stage.
    fn source_image(&self, name: &str, of: usize) -> Result<ImageId, BuildError> {
        if let Some(stage) = self.file.stage(name, of) {
            return Ok(self.finished_stage(name, stage)?.id);
        }
        if name.parse::<usize>().is_ok() {
            return Err(BuildError::Invalid(format!(
                "invalid from flag value {name}: invalid stage index"
            )));
        }
        let image = self.host.image(name, None).map_err(|error| {
            BuildError::Invalid(format!("invalid from flag value {name}: {error}"))
        })?;
        Ok(image.id)
    }
}

/// What a stage is called in the output.
fn stage_name(file: &Dockerfile, index: usize) -> String {
    let name = file.stages[index].name.clone();
    name.unwrap_or_else(|| index.to_string())
}

/// A stage at work. It settles the stage when it goes, also by a panic: others may wait.
struct Settled<'b, 'a> {
    build: &'b Build<'a>,
    index: usize,
    outcome: Result<Option<Base>, BuildError>,
}

impl Drop for Settled<'_, '_> {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Err(BuildError::Cancelled));
        let failed = outcome.is_err();
        self.build.schedule.settle(self.index, outcome);
        if failed {
            self.build.host.cancel();
        }
    }
}

/// A path below a working directory: absolute, without `.` and `..`.
fn join(base: &str, path: &str) -> String {
    let whole = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{base}/{path}")
    };
    format!("/{}", crate::tree::clean(Path::new(&whole)).display())
}
