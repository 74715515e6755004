//! Which stage is built when: those that the target needs, several at a time.
//!
//! A stage begins as soon as the stage that it is `FROM` is done, and waits where it copies
//! from one that is not. What it needs is read off the Dockerfile; what only shows on the way
//! (a base image's triggers) is added then. Stages only ever need earlier ones.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::dockerfile::{Dockerfile, Instruction, Stage};
use crate::seam::{Base, BuildError};

/// Most threads: stages that wait for others take one, too.
const MAX_THREADS: usize = 64;

/// See the module's documentation.
pub(super) struct Schedule {
    uses: Vec<Uses>,
    board: Mutex<Board>,
    changed: Condvar,
}

/// The stages that a stage needs.
struct Uses {
    /// To begin.
    base: Option<usize>,
    /// Later.
    others: Vec<usize>,
}

struct Board {
    stages: Vec<State>,
    /// How many more may work.
    free: usize,
    /// How many have a thread.
    threads: usize,
    failure: Option<BuildError>,
}

enum State {
    Unneeded,
    Needed,
    Begun,
    Done(Option<Box<Base>>),
}

impl Board {
    fn is_done(&self, index: usize) -> bool {
        matches!(self.stages[index], State::Done(_))
    }
}

impl Schedule {
    /// `base_of` says what a stage is `FROM`.
    pub(super) fn new(
        file: &Dockerfile,
        parallel: usize,
        base_of: impl Fn(&Stage) -> Option<String>,
    ) -> Self {
        let uses = (0..file.stages.len())
            .map(|index| {
                let stage = &file.stages[index];
                Uses {
                    base: base_of(stage).and_then(|name| file.base_stage(&name, index)),
                    others: sources(file, index),
                }
            })
            .collect();
        let schedule = Self {
            uses,
            board: Mutex::new(Board {
                stages: file.stages.iter().map(|_| State::Unneeded).collect(),
                free: parallel.max(1),
                threads: 0,
                failure: None,
            }),
            changed: Condvar::new(),
        };
        if let Some(target) = file.stages.len().checked_sub(1) {
            schedule.need(&mut schedule.board(), target);
        }
        schedule
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'b>(&self, board: MutexGuard<'b, Board>) -> MutexGuard<'b, Board> {
        self.changed
            .wait(board)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn need(&self, board: &mut Board, index: usize) {
        let mut pending = vec![index];
        while let Some(index) = pending.pop() {
            if matches!(board.stages[index], State::Unneeded) {
                board.stages[index] = State::Needed;
                let uses = &self.uses[index];
                pending.extend(uses.base.iter().chain(&uses.others));
            }
        }
    }

    /// The stages that nothing needs, as far as is known.
    pub(super) fn unneeded(&self) -> Vec<usize> {
        let board = self.board();
        let unneeded = |index: &usize| matches!(board.stages[*index], State::Unneeded);
        (0..board.stages.len()).filter(unneeded).collect()
    }

    /// Waits for a stage that can begin, and marks it as begun: [`Self::settle`] has to
    /// follow. `None` when all are done, or one has failed.
    pub(super) fn next(&self) -> Option<usize> {
        let mut board = self.board();
        loop {
            if board.failure.is_some() {
                return None;
            }
            let stages = &board.stages;
            let needed = |index: &usize| matches!(stages[*index], State::Needed);
            let ready = (0..stages.len()).filter(needed).find(|index| {
                self.uses[*index]
                    .base
                    .is_none_or(|base| board.is_done(base))
            });
            let unfinished = |state: &State| matches!(state, State::Needed | State::Begun);
            let first = stages.iter().position(unfinished)?;
            // The first one waits for nobody: with a thread for it there is always one that
            // goes on.
            let has_thread = |index| board.threads < MAX_THREADS || index == first;
            if let Some(index) = ready
                && board.free > 0
                && has_thread(index)
            {
                board.stages[index] = State::Begun;
                board.free -= 1;
                board.threads += 1;
                return Some(index);
            }
            board = self.wait(board);
        }
    }

    /// A stage has ended. The first failure ends the build.
    pub(super) fn settle(&self, index: usize, outcome: Result<Option<Base>, BuildError>) {
        let mut board = self.board();
        match outcome {
            Ok(base) => board.stages[index] = State::Done(base.map(Box::new)),
            Err(error) => {
                board.failure.get_or_insert(error);
            }
        }
        board.free += 1;
        board.threads -= 1;
        self.changed.notify_all();
    }

