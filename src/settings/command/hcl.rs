//! HCL as Consul's own files use it: the first version of the language, which no kept Rust library reads (those there are
//! read the second, which refuses quoted keys and bare objects).
//!
//! Takes text, gives a tree like JSON's. Tolerant: what Consul would refuse may pass, because Consul judges its files itself.
//! Pure, never panics, and goes at most [`DEPTH`] deep.

use serde_json::{Map, Value};
use std::iter::Peekable;
use std::str::Chars;
use thiserror::Error;

/// Where and why reading stopped. It quotes nothing of the text, which may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}: {why}")]
pub struct HclError {
    /// From 1.
    pub line: usize,
    /// What was expected.
    pub why: &'static str,
}

/// Consul's own configuration nests about five deep.
const DEPTH: usize = 32;

/// Reads a file.
///
/// # Errors
/// [`HclError`].
pub fn parse(text: &str) -> Result<Value, HclError> {
    let mut reader = Reader { rest: text.chars().peekable(), line: 1 };
    let all = reader.body(None, 0)?;
    Ok(Value::Object(all))
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    line: usize,
}

// === impl Reader ===

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    fn error<T>(&self, why: &'static str) -> Result<T, HclError> {
        Err(HclError { line: self.line, why })
    }

    /// Skips white space and comments; commas too, which may stand between any two items.
    fn skip(&mut self, commas: bool) -> Result<(), HclError> {
        loop {
            match self.rest.peek() {
                Some(c) if c.is_whitespace() || (commas && *c == ',') => {
                    self.next();
                }
                Some('#') => self.skip_line(),
                Some('/') => {
                    self.next();
                    match self.next() {
                        Some('/') => self.skip_line(),
                        Some('*') => self.skip_block()?,
                        _ => return self.error("a comment was expected"),
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    fn skip_line(&mut self) {
        while self.next().is_some_and(|c| c != '\n') {}
    }

    fn skip_block(&mut self) -> Result<(), HclError> {
        let mut star = false;
        loop {
            match self.next() {
                Some('/') if star => return Ok(()),
                Some(c) => star = c == '*',
                None => return self.error("a comment is not closed"),
            }
        }
    }

    /// Items up to `end`; a key that stands several times with objects becomes a list of them.
    fn body(&mut self, end: Option<char>, depth: usize) -> Result<Map<String, Value>, HclError> {
        if depth > DEPTH {
            return self.error("it is nested too deep");
        }
        let mut all = Map::new();
        loop {
            self.skip(true)?;
            match self.rest.peek().copied() {
                None if end.is_none() => return Ok(all),
                None => return self.error("a brace is not closed"),
                Some(c) if Some(c) == end => {
                    self.next();
                    return Ok(all);
                }
                Some(_) => {
                    let key = self.key()?;
                    let value = self.after_key(depth)?;
                    match (all.remove(&key), value) {
                        (Some(Value::Object(old)), Value::Object(new)) => {
                            all.insert(key, Value::Array(vec![old.into(), new.into()]))
                        }
                        (Some(Value::Array(mut old)), Value::Object(new)) => {
                            old.push(new.into());
                            all.insert(key, Value::Array(old))
                        }
                        (_, value) => all.insert(key, value),
                    };
                }
            }
        }
    }

    fn key(&mut self) -> Result<String, HclError> {
        if self.rest.peek() == Some(&'"') {
            return self.quoted();
        }
        let key = self.bare();
        if key.is_empty() { self.error("a key was expected") } else { Ok(key) }
    }

    fn bare(&mut self) -> String {
        let mut word = String::new();
        while let Some(c) =
            self.rest.peek().copied().filter(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '+'))
        {
            self.next();
            word.push(c);
        }
        word
    }

    /// `= value`, `: value`, `{ … }`, or a label and a block.
    fn after_key(&mut self, depth: usize) -> Result<Value, HclError> {
        self.skip(false)?;
        match self.rest.peek() {
            Some('=' | ':') => {
                self.next();
                self.skip(false)?;
                self.value(depth)
            }
            Some('{') => self.value(depth),
            Some('"') => {
                let label = self.quoted()?;
                let mut labelled = Map::new();
                labelled.insert(label, self.nested_label(depth)?);
                Ok(labelled.into())
            }
            _ => self.error("= or { was expected"),
        }
    }

    fn nested_label(&mut self, depth: usize) -> Result<Value, HclError> {
        if depth > DEPTH {
            return self.error("it is nested too deep");
        }
        self.skip(false)?;
        match self.rest.peek() {
            Some('{') => self.value(depth),
            Some('"') => {
                let label = self.quoted()?;
                let mut labelled = Map::new();
                labelled.insert(label, self.nested_label(depth + 1)?);
                Ok(labelled.into())
            }
            _ => self.error("{ was expected"),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, HclError> {
        match self.rest.peek() {
            Some('{') => {
                self.next();
                self.body(Some('}'), depth + 1).map(Value::Object)
            }
            Some('[') => {
                self.next();
                self.items(depth + 1)
            }
            Some('"') => self.quoted().map(Value::String),
            Some('<') => self.heredoc().map(Value::String),
            Some(_) => {
                let word = self.bare();
                match word.as_str() {
                    "" => self.error("a value was expected"),
                    "true" => Ok(Value::Bool(true)),
                    "false" => Ok(Value::Bool(false)),
                    _ => Ok(word.parse::<serde_json::Number>().map_or(Value::String(word), Value::Number)),
                }
            }
            None => self.error("a value was expected"),
        }
    }

    fn items(&mut self, depth: usize) -> Result<Value, HclError> {
        if depth > DEPTH {
            return self.error("it is nested too deep");
        }
        let mut all = Vec::new();
        loop {
            self.skip(true)?;
            match self.rest.peek() {
                Some(']') => {
                    self.next();
                    return Ok(Value::Array(all));
                }
                None => return self.error("a bracket is not closed"),
                Some(_) => all.push(self.value(depth)?),
            }
        }
    }

    fn quoted(&mut self) -> Result<String, HclError> {
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(text),
                Some('\\') => match self.next() {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some(c) => text.push(c),
                    None => return self.error("a string is not closed"),
                },
                Some('\n') | None => return self.error("a string is not closed"),
                Some(c) => text.push(c),
            }
        }
    }

    /// `<<EOF` and `<<-EOF`, whose closing word may be indented.
    fn heredoc(&mut self) -> Result<String, HclError> {
        self.next();
        if self.next() != Some('<') {
            return self.error("<< was expected");
        }
        let mut head = self.text_line().unwrap_or_default();
        let dedented = head.strip_prefix('-').map(str::to_owned);
        let indented = dedented.is_some();
        head = dedented.unwrap_or(head);
        let word = head.trim().to_owned();
        if word.is_empty() {
            return self.error("a heredoc needs a word");
        }
        let mut text = String::new();
        loop {
            let Some(line) = self.text_line() else { return self.error("a heredoc is not closed") };
            let end = if indented { line.trim() } else { line.trim_end() };
            if end == word {
                return Ok(text);
            }
            text.push_str(&line);
            text.push('\n');
        }
    }

    fn text_line(&mut self) -> Option<String> {
        self.rest.peek()?;
        let mut line = String::new();
        while let Some(c) = self.next() {
            if c == '\n' {
                break;
            }
            line.push(c);
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn consuls_own_kind_of_file_is_read() {
        let text = r#"
            # a server
            server = true
            "node_name" = "a\"b"   // quoted key
            retry_join = ["a", "b",]
            ports { http = 8500, https = -1 }
            ports { grpc = 8502 }
            performance = { raft_multiplier = 1 }
            /* block
               comment */
            acl { tokens { agent = "x" } }
            service "web" { port = 80 }
            note = <<-EOF
              two
              lines
              EOF
            limit = 1.5
            bare : word
        "#;
        let tree = parse(text).unwrap();
        assert_eq!(tree["server"], json!(true));
        assert_eq!(tree["node_name"], json!("a\"b"));
        assert_eq!(tree["retry_join"], json!(["a", "b"]));
        assert_eq!(tree["ports"], json!([{"http": 8500, "https": -1}, {"grpc": 8502}]));
        assert_eq!(tree["performance"]["raft_multiplier"], json!(1));
        assert_eq!(tree["acl"]["tokens"]["agent"], json!("x"));
        assert_eq!(tree["service"]["web"]["port"], json!(80));
        assert_eq!(tree["note"], json!("              two\n              lines\n"));
        assert_eq!((&tree["limit"], &tree["bare"]), (&json!(1.5), &json!("word")));
    }

    #[test]
    fn what_is_not_closed_is_told_with_its_line() {
        for (text, line) in [
            ("a {\n b = 1\n", 3),
            ("a = \"x\n", 2),
            ("a = [1,\n2", 2),
            ("/* x", 1),
            ("a = <<EOF\nx\n", 3),
            ("a", 1),
            ("= 1", 1),
        ] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text:?}");
        }
        assert!(parse(&"a {".repeat(100_000)).is_err());
        assert!(parse(&format!("a = {}", "[".repeat(100_000))).is_err());
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[ -~]{0,12}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-z_]{1,8}", inner, 0..4)
                    .prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic_or_hang(text in "(\\PC|\n){0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_as_json_is_read_as_the_same_tree(all in proptest::collection::btree_map("[a-z_]{1,8}", tree(), 0..5)) {
            let value = Value::Object(all.into_iter().collect());
            let inner = value.to_string();
            let text = inner.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap();
            prop_assert_eq!(parse(text).unwrap(), value);
        }
    }
}
