//! What a stage says: as it comes where there is one stage, and by whole lines that name the
//! stage and its step where several speak at a time.

use std::cell::RefCell;

use crate::seam::Host;

/// Longest line that waits for its end.
const MAX_LINE: usize = 64 << 10;

/// See the module's documentation. What is left of a line is said in the end.
pub(super) struct Voice<'a> {
    host: &'a dyn Host,
    /// Name of the stage and number of its steps, if there is to be a prefix.
    stage: Option<(String, usize)>,
    step: RefCell<usize>,
    line: RefCell<String>,
}

impl<'a> Voice<'a> {
    pub(super) fn new(host: &'a dyn Host, stage: Option<(String, usize)>) -> Self {
        Self {
            host,
            stage,
            step: RefCell::new(0),
            line: RefCell::default(),
        }
    }

    /// The next step begins.
    pub(super) fn next_step(&self) {
        self.finish_line();
        *self.step.borrow_mut() += 1;
    }

    pub(super) fn say(&self, text: &str) {
        if self.stage.is_none() {
            return self.host.say(text);
        }
        for piece in text.split_inclusive('\n') {
            let mut line = self.line.borrow_mut();
            line.push_str(piece);
            let is_whole = line.ends_with('\n');
            let is_long = line.len() >= MAX_LINE;
            drop(line);
            if is_whole || is_long {
                self.finish_line();
            }
        }
    }

    /// What goes to a command's stderr: red, as clients know it, where nothing stands before
    /// the lines.
    pub(super) fn say_errors(&self, text: &str) {
        match self.stage {
            None => self.host.say(&format!("\x1b[91m{text}\x1b[0m")),
            Some(_) => self.say(text),
        }
    }

    fn finish_line(&self) {
        let mut line = self.line.take();
        let Some((name, steps)) = &self.stage else {
            return;
        };
        if line.is_empty() {
            return;
        }
        if !line.ends_with('\n') {
            line.push('\n');
        }
        let step = *self.step.borrow();
        self.host.say(&format!("[{name} {step}/{steps}] {line}"));
    }
}

impl Drop for Voice<'_> {
    fn drop(&mut self) {
        self.finish_line();
    }
}