    /// What an earlier stage has become. Whoever waits for it lets another stage work.
    pub(super) fn result(&self, index: usize) -> Result<Option<Base>, BuildError> {
        let mut board = self.board();
        if let State::Done(base) = &board.stages[index] {
            return Ok(base.as_deref().cloned());
        }
        self.need(&mut board, index);
        board.free += 1;
        self.changed.notify_all();
        loop {
            let failed = board.failure.is_some();
            if failed || (board.is_done(index) && board.free > 0) {
                // After a failure nothing begins any more, and the count means nothing.
                board.free = board.free.saturating_sub(1);
                return match &board.stages[index] {
                    State::Done(base) if !failed => Ok(base.as_deref().cloned()),
                    _ => Err(BuildError::Cancelled),
                };
            }
            board = self.wait(board);
        }
    }

    /// What the last stage has become, or why there is nothing.
    pub(super) fn into_result(self) -> Result<Option<Base>, BuildError> {
        let mut board = self
            .board
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        match (board.failure.take(), board.stages.pop()) {
            (Some(error), _) => Err(error),
            (None, Some(State::Done(base))) => Ok(base.map(|base| *base)),
            _ => Err(BuildError::Cancelled),
        }
    }
}

/// The stages that the steps of a stage copy from or mount.
fn sources(file: &Dockerfile, index: usize) -> Vec<usize> {
    let mut found = Vec::new();
    for step in &file.stages[index].steps {
        match &step.instruction {
            Instruction::Copy(spec) | Instruction::Add(spec) => {
                let from = spec.from.as_deref();
                found.extend(from.and_then(|from| file.stage(from, index)));
            }
            Instruction::Run(_, options) => {
                for from in options
                    .mounts
                    .iter()
                    .filter_map(|mount| mount.from.as_ref())
                {
                    if from.contains('$') {
                        // What it means shows when the step is reached.
                        found.extend(0..index);
                    } else {
                        found.extend(file.stage(from, index));
                    }
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(text: &str, parallel: usize) -> Schedule {
        let file = Dockerfile::parse(text.as_bytes()).unwrap();
        Schedule::new(&file, parallel, |stage| Some(stage.base.clone()))
    }

    const DIAMOND: &str = "FROM x AS a\nFROM x AS unneeded\nFROM a AS b\nFROM x AS c\n\
                           RUN --mount=from=a,target=/m true\nFROM b\nCOPY --from=3 / /\n";

    #[test]
    fn only_what_the_target_needs_and_as_early_as_it_can() {
        let schedule = schedule(DIAMOND, 8);
        assert_eq!(schedule.unneeded(), [1]);
        assert_eq!(schedule.next(), Some(0));
        // It mounts `a`, but may begin before that is done; `b` is made from it.
        assert_eq!(schedule.next(), Some(3));
        schedule.settle(0, Ok(None));
        assert_eq!(schedule.next(), Some(2));
        schedule.settle(3, Ok(None));
        schedule.settle(2, Ok(None));
        assert_eq!(schedule.next(), Some(4));
        assert!(schedule.result(3).unwrap().is_none());
        schedule.settle(4, Ok(None));
        assert_eq!(schedule.next(), None);
        assert!(schedule.into_result().unwrap().is_none());
    }

    #[test]
    fn who_waits_lets_another_work() {
        let schedule = schedule(DIAMOND, 1);
        assert_eq!(schedule.next(), Some(0));
        std::thread::scope(|scope| {
            schedule.settle(0, Ok(None));
            assert_eq!(schedule.next(), Some(2));
            schedule.settle(2, Ok(None));
            assert_eq!(schedule.next(), Some(3));
            // Would be for ever if the stage that waits kept its place.
            let waits = scope.spawn(|| schedule.result(1));
            assert_eq!(schedule.next(), Some(1));
            schedule.settle(1, Ok(None));
            assert!(waits.join().unwrap().unwrap().is_none());
        });
    }

    #[test]
    fn a_failure_ends_all() {
        let schedule = schedule(DIAMOND, 8);
        assert_eq!((schedule.next(), schedule.next()), (Some(0), Some(3)));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| schedule.result(0));
            schedule.settle(0, Err(BuildError::Invalid("why".to_owned())));
            assert!(matches!(waits.join().unwrap(), Err(BuildError::Cancelled)));
        });
        schedule.settle(3, Err(BuildError::Cancelled));
        assert_eq!(schedule.next(), None);
        assert_eq!(schedule.into_result().unwrap_err().to_string(), "why");
    }
}
