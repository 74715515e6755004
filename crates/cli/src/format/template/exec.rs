//! Runs a parsed template.

use std::rc::Rc;

use super::funcs::{self, CallError};
use super::lex::line_of;
use super::parse::{Base, Block, Node, Operand, Pipe};
use super::value::{API_OBJECT, Object, Value};
use super::{MissingKey, TemplateError};

/// The longest output of one rendering, in bytes: a template cannot exhaust memory.
const MAX_OUTPUT: usize = 256 << 20;

enum Flow {
    Go,
    Break,
    Continue,
}

struct State<'a> {
    text: &'a str,
    missing: MissingKey,
    header: bool,
    out: String,
    variables: Vec<(String, Value)>,
}

pub(super) fn run(
    text: &str,
    nodes: &[Node],
    data: &Value,
    missing: MissingKey,
    header: bool,
) -> Result<String, TemplateError> {
    let mut state = State {
        text,
        missing,
        header,
        out: String::new(),
        variables: vec![("$".to_owned(), data.clone())],
    };
    state.list(nodes, data)?;
    Ok(state.out)
}

impl State<'_> {
    fn fail<T>(&self, operand: &Operand, message: impl AsRef<str>) -> Result<T, TemplateError> {
        let line_start = self.text[..operand.position]
            .rfind('\n')
            .map_or(0, |n| n + 1);
        Err(TemplateError(format!(
            "{}:{}: executing \"\" at <{}>: {}",
            line_of(self.text, operand.position),
            operand.position - line_start,
            operand.source,
            message.as_ref()
        )))
    }

    fn list(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, TemplateError> {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Action(pipe) => {
                    let value = self.pipe(pipe, dot)?;
                    if pipe.variables.is_empty() {
                        self.out.push_str(&value.print());
                    }
                }
                Node::Break => return Ok(Flow::Break),
                Node::Continue => return Ok(Flow::Continue),
                Node::Block {
                    kind,
                    pipe,
                    body,
                    otherwise,
                } => {
                    let scope = self.variables.len();
                    let flow = match kind {
                        Block::Range => self.range(pipe, body, otherwise, dot)?,
                        Block::If | Block::With => {
                            let value = self.pipe(pipe, dot)?;
                            match (value.truth(), kind) {
                                (true, Block::With) => self.list(body, &value)?,
                                (true, _) => self.list(body, dot)?,
                                (false, _) => self.list(otherwise, dot)?,
                            }
                        }
                    };
                    self.variables.truncate(scope);
                    if !matches!(flow, Flow::Go) {
                        return Ok(flow);
                    }
                }
            }
            if self.out.len() > MAX_OUTPUT {
                return Err(TemplateError("1: output too long".to_owned()));
            }
        }
        Ok(Flow::Go)
    }

    fn range(
        &mut self,
        pipe: &Pipe,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<Flow, TemplateError> {
        let value = self.commands(pipe, dot)?;
        let items: Vec<(Value, Value)> = match &value {
            Value::List(items) => (0..)
                .zip(items.iter())
                .map(|(i, v)| (Value::int(i), v.clone()))
                .collect(),
            Value::Object(o) if o.type_name.is_none() => {
                let mut entries: Vec<_> = o.entries.iter().collect();
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                entries
                    .into_iter()
                    .map(|(k, v)| (Value::text(k), v.clone()))
                    .collect()
            }
            // An object whose kind is not known is iterated as the map it may be.
            Value::Object(o) => o
                .entries
                .iter()
                .map(|(k, v)| (Value::text(k), v.clone()))
                .collect(),
            Value::Number(n) if n.is_i64() => {
                let n = n.as_i64().unwrap_or(0).clamp(0, 1 << 20);
                (0..n).map(|i| (Value::int(i), Value::int(i))).collect()
            }
            Value::Nil | Value::NilOf(_) | Value::Missing => Vec::new(),
            other => {
                let message = format!("range can't iterate over {}", other.print());
                return match pipe.commands.first().and_then(|c| c.first()) {
                    Some(operand) => self.fail(operand, message),
                    None => Err(TemplateError(format!("1: {message}"))),
                };
            }
        };
        if items.is_empty() {
            return self.list(otherwise, dot);
        }
        for (key, item) in items {
            let scope = self.variables.len();
            match pipe.variables.as_slice() {
                [value] => self.bind(value, item.clone(), pipe.assigns),
                [index, value] => {
                    self.bind(index, key, pipe.assigns);
                    self.bind(value, item.clone(), pipe.assigns);
                }
                _ => {}
            }
            let flow = self.list(body, &item)?;
            self.variables.truncate(scope);
            if matches!(flow, Flow::Break) {
                break;
            }
        }
        Ok(Flow::Go)
    }

    fn bind(&mut self, name: &str, value: Value, assigns: bool) {
        match self
            .variables
            .iter_mut()
            .rev()
            .find(|(n, _)| assigns && n == name)
        {
            Some((_, old)) => *old = value,
            None => self.variables.push((name.to_owned(), value)),
        }
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, TemplateError> {
        let value = self.commands(pipe, dot)?;
        for name in &pipe.variables {
            self.bind(name, value.clone(), pipe.assigns);
        }
        Ok(value)
    }

    fn commands(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, TemplateError> {
        let mut piped = None;
        for command in &pipe.commands {
            piped = Some(self.command(command, dot, piped)?);
        }
        Ok(piped.unwrap_or(Value::Missing))
    }

    fn command(
        &mut self,
        operands: &[Operand],
        dot: &Value,
        piped: Option<Value>,
    ) -> Result<Value, TemplateError> {
        let Some((first, rest)) = operands.split_first() else {
            return Ok(Value::Missing);
        };
        if let (Base::Function(name), true) = (&first.base, first.fields.is_empty()) {
            // These two do not look at what they do not need.
            if name == "and" || name == "or" {
                let mut value = Value::Nil;
                for operand in rest {
                    value = self.operand(operand, dot, &[])?;
                    if value.truth() == (name == "or") {
                        return Ok(value);
                    }
                }
                return Ok(piped.unwrap_or(value));
            }
            let mut arguments = Vec::with_capacity(rest.len() + 1);
            for operand in rest {
                arguments.push(self.operand(operand, dot, &[])?);
            }
            arguments.extend(piped);
            return funcs::call(name, &arguments, self.header).or_else(|error| match error {
                CallError::Wrong(message) => self.fail(first, message),
                CallError::Failed(message) => {
                    self.fail(first, format!("error calling {name}: {message}"))
                }
            });
        }
        let mut arguments = Vec::new();
        for operand in rest {
            arguments.push(self.operand(operand, dot, &[])?);
        }
        arguments.extend(piped);
        self.operand(first, dot, &arguments)
    }

    fn operand(
        &mut self,
        operand: &Operand,
        dot: &Value,
        arguments: &[Value],
    ) -> Result<Value, TemplateError> {
        let mut value = match &operand.base {
            Base::Dot => dot.clone(),
            Base::Constant(value) => value.clone(),
            Base::Variable(name) => match self.variables.iter().rev().find(|(n, _)| n == name) {
                Some((_, value)) => value.clone(),
                None => {
                    let line = line_of(self.text, operand.position);
                    return Err(TemplateError(format!(
                        "{line}: undefined variable {name:?}"
                    )));
                }
            },
            Base::Pipe(pipe) => self.pipe(pipe, dot)?,
            Base::Function(name) => {
                funcs::call(name, &[], self.header).or_else(|error| match error {
                    CallError::Wrong(m) | CallError::Failed(m) => self.fail(operand, m),
                })?
            }
        };
        let last = operand.fields.len();
        for (index, field) in operand.fields.iter().enumerate() {
            let arguments = if index + 1 == last { arguments } else { &[] };
            value = self.field(operand, &value, field, arguments)?;
        }
        if last == 0 && !arguments.is_empty() {
            let message = format!("can't give argument to non-function {}", operand.source);
            return self.fail(operand, message);
        }
        Ok(value)
    }

    fn field(
        &self,
        operand: &Operand,
        value: &Value,
        field: &str,
        arguments: &[Value],
    ) -> Result<Value, TemplateError> {
        let Value::Object(object) = value else {
            return match value {
                Value::Nil => self.fail(
                    operand,
                    format!("nil pointer evaluating interface {{}}.{field}"),
                ),
                Value::Missing | Value::NilOf("map[]") => Ok(Value::Missing),
                other => self.fail(
                    operand,
                    format!("can't evaluate field {field} in type {}", other.type_name()),
                ),
            };
        };
        if let Some(result) = method(object, field, arguments) {
            return result.or_else(|message| self.fail(operand, message));
        }
        // Go's names differ from the API's in case only (`.ID` for `Id`, `.NanoCPUs`).
        let api = object.type_name == Some(API_OBJECT);
        let exact = object.entries.iter().find(|(name, _)| name == field);
        let found = exact.or_else(|| {
            object
                .entries
                .iter()
                .find(|(name, _)| api && name.eq_ignore_ascii_case(field))
        });
        if let Some((_, found)) = found {
            if !arguments.is_empty() {
                return self.fail(
                    operand,
                    format!("{field} has arguments but cannot be invoked as function"),
                );
            }
            return Ok(found.clone());
        }
        match (object.type_name, self.missing) {
            // The Docker CLI looks once more in the answer as a map, and says this.
            (Some(API_OBJECT), MissingKey::Error) => {
                self.fail(operand, format!("map has no entry for key {field:?}"))
            }
            (Some(name), _) => self.fail(
                operand,
                format!("can't evaluate field {field} in type {name}"),
            ),
            (None, _) => Ok(Value::Missing),
        }
    }
}

/// Calls a method that takes a key.
fn method(object: &Rc<Object>, name: &str, arguments: &[Value]) -> Option<Result<Value, String>> {
    let (_, table) = object.lookups.iter().find(|(method, _)| *method == name)?;
    Some(match arguments {
        [Value::Text(key)] => Ok(Value::text(
            table
                .get(key.as_ref())
                .map(String::as_str)
                .unwrap_or_default(),
        )),
        _ => Err(format!(
            "wrong number of args for {name}: want 1 got {}",
            arguments.len()
        )),
    })
}
