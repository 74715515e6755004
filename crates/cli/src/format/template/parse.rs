//! From pieces to a tree.

use super::TemplateError;
use super::funcs;
use super::lex::{self, Piece, Token, line_of};
use super::value::Value;

/// The deepest nesting of actions and parentheses.
const MAX_DEPTH: usize = 200;

/// What is run.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Action(Pipe),
    Block {
        kind: Block,
        pipe: Pipe,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Break,
    Continue,
}

/// The kinds of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    If,
    With,
    Range,
}

/// Commands, each given the one before's result as its last argument.
#[derive(Debug)]
pub(super) struct Pipe {
    /// Variables that take the result.
    pub(super) variables: Vec<String>,
    /// They exist already.
    pub(super) assigns: bool,
    pub(super) commands: Vec<Vec<Operand>>,
}

/// An operand with where it stands and how messages show it.
#[derive(Debug)]
pub(super) struct Operand {
    pub(super) position: usize,
    pub(super) source: String,
    pub(super) base: Base,
    /// Fields taken from the base, in order.
    pub(super) fields: Vec<String>,
}

/// What an operand starts from.
#[derive(Debug)]
pub(super) enum Base {
    Dot,
    Variable(String),
    Function(String),
    Constant(Value),
    Pipe(Box<Pipe>),
}

struct Parser<'a> {
    text: &'a str,
    pieces: std::iter::Peekable<std::vec::IntoIter<(usize, Piece)>>,
}

/// How a list of nodes ended.
enum Close {
    Eof,
    Block,
    Else(usize, Vec<(usize, Token)>),
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>, TemplateError> {
    let pieces = lex::split(text)?.into_iter().peekable();
    let mut parser = Parser { text, pieces };
    let (nodes, end) = parser.list(0, 0)?;
    match end {
        (_, Close::Eof) => Ok(nodes),
        (at, Close::Block) => parser.fail(at, "unexpected {{end}}"),
        (at, Close::Else(..)) => parser.fail(at, "unexpected {{else}}"),
    }
}

pub(super) fn mentions(nodes: &[Node], field: &str) -> bool {
    fn pipe(p: &Pipe, field: &str) -> bool {
        p.commands.iter().flatten().any(|o| {
            o.fields.iter().any(|f| f == field)
                // `{{json .}}` shows every field.
                || (o.fields.is_empty() && matches!(o.base, Base::Dot))
                || matches!(&o.base, Base::Pipe(inner) if pipe(inner, field))
        })
    }
    nodes.iter().any(|node| match node {
        Node::Action(p) => pipe(p, field),
        Node::Block {
            pipe: p,
            body,
            otherwise,
            ..
        } => pipe(p, field) || mentions(body, field) || mentions(otherwise, field),
        Node::Text(_) | Node::Break | Node::Continue => false,
    })
}

impl Parser<'_> {
    fn fail<T>(&self, at: usize, message: impl AsRef<str>) -> Result<T, TemplateError> {
        Err(TemplateError(format!(
            "{}: {}",
            line_of(self.text, at),
            message.as_ref()
        )))
    }

