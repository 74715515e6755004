//! Dockerfiles: text to typed instructions in stages. Nothing is substituted here.

mod instruction;
mod lines;

pub use instruction::{
    CommandLine, CopySpec, Instruction, Mount, MountKind, Pair, RunOptions, parse_trigger,
};
pub use lines::{Heredoc, Line};

/// Largest Dockerfile, bytes.
pub const MAX_DOCKERFILE_BYTES: usize = 1 << 20;
/// Most heredocs that one line opens.
pub const MAX_HEREDOCS: usize = 64;
/// Most instructions.
pub const MAX_INSTRUCTIONS: usize = 10_000;

/// Why a text is not a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{why}", .line.map(|line| format!("dockerfile parse error line {line}: ")).unwrap_or_default())]
pub struct ParseError {
    /// Where, from 1.
    pub line: Option<usize>,
    /// What.
    pub why: String,
}

impl ParseError {
    /// An error of the whole file.
    pub fn whole(why: impl Into<String>) -> Self {
        Self {
            line: None,
            why: why.into(),
        }
    }

    /// An error at a line.
    pub fn at(line: usize, why: impl Into<String>) -> Self {
        Self {
            line: Some(line),
            why: why.into(),
        }
    }
}

/// A parsed Dockerfile.
#[derive(Debug, Clone, PartialEq)]
pub struct Dockerfile {
    /// The escape character.
    pub escape: char,
    /// `ARG`s before the first `FROM`.
    pub arguments: Vec<Step>,
    /// At least one.
    pub stages: Vec<Stage>,
}

/// A stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// What `AS` says.
    pub name: Option<String>,
    /// The image or stage that it begins with; not substituted.
    pub base: String,
    /// `--platform`.
    pub platform: Option<String>,
    /// The whole `FROM` line.
    pub text: String,
    /// Its line.
    pub line: usize,
    /// What follows.
    pub steps: Vec<Step>,
}

/// An instruction with its text.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The logical line, as it is shown.
    pub text: String,
    /// Where it begins.
    pub line: usize,
    /// What it says.
    pub instruction: Instruction,
}

impl Dockerfile {
    /// Parses a file.
    ///
    /// # Errors
    /// [`ParseError`] with docker's words.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let lines::Lines { escape, lines } = lines::split(bytes)?;
        if lines.is_empty() {
            return Err(ParseError::whole("file with no instructions"));
        }
        if lines.len() > MAX_INSTRUCTIONS {
            return Err(ParseError::whole(format!(
                "the Dockerfile has more than {MAX_INSTRUCTIONS} instructions"
            )));
        }
        let mut file = Self {
            escape,
            arguments: Vec::new(),
            stages: Vec::new(),
        };
        for line in lines {
            let number = line.number;
            let at = |why: String| ParseError::at(number, why);
            let instruction = instruction::parse(&line, escape).map_err(at)?;
            let text = line.text;
            match (instruction, file.stages.last_mut()) {
                (
                    Instruction::From {
                        base,
                        name,
                        platform,
                    },
                    _,
                ) => file.stages.push(Stage {
                    name,
                    base,
                    platform,
                    text,
                    line: number,
                    steps: Vec::new(),
                }),
                (instruction, Some(stage)) => stage.steps.push(Step {
                    text,
                    line: number,
                    instruction,
                }),
                (instruction @ Instruction::Arg(_), None) => file.arguments.push(Step {
                    text,
                    line: number,
                    instruction,
                }),
                (_, None) => {
                    return Err(ParseError::at(number, "no build stage in current context"));
                }
            }
        }
        if file.stages.is_empty() {
            return Err(ParseError::whole("no build stage in current context"));
        }
        Ok(file)
    }

    /// The stage that a name or an index means, among the first `before`. Later stages of the
    /// same name hide earlier ones.
    pub fn stage(&self, name: &str, before: usize) -> Option<usize> {
        let before = before.min(self.stages.len());
        self.base_stage(name, before)
            .or_else(|| name.parse().ok().filter(|index| *index < before))
    }

    /// The stage that a name in `FROM` means, among the first `before`: `FROM` knows no
    /// indices.
    pub fn base_stage(&self, name: &str, before: usize) -> Option<usize> {
        let before = before.min(self.stages.len());
        self.stages[..before].iter().rposition(|stage| {
            stage
                .name
                .as_deref()
                .is_some_and(|own| own.eq_ignore_ascii_case(name))
        })
    }
}

/// A JSON array of strings; `None` for any other text.
pub(crate) fn json_array(text: &str) -> Option<Vec<String>> {
    let text = text.trim();
    text.starts_with('[')
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Dockerfile::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn stages() {
        let file = Dockerfile::parse(
            b"ARG V=1\nFROM a:$V AS one\nRUN x\nfrom --platform=linux/amd64 b as Two\nCOPY --from=one / /\nFROM one",
        )
        .unwrap();
        assert_eq!(file.arguments.len(), 1);
        assert_eq!(file.stages.len(), 3);
        assert_eq!(file.stages[1].platform.as_deref(), Some("linux/amd64"));
        assert_eq!(file.stage("TWO", 3), Some(1));
        assert_eq!(file.stage("two", 1), None);
        assert_eq!(file.stage("0", 3), Some(0));
        assert_eq!(file.stage("3", 3), None);
    }

    #[test]
    fn errors_have_dockers_words() {
        assert_eq!(
            error("FROM a\nFOO x"),
            "dockerfile parse error line 2: unknown instruction: FOO"
        );
        assert_eq!(error("# only"), "file with no instructions");
        assert!(error("RUN x").contains("no build stage in current context"));
        assert!(error("FROM a b").contains("FROM requires either one or three arguments"));
        assert!(error("FROM a AS 1x").contains("invalid name for build stage"));
        assert!(error("FROM a\nCOPY x").contains("COPY requires at least two arguments"));
        assert!(error("FROM a\nENV x").contains("ENV must have two arguments"));
        assert!(error("FROM a\nONBUILD ONBUILD RUN x").contains("ONBUILD ONBUILD"));
        assert!(
            error("FROM a\nONBUILD FROM x").contains("FROM isn't allowed as an ONBUILD trigger")
        );
        assert!(error("FROM a\nCOPY --nope=x a b").contains("unknown flag: nope"));
        assert!(
            error("FROM a\nSHELL bash").contains("SHELL requires the arguments to be in JSON form")
        );
        assert!(error("FROM a\nWORKDIR").contains("WORKDIR requires exactly one argument"));
    }
}
