//! Lists: rows rendered by a format, as a table, as JSON lines, or by the user's template.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::tabs;
use super::template::{MissingKey, Object, Template, TemplateError, Value};
use crate::error::CliError;
use crate::output;

/// The format of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    table: bool,
    template: String,
}

impl Format {
    /// Understands `table TEMPLATE`, `json` and a template.
    pub fn new(source: &str) -> Self {
        let table = source.starts_with("table");
        let template = match source {
            "json" => "{{json .}}",
            source if table => &source["table".len()..],
            source => source,
        };
        let template = template
            .trim_matches(' ')
            .replace("\\t", "\t")
            .replace("\\n", "\n");
        Self { table, template }
    }

    /// The format that the user asked for: nothing or `table` is `default`.
    pub fn choose(source: &str, default: &str) -> Self {
        Self::new(if source.is_empty() || source == "table" {
            default
        } else {
            source
        })
    }

    /// True if it makes a table.
    pub fn is_table(&self) -> bool {
        self.table
    }

    /// True if the template's text has `part`.
    pub fn contains(&self, part: &str) -> bool {
        self.template.contains(part)
    }

    /// Adds to the template's end.
    pub fn append(&mut self, part: &str) {
        self.template.push_str(part);
    }
}

/// One row: what the template's fields are.
#[derive(Clone, Debug, Default)]
pub struct Row {
    fields: Vec<(&'static str, Value)>,
    lookups: Vec<(&'static str, BTreeMap<String, String>)>,
}

impl Row {
    /// With a field of text.
    pub fn text(self, name: &'static str, text: impl AsRef<str>) -> Self {
        self.value(name, Value::text(text))
    }

    /// With a field.
    pub fn value(mut self, name: &'static str, value: Value) -> Self {
        self.fields.push((name, value));
        self
    }

    /// With another text in a field that it has.
    pub fn replace(mut self, name: &'static str, text: impl AsRef<str>) -> Self {
        self.fields.retain(|(field, _)| *field != name);
        self.text(name, text)
    }

    /// With a method that looks a key up.
    pub fn lookup(mut self, name: &'static str, table: BTreeMap<String, String>) -> Self {
        self.lookups.push((name, table));
        self
    }

    fn into_value(mut self, type_name: &'static str) -> Value {
        // Docker sorts the keys of a row in its JSON.
        self.fields.sort_by_key(|(name, _)| *name);
        let entries = self
            .fields
            .into_iter()
            .map(|(n, v)| (n.to_owned(), v))
            .collect();
        Value::Object(Rc::new(Object {
            type_name: Some(type_name),
            entries,
            lookups: self.lookups,
        }))
    }
}

/// A list's printer: its format, parsed, and the titles of its columns.
pub struct Printer {
    format: Format,
    template: Template,
    titles: &'static [(&'static str, &'static str)],
    type_name: &'static str,
}

/// A row as the data of a template.
pub fn sample(row: Row, type_name: &'static str) -> Value {
    row.into_value(type_name)
}

/// What is wrong with a template, as lists say it.
fn parsing_error(error: TemplateError) -> CliError {
    CliError::msg(format!("template parsing error: {error}"))
}

impl Printer {
    /// A printer of rows with the columns `titles` (field, title). `type_name` is what
    /// messages call a row.
    pub fn new(
        format: Format,
        titles: &'static [(&'static str, &'static str)],
        type_name: &'static str,
    ) -> Result<Self, CliError> {
        let template = Template::parse(&format.template).map_err(parsing_error)?;
        Ok(Self {
            format,
            template,
            titles,
            type_name,
        })
    }

    /// The whole list as text.
    pub fn render(&self, rows: impl IntoIterator<Item = Row>) -> Result<String, CliError> {
        let mut text = String::new();
        if self.format.table {
            let titles = self
                .titles
                .iter()
                .fold(Row::default(), |row, (name, title)| row.text(name, title));
            let titles = titles
                .lookup("Label", BTreeMap::new())
                .into_value(self.type_name);
            // A template that cannot be run on titles has none.
            text.push_str(&self.template.render_header(&titles).unwrap_or_default());
            text.push('\n');
        }
        for row in rows {
            let row = row.into_value(self.type_name);
            let line = self
                .template
                .render(&row, MissingKey::NoValue)
                .map_err(parsing_error)?;
            text.push_str(&line);
            text.push('\n');
        }
        Ok(if self.format.table {
            tabs::TABLE.align(&text)
        } else {
            text
        })
    }

    /// Prints the whole list.
    pub fn print(&self, rows: impl IntoIterator<Item = Row>) -> Result<(), CliError> {
        output::emit(self.render(rows)?)
    }
}

/// The first `length` bytes of `text`, a little fewer if that splits a character.
pub fn prefix(text: &str, length: usize) -> &str {
    let mut end = length.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The short form of an ID: 12 digits, without the algorithm.
pub fn short_id(id: &str) -> &str {
    let digits = id.split_once(':').map_or(id, |(_, digits)| digits);
    prefix(digits, 12)
}

/// `text`, or its beginning and an ellipsis, in at most `width` columns.
pub fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(width.saturating_sub(1)).collect();
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TITLES: &[(&str, &str)] = &[("ID", "CONTAINER ID"), ("Names", "NAMES")];

    fn row(id: &str, name: &str) -> Row {
        let labels = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        Row::default()
            .text("Names", name)
            .text("ID", id)
            .lookup("Label", labels)
    }

    fn render(source: &str) -> String {
        Printer::new(Format::new(source), TITLES, "*t")
            .unwrap()
            .render([row("c0ffee", "one")])
            .unwrap()
    }

    #[test]
    fn formats() {
        assert_eq!(
            render("table {{.ID}}\\t{{.Names}}"),
            "CONTAINER ID   NAMES\nc0ffee         one\n"
        );
        assert_eq!(render("table {{upper .Names}}"), "NAMES\nONE\n");
        assert_eq!(render("json"), "{\"ID\":\"c0ffee\",\"Names\":\"one\"}\n");
        assert_eq!(render("{{.Names}}={{.Label \"k\"}}"), "one=v\n");
    }

    #[test]
    fn shortening() {
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(ellipsis("0123456789", 5), "0123…");
        assert_eq!(ellipsis("01234", 5), "01234");
        assert_eq!(prefix("é", 1), "");
    }
}