    /// Nodes up to the end of the template or of the block.
    fn list(
        &mut self,
        depth: usize,
        loops: usize,
    ) -> Result<(Vec<Node>, (usize, Close)), TemplateError> {
        let mut nodes = Vec::new();
        while let Some((at, piece)) = self.pieces.next() {
            if depth > MAX_DEPTH {
                return self.fail(at, "too many nested actions");
            }
            let tokens = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(tokens) => tokens,
            };
            let first = tokens.iter().position(|(_, t)| *t != Token::Space);
            let word = first.and_then(|i| match &tokens[i].1 {
                Token::Word(word) => Some(word.as_str()),
                _ => None,
            });
            let after = || tokens[first.map_or(0, |i| i + 1)..].to_vec();
            match word {
                Some("end") => return Ok((nodes, (at, Close::Block))),
                Some("else") => return Ok((nodes, (at, Close::Else(at, after())))),
                Some("if") => {
                    let node = self.block(Block::If, at, after(), depth + 1, loops)?;
                    nodes.push(node);
                }
                Some("with") => {
                    let node = self.block(Block::With, at, after(), depth + 1, loops)?;
                    nodes.push(node);
                }
                Some("range") => {
                    let node = self.block(Block::Range, at, after(), depth + 1, loops + 1)?;
                    nodes.push(node);
                }
                Some(word @ ("break" | "continue")) => {
                    if loops == 0 {
                        return self.fail(at, format!("{{{{{word}}}}} outside {{{{range}}}}"));
                    }
                    nodes.push(if word == "break" {
                        Node::Break
                    } else {
                        Node::Continue
                    });
                }
                Some(word @ ("define" | "template" | "block")) => {
                    return self.fail(at, format!("{{{{{word}}}}} is not supported"));
                }
                _ => nodes.push(Node::Action(self.pipeline(at, tokens, "command")?)),
            }
        }
        Ok((nodes, (self.text.len(), Close::Eof)))
    }

    fn block(
        &mut self,
        kind: Block,
        at: usize,
        tokens: Vec<(usize, Token)>,
        depth: usize,
        loops: usize,
    ) -> Result<Node, TemplateError> {
        let name = match kind {
            Block::If => "if",
            Block::With => "with",
            Block::Range => "range",
        };
        let pipe = self.pipeline(at, tokens, name)?;
        let (body, end) = self.list(depth, loops)?;
        let otherwise = match end {
            (at, Close::Eof) => return self.fail(at, "unexpected EOF"),
            (_, Close::Block) => Vec::new(),
            (_, Close::Else(at, mut tokens)) => {
                while tokens.first().is_some_and(|(_, t)| *t == Token::Space) {
                    tokens.remove(0);
                }
                let chained = match tokens.first() {
                    Some((_, Token::Word(w))) if w == "if" => Some(Block::If),
                    Some((_, Token::Word(w))) if w == "with" => Some(Block::With),
                    Some(_) => return self.fail(at, "unexpected token in {{else}}"),
                    None => None,
                };
                match chained {
                    // `{{else if …}}` shares the outer block's end.
                    Some(kind) => {
                        vec![self.block(kind, at, tokens.split_off(1), depth + 1, loops)?]
                    }
                    None => match self.list(depth, loops)? {
                        (nodes, (_, Close::Block)) => nodes,
                        (_, (at, Close::Else(..))) => return self.fail(at, "unexpected {{else}}"),
                        (_, (at, Close::Eof)) => return self.fail(at, "unexpected EOF"),
                    },
                }
            }
        };
        Ok(Node::Block {
            kind,
            pipe,
            body,
            otherwise,
        })
    }

    fn pipeline(
        &self,
        at: usize,
        tokens: Vec<(usize, Token)>,
        context: &str,
    ) -> Result<Pipe, TemplateError> {
        let mut cursor = Cursor {
            tokens: &tokens,
            next: 0,
        };
        let pipe = self.pipe(&mut cursor, at, context, 0)?;
        match cursor.peek() {
            None => Ok(pipe),
            Some((at, token)) => self.unexpected(at, token, context),
        }
    }

    fn unexpected<T>(&self, at: usize, token: &Token, context: &str) -> Result<T, TemplateError> {
        let shown = match token {
            Token::Close => return self.fail(at, "unexpected right paren"),
            Token::Comma => ",".to_owned(),
            Token::Declare => ":=".to_owned(),
            Token::Assign => "=".to_owned(),
            Token::Pipe => "|".to_owned(),
            Token::Word(w) => w.clone(),
            other => format!("{other:?}"),
        };
        self.fail(at, format!("unexpected {shown:?} in {context}"))
    }

    fn pipe(
        &self,
        cursor: &mut Cursor<'_>,
        at: usize,
        context: &str,
        depth: usize,
    ) -> Result<Pipe, TemplateError> {
        if depth > MAX_DEPTH {
            return self.fail(at, "too many nested parentheses");
        }
        let (variables, assigns) = declaration(cursor);
        let mut commands = Vec::new();
        loop {
            let mut operands = Vec::new();
            loop {
                cursor.skip_blanks();
                match cursor.peek() {
                    None | Some((_, Token::Close | Token::Pipe)) => break,
                    Some((_, Token::Comma | Token::Declare | Token::Assign)) => break,
                    Some(_) => operands.push(self.operand(cursor, depth)?),
                }
            }
            if operands.is_empty() {
                return match commands.is_empty() {
                    true => self.fail(at, format!("missing value for {context}")),
                    false => self.fail(at, format!("missing value for {context}")),
                };
            }
            commands.push(operands);
            match cursor.peek() {
                Some((_, Token::Pipe)) => cursor.next += 1,
                _ => {
                    return Ok(Pipe {
                        variables,
                        assigns,
                        commands,
                    });
                }
            }
        }
    }

    fn operand(&self, cursor: &mut Cursor<'_>, depth: usize) -> Result<Operand, TemplateError> {
        let Some((at, token)) = cursor.take() else {
            return self.fail(self.text.len(), "unclosed action");
        };
        let mut position = at;
        let mut fields = Vec::new();
        let (base, mut source) = match token {
            Token::Dot => (Base::Dot, ".".to_owned()),
            Token::Field(name) => {
                fields.push(name.clone());
                (Base::Dot, format!(".{name}"))
            }
            Token::Variable(name) => (Base::Variable(name.clone()), name.clone()),
            Token::Word(word) => match word.as_str() {
                "true" | "false" => (Base::Constant(Value::Bool(word == "true")), word.clone()),
                "nil" => (Base::Constant(Value::Nil), word.clone()),
                _ if funcs::exists(word) => (Base::Function(word.clone()), word.clone()),
                _ => return self.fail(at, format!("function {word:?} not defined")),
            },
            Token::Text(text) => (Base::Constant(Value::text(text)), crate::flags::quote(text)),
            Token::Number(n) => (Base::Constant(Value::Number(n.clone())), n.to_string()),
            Token::Open => {
                let inner = self.pipe(cursor, at, "parenthesized pipeline", depth + 1)?;
                match cursor.take() {
                    Some((_, Token::Close)) => {}
                    _ => return self.fail(at, "unclosed left paren"),
                }
                let end = cursor
                    .position()
                    .unwrap_or(self.text.len())
                    .min(self.text.len());
                let source = self
                    .text
                    .get(at..end)
                    .unwrap_or("(…)")
                    .trim_end()
                    .to_owned();
                (Base::Pipe(Box::new(inner)), source)
            }
            other => return self.unexpected(at, other, "operand"),
        };
        let mut chained = false;
        while let Some((field_at, Token::Field(name))) = cursor.peek() {
            if !chained {
                // Where Go says a chain of fields is: at the first field after the operand.
                position = field_at;
                chained = true;
            }
            fields.push(name.clone());
            source.push('.');
            source.push_str(name);
            cursor.next += 1;
        }
        if chained && matches!(base, Base::Constant(_)) {
            return self.fail(at, format!("unexpected . after term {source:?}"));
        }
        Ok(Operand {
            position,
            source,
            base,
            fields,
        })
    }
}

/// `$x :=`, `$i, $x :=` or `$x =` at the start of a pipe.
fn declaration(cursor: &mut Cursor<'_>) -> (Vec<String>, bool) {
    let start = cursor.next;
    let mut names = Vec::new();
    loop {
        cursor.skip_blanks();
        let Some((_, Token::Variable(name))) = cursor.take() else {
            break;
        };
        names.push(name.clone());
        cursor.skip_blanks();
        match cursor.take() {
            Some((_, Token::Comma)) if names.len() < 2 => {}
            Some((_, Token::Declare)) => return (names, false),
            Some((_, Token::Assign)) => return (names, true),
            _ => break,
        }
    }
    cursor.next = start;
    (Vec::new(), false)
}

struct Cursor<'a> {
    tokens: &'a [(usize, Token)],
    next: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<(usize, &'a Token)> {
        self.tokens.get(self.next).map(|(at, token)| (*at, token))
    }

    fn take(&mut self) -> Option<(usize, &'a Token)> {
        let item = self.peek();
        self.next += usize::from(item.is_some());
        item
    }

    fn position(&self) -> Option<usize> {
        self.peek().map(|(at, _)| at)
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some((_, Token::Space))) {
            self.next += 1;
        }
    }
}
