//! `RUN`: a command in a container, whose changes become a layer.

use std::io::{self, Seek, SeekFrom};

use super::stage::{Layer, Outcome, Stage};
use crate::dockerfile::{CommandLine, Heredoc, RunOptions};
use crate::seam::{BuildError, RunNews, RunRequest};

impl Stage<'_, '_> {
    pub(super) fn run(
        &mut self,
        command: &CommandLine,
        options: &RunOptions,
    ) -> Result<bool, BuildError> {
        let words = self.command_words(command);
        let (recorded, silent) = self.arguments.for_commands(&self.config.env);
        let mut created_by = words.join(" ");
        if !recorded.is_empty() || !silent.is_empty() {
            let mut shown = format!("|{}", recorded.len());
            for entry in &recorded {
                shown.push(' ');
                shown.push_str(entry);
            }
            created_by = format!("{shown} {created_by}");
        }
        let mut key = format!("{options:?}").into_bytes();
        let mounts = self.find_mounts(options, &mut key)?;
        let outcome = Outcome {
            created_by,
            has_layer: true,
            key,
        };
        let Some(image) = self.base.as_ref().map(|base| base.id) else {
            return Err(BuildError::Invalid(
                "RUN needs an image to run in: scratch has no files".to_owned(),
            ));
        };
        let mut environment = self.config.env.clone();
        environment.extend(recorded);
        environment.extend(silent);
        self.finish(outcome, |stage| {
            let placed = stage.place_mounts(&mounts)?;
            let made = stage.made_mount_points(&placed.mounts)?;
            let request = RunRequest {
                image,
                command: words.clone(),
                environment,
                network: options
                    .network
                    .clone()
                    .filter(|network| network != "default"),
                mounts: placed.mounts.clone(),
            };
            stage.run_request(&request, made).map(Some)
        })
    }

    fn command_words(&self, command: &CommandLine) -> Vec<String> {
        match command {
            CommandLine::Exec(words) => words.clone(),
            CommandLine::Shell { text, heredocs } => {
                let mut words = self.shell();
                words.push(script(text, heredocs));
                words
            }
        }
    }

    fn run_request(
        &mut self,
        request: &RunRequest,
        made: Vec<String>,
    ) -> Result<Layer, BuildError> {
        let host = self.build.host;
        let voice = &self.voice;
        let outcome = host.run(request, &mut |news| match news {
            RunNews::Started(id) => voice.say(&format!(" ---> Running in {}\n", short(id))),
            RunNews::Output(text) => voice.say(text),
            RunNews::Errors(text) => voice.say_errors(text),
        })?;
        let container = outcome.container;
        let removed = |when: bool| {
            if when {
                voice.say(&format!(
                    "Removing intermediate container {}\n",
                    short(&container)
                ));
                host.remove(&container)?;
            }
            Ok::<(), BuildError>(())
        };
        if host.is_cancelled() {
            host.remove(&container)?;
            return Err(BuildError::Cancelled);
        }
        if outcome.code != 0 {
            removed(self.build.options.force_remove)?;
            return Err(BuildError::Command {
                command: request.command.join(" "),
                code: outcome.code,
            });
        }
        let layer = self.changes(&container, made);
        match layer {
            Ok(layer) => {
                removed(self.build.options.remove)?;
                Ok(layer)
            }
            Err(error) => {
                removed(self.build.options.force_remove)?;
                Err(error)
            }
        }
    }

    /// The layer of a container, in a file, so that the container may go.
    fn changes(&self, container: &str, made: Vec<String>) -> Result<Layer, BuildError> {
        let host = self.build.host;
        let mut changes = host.changes(container, self.build.epoch, made)?;
        let mut write = || -> io::Result<std::fs::File> {
            let mut file = host.temporary()?;
            io::copy(&mut changes, &mut &file)?;
            file.seek(SeekFrom::Start(0))?;
            Ok(file)
        };
        let file = write().map_err(BuildError::files("read the container's changes"))?;
        Ok(Box::new(file))
    }
}

/// What the shell is given. A command that is one heredoc is a script of its own; all others
/// are for the shell to handle, which knows heredocs.
fn script(text: &str, heredocs: &[Heredoc]) -> String {
    if let [only] = heredocs
        && text.split_whitespace().count() == 1
        && text.starts_with("<<")
    {
        let content = &only.content;
        let Some(interpreter) = content.strip_prefix("#!") else {
            return content.clone();
        };
        let interpreter = interpreter.lines().next().unwrap_or_default().trim();
        let mut mark = "BULKHEAD_SCRIPT".to_owned();
        while content.lines().any(|line| line == mark) {
            mark.push('_');
        }
        return format!("exec {interpreter} /dev/fd/3 3<<'{mark}'\n{content}{mark}\n");
    }
    let mut whole = text.to_owned();
    for heredoc in heredocs {
        whole.push('\n');
        whole.push_str(&heredoc.content);
        whole.push_str(&heredoc.name);
    }
    whole
}

fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::{Dockerfile, Instruction};

    fn text(run: &str) -> String {
        let file = Dockerfile::parse(format!("FROM x\n{run}").as_bytes()).unwrap();
        let Instruction::Run(CommandLine::Shell { text, heredocs }, _) =
            &file.stages[0].steps[0].instruction
        else {
            panic!("not a RUN in shell form");
        };
        script(text, heredocs)
    }

    #[test]
    fn heredocs_become_scripts() {
        assert_eq!(text("RUN <<EOF\necho a\necho b\nEOF"), "echo a\necho b\n");
        assert_eq!(
            text("RUN cat <<A >/x && cat <<B\n1\nA\n2\nB"),
            "cat <<A >/x && cat <<B\n1\nA\n2\nB"
        );
        assert_eq!(
            text("RUN <<EOF\n#!/usr/bin/env python3\nprint(1)\nEOF"),
            "exec /usr/bin/env python3 /dev/fd/3 3<<'BULKHEAD_SCRIPT'\n#!/usr/bin/env \
             python3\nprint(1)\nBULKHEAD_SCRIPT\n"
        );
    }
}
