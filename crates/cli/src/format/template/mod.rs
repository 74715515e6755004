//! Go's text templates, as `--format` takes them: actions, pipelines, variables, `if`, `with`,
//! `range`, the builtin functions and Docker's. Templates cannot define other templates.
//!
//! The crates that exist lose the order of an object's keys and print lists their own way;
//! scripts compare this output, so it has to be Go's.

mod exec;
mod funcs;
mod lex;
mod parse;
mod value;

pub use value::{Object, Value};

/// What is wrong with a template, or with running it, in Go's words.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("template: :{0}")]
pub struct TemplateError(pub(self) String);

/// What a missing key of a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingKey {
    /// Printed as `<no value>`.
    NoValue,
    /// An error.
    Error,
}

/// A parsed template.
#[derive(Debug)]
pub struct Template {
    text: String,
    nodes: Vec<parse::Node>,
}

impl Template {
    /// Parses `text`.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let nodes = parse::parse(text)?;
        Ok(Self {
            text: text.to_owned(),
            nodes,
        })
    }

    /// Runs the template over `data`.
    pub fn render(&self, data: &Value, missing: MissingKey) -> Result<String, TemplateError> {
        exec::run(&self.text, &self.nodes, data, missing, false)
    }

    /// Runs the template over a table's column titles: functions leave them as they are.
    pub fn render_header(&self, data: &Value) -> Result<String, TemplateError> {
        exec::run(&self.text, &self.nodes, data, MissingKey::NoValue, true)
    }

    /// True if running the template looks at this field of the data: by name, or by taking
    /// the data whole.
    pub fn mentions(&self, field: &str) -> bool {
        parse::mentions(&self.nodes, field)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(text: &str) -> Result<String, String> {
        let data = Value::from_api(&json!({
            "Id": "c0ffee", "Name": "/one", "N": 3, "F": 1.5, "On": true, "Nil": null,
            "State": {"Status": "running", "Pid": 7},
            "Args": ["a", "b"],
            "Labels": {"x": "1", "a.b": "2"},
            "Empty": [],
        }));
        Template::parse(text)
            .and_then(|t| t.render(&data, MissingKey::Error))
            .map_err(|e| e.to_string())
    }

    fn good(text: &str) -> String {
        render(text).unwrap()
    }

    #[test]
    fn fields_and_values() {
        assert_eq!(good("{{.Name}} {{ .State.Pid }}"), "/one 7");
        assert_eq!(
            good("{{.Args}} {{.Labels}} {{.Nil}}"),
            "[a b] map[a.b:2 x:1] <nil>"
        );
        assert_eq!(good("{{.State}}"), "{running 7}");
        assert_eq!(good("{{.F}}{{.On}}"), "1.5true");
        assert_eq!(good("{{json .}}").len(), good("{{. | json}}").len());
        assert_eq!(
            good("{{json .Args}}{{json .Id}}{{json .Nil}}"),
            "[\"a\",\"b\"]\"c0ffee\"null"
        );
        assert_eq!(
            good("{{json .State}}"),
            "{\"Status\":\"running\",\"Pid\":7}"
        );
    }

    #[test]
    fn control() {
        assert_eq!(
            good("{{if .On}}y{{else}}n{{end}}{{if .Nil}}y{{else if .N}}z{{end}}"),
            "yz"
        );
        assert_eq!(
            good("{{range .Args}}<{{.}}>{{end}}{{range .Empty}}{{else}}-{{end}}"),
            "<a><b>-"
        );
        assert_eq!(
            good("{{range $i, $v := .Args}}{{$i}}={{$v}},{{end}}"),
            "0=a,1=b,"
        );
        assert_eq!(
            good("{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}"),
            "a.b=2;x=1;"
        );
        assert_eq!(
            good("{{with .State}}{{.Status}}{{$.Id}}{{end}}"),
            "runningc0ffee"
        );
        assert_eq!(good("{{$x := 1}}{{$x = 2}}{{$x}}"), "2");
        assert_eq!(good("a {{- /* c */ -}} b{{/* d */}}"), "ab");
        assert_eq!(good("a {{- .N -}} b"), "a3b");
        assert_eq!(
            good("{{range .Args}}{{if eq . \"a\"}}{{continue}}{{end}}{{.}}{{end}}"),
            "b"
        );
        assert_eq!(good("{{range .Args}}{{.}}{{break}}{{end}}"), "a");
    }

    #[test]
    fn functions() {
        assert_eq!(good("{{index .Labels \"a.b\"}}{{index .Args 1}}"), "2b");
        assert_eq!(
            good("{{len .Args}}{{upper .Id}}{{title \"ab c\"}}"),
            "2C0FFEEAb C"
        );
        assert_eq!(
            good("{{join .Args \"-\"}}{{(split \"a,b\" \",\")}}"),
            "a-b[a b]"
        );
        assert_eq!(
            good("{{truncate .Id 3}}|{{pad .Id 1 2}}|"),
            "c0f| c0ffee  |"
        );
        assert_eq!(
            good("{{printf \"%s:%d %q %v %5s|%-4d|%.1f%%\" .Id .N \"q\" .Args \"r\" 7 .F}}"),
            "c0ffee:3 \"q\" [a b]     r|7   |1.5%"
        );
        assert_eq!(good("{{println .N}}{{print \"a\" 1 2 \"b\"}}"), "3\na1 2b");
        assert_eq!(
            good("{{and .On .N}}{{or .Nil \"d\"}}{{not .On}}"),
            "3dfalse"
        );
        assert_eq!(
            good("{{eq .N 3}}{{ne .Id \"x\"}}{{lt 1 2}}{{ge 1 2}}{{eq 1 2 1}}"),
            "truetruetruefalsetrue"
        );
        assert_eq!(
            good("{{slice .Id 1 3}}{{`raw\\n`}}{{\"\\n\"}}{{'a'}}"),
            "0fraw\\n\n97"
        );
        assert_eq!(good("{{(index .Args 0) | printf \"%s-%s\" \"z\"}}"), "z-a");
        assert_eq!(good("{{lower \"AB\" | printf \"%q\"}}"), "\"ab\"");
    }

    #[test]
    fn errors_have_gos_words() {
        let error = |text: &str| render(text).unwrap_err();
        assert_eq!(
            error("{{foo}}"),
            "template: :1: function \"foo\" not defined"
        );
        assert_eq!(
            error("{{.Foo}}"),
            "template: :1:2: executing \"\" at <.Foo>: map has no entry for key \"Foo\""
        );
        assert_eq!(good("{{.ID}}{{.STATE.pid}}"), "c0ffee7");
        assert_eq!(good("{{.Labels.nope}}"), "<no value>");
        assert_eq!(error("{{.Id"), "template: :1: unclosed action");
        assert_eq!(error("{{if .Id}}"), "template: :1: unexpected EOF");
        assert_eq!(error("{{end}}"), "template: :1: unexpected {{end}}");
        assert_eq!(
            error("{{\"abc}}"),
            "template: :1: unterminated quoted string"
        );
        assert_eq!(error("{{}}"), "template: :1: missing value for command");
        assert!(error("{{index .Args 9}}").contains("index out of range: 9"));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = format!(
            "{}1{}",
            "{{(".to_owned() + &"(".repeat(5000),
            ")".repeat(5001) + "}}"
        );
        assert!(Template::parse(&text).is_err());
        let text = "{{if 1}}".repeat(5000);
        assert!(Template::parse(&text).is_err());
    }
}
