//! A build: stages in order, each a chain of steps.

mod arguments;
mod copy;
mod go;
mod instructions;
mod mounts;
mod run;
mod stage;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bulkhead_image::ImageId;

use crate::dockerfile::{Dockerfile, Instruction, Step, parse_trigger};
use crate::seam::{Base, BuildError, Host};
use crate::tree::ContextTree;
use crate::words;

use arguments::Arguments;
use stage::Stage;

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
    /// `--cache-from`.
    pub cache_from: Vec<String>,
    /// Whether containers of finished steps are removed.
    pub remove: bool,
    /// Whether that of a failed step is removed as well.
    pub force_remove: bool,
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
    escape: char,
    /// `SOURCE_DATE_EPOCH`.
    epoch: Option<i64>,
    arguments: Arguments,
    cache_sources: Vec<Base>,
    finished: Vec<Finished>,
    step: usize,
    steps: usize,
}

/// A stage that is done.
struct Finished {
    name: Option<String>,
    base: Option<Base>,
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
    add_labels(&mut file, &options.labels);
    let epoch = epoch(options)?;
    let mut build = Build {
        host,
        options,
        escape: file.escape,
        epoch,
        arguments: Arguments::new(options.arguments.clone()),
        cache_sources: Vec::new(),
        finished: Vec::new(),
        step: 0,
        steps: file.arguments.len()
            + file
                .stages
                .iter()
                .map(|stage| stage.steps.len() + 1)
                .sum::<usize>(),
    };
    if !options.no_cache {
        for name in &options.cache_from {
            // As docker: what is not there is of no use, and no error.
            build.cache_sources.extend(host.image(name, None).ok());
        }
    }
    build.run(&file)
}

/// The labels of the request are one more step of the last stage.
fn add_labels(file: &mut Dockerfile, labels: &BTreeMap<String, String>) {
    let Some(stage) = file.stages.last_mut() else {
        return;
    };
    if labels.is_empty() {
        return;
    }
    let mut text = "LABEL".to_owned();
    let mut pairs = Vec::new();
    for (name, value) in labels {
        text.push_str(&format!(" {}={}", go::quote(name), go::quote(value)));
        pairs.push((literal(name), literal(value)));
    }
    stage.steps.push(Step {
        text,
        line: 0,
        instruction: Instruction::Label(pairs),
    });
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
    fn run(&mut self, file: &Dockerfile) -> Result<Built, BuildError> {
        for step in &file.arguments {
            self.begin_step(&step.text);
            if let Instruction::Arg(arguments) = &step.instruction {
                for (name, default) in arguments {
                    let default = match default {
                        Some(default) => {
                            let globals = self.arguments.globals();
                            let value = words::expand(default, self.escape, &globals)
                                .map_err(BuildError::Invalid)?;
                            Some(value)
                        }
                        None => None,
                    };
                    self.arguments.declare_global(name, default);
                }
            }
        }
        for described in &file.stages {
            let base = self.stage(described)?;
            if let Some(base) = &base {
                self.host.announce(&base.id);
            }
            self.finished.push(Finished {
                name: described.name.clone(),
                base,
            });
        }
        let unused = self.arguments.unused();
        if !unused.is_empty() {
            self.host.say(&format!(
                "[Warning] One or more build-args [{}] were not consumed\n",
                unused.join(" ")
            ));
        }
        match self.finished.last().and_then(|stage| stage.base.as_ref()) {
            Some(base) => Ok(Built { image: base.id }),
            None => Err(BuildError::Invalid(
                "No image was generated. Is your Dockerfile empty?".to_owned(),
            )),
        }
    }

    fn begin_step(&mut self, text: &str) {
        self.step += 1;
        let (step, steps) = (self.step, self.steps);
        self.host.say(&format!("Step {step}/{steps} : {text}\n"));
    }

    fn stage(&mut self, described: &crate::dockerfile::Stage) -> Result<Option<Base>, BuildError> {
        self.begin_step(&described.text);
        self.arguments.begin_stage();
        let globals = self.arguments.globals();
        let expand = |text: &str| words::expand(text, self.escape, &globals);
        let name = expand(&described.base).map_err(BuildError::Invalid)?;
        if name.is_empty() {
            return Err(BuildError::Invalid(format!(
                "base name ({}) should not be blank",
                described.base
            )));
        }
        let platform = match &described.platform {
            Some(platform) => Some(expand(platform).map_err(BuildError::Invalid)?)
                .filter(|platform| !platform.is_empty()),
            None => None,
        };
        drop(globals);
        let platform = platform.or_else(|| self.options.platform.clone());
        let base = self.base(&name, platform.as_deref())?;
        let mut stage = Stage::new(self, base);
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
                .build
                .host
                .say(&format!("# Executing {count} build trigger{plural}\n"));
            for trigger in triggers {
                let (text, instruction) =
                    parse_trigger(&trigger, stage.build.escape).map_err(BuildError::Invalid)?;
                stage.dispatch(&text, &instruction)?;
                stage.say_image();
            }
        }
        for step in &described.steps {
            if stage.build.host.is_cancelled() {
                return Err(BuildError::Cancelled);
            }
            stage.build.begin_step(&step.text);
            let began = Instant::now();
            let cached = stage.dispatch(&step.text, &step.instruction)?;
            stage.say_image();
            let takes_time = matches!(
                step.instruction,
                Instruction::Run(..) | Instruction::Copy(_) | Instruction::Add(_)
            );
            if takes_time && !cached {
                let number = stage.build.step;
                let seconds = began.elapsed().as_secs_f64();
                stage
                    .build
                    .host
                    .say(&format!("Step {number} took {seconds:.1}s\n"));
            }
        }
        Ok(stage.into_base())
    }

    /// What `FROM` means: an earlier stage, nothing, or an image.
    fn base(&self, name: &str, platform: Option<&str>) -> Result<Option<Base>, BuildError> {
        if let Some(stage) = self.finished_stage(name, false) {
            return match &stage.base {
                Some(base) => Ok(Some(base.clone())),
                None => Err(BuildError::Invalid(format!("stage {name} has no image"))),
            };
        }
        if name == "scratch" {
            return Ok(None);
        }
        Ok(Some(self.host.image(name, platform)?))
    }

    fn finished_stage(&self, name: &str, by_index: bool) -> Option<&Finished> {
        let named = self.finished.iter().rfind(|stage| {
            stage
                .name
                .as_deref()
                .is_some_and(|own| own.eq_ignore_ascii_case(name))
        });
        match (named, by_index) {
            (None, true) => self.finished.get(name.parse::<usize>().ok()?),
            (named, _) => named,
        }
    }

    /// What `--from` means.
    fn source_image(&self, name: &str) -> Result<ImageId, BuildError> {
        if let Some(stage) = self.finished_stage(name, true) {
            return match &stage.base {
                Some(base) => Ok(base.id),
                None => Err(BuildError::Invalid(format!("stage {name} has no image"))),
            };
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

/// A path below a working directory: absolute, without `.` and `..`.
fn join(base: &str, path: &str) -> String {
    let whole = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{base}/{path}")
    };
    format!("/{}", crate::tree::clean(Path::new(&whole)).display())
}
