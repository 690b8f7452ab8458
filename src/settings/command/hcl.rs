//! Which values does an HCL text hold? Takes the text of a file or of a `-hcl` fragment, gives a tree of JSON values.
//!
//! It reads HCL version 1 as Consul does (<https://github.com/hashicorp/hcl/tree/hcl1>): comments, `key = value`,
//! `key { … }` and `key "label" { … }`, lists, heredocs, numbers, strings with escapes, and JSON when the text starts
//! with `{`. It is more tolerant than Consul (commas may be missing), because Consul judges the same text itself.
//! It never runs an interpolation: `${…}` stays as it stands. It fails with the line and a fixed sentence that quotes
//! nothing of the text, since the text may hold keys and tokens.

use serde_json::{Map, Number, Value};

/// How deep objects, lists and labels may nest. Consul's own configuration nests five deep; without a limit a
/// hostile text could exhaust the stack.
const DEEPEST: usize = 64;

/// What JSON forbids in a string, and Go's reader with it.
pub(super) const LINE_END: &str = "a string has a line end in it, or another control character";

/// Why a text could not be read, without a word of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// The line, counted from 1.
    pub(super) line: usize,
    /// What is wrong there.
    pub(super) what: String,
}

/// Reads `text` into a JSON object. A text that starts with `{` is JSON, as in Consul.
pub(super) fn read(text: &str) -> Result<Value, Unreadable> {
    if text.trim_start().starts_with('{') {
        return json(text);
    }
    let text = text.replace("\r\n", "\n");
    let mut reader = Reader { rest: &text, all: &text, depth: 0 };
    reader.items(false).map(Value::Object).map_err(|what| Unreadable { line: reader.line(), what: what.to_owned() })
}

/// Reads `text` as JSON.
pub(super) fn json(text: &str) -> Result<Value, Unreadable> {
    serde_json::from_str(text).map_err(|error| {
        // Only the kind: serde_json's own sentences may quote a value.
        let what = if error.is_eof() {
            "it ends too early"
        } else if error.to_string().starts_with("control character") {
            LINE_END
        } else {
            "it is not JSON"
        };
        // A line end counts as the first of the next line.
        let line = error.line() - usize::from(what == LINE_END && error.column() == 0);
        Unreadable { line, what: what.to_owned() }
    })
}

/// Puts `value` at `key` as Consul's decoder does: objects merge, lists append, of other values the last one counts.
fn put(map: &mut Map<String, Value>, key: String, value: Value) {
    match (map.get_mut(&key), value) {
        (Some(Value::Object(old)), Value::Object(new)) => {
            for (inner, value) in new {
                put(old, inner, value);
            }
        }
        (Some(Value::Array(old)), Value::Array(new)) => old.extend(new),
        (_, value) => {
            map.insert(key, value);
        }
    }
}

/// What is left of the text. Every failure is a fixed sentence; the line is counted once, at the end.
struct Reader<'a> {
    rest: &'a str,
    all: &'a str,
    depth: usize,
}

type Read<T> = Result<T, &'static str>;

impl Reader<'_> {
    fn line(&self) -> usize {
        let read = self.all.len() - self.rest.len();
        1 + self.all.bytes().take(read).filter(|byte| *byte == b'\n').count()
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    /// Takes `text` if it comes next.
    fn take(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Takes characters as long as they are `wanted`.
    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(next) = self.peek().filter(|next| wanted(*next)) {
            taken.push(next);
            self.bump();
        }
        taken
    }

    /// Skips white space and comments.
    fn blank(&mut self) -> Read<()> {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
            if self.take("#") || self.take("//") {
                self.take_while(|next| next != '\n');
            } else if self.take("/*") {
                let (_, rest) = self.rest.split_once("*/").ok_or("a comment does not end")?;
                self.rest = rest;
            } else {
                return Ok(());
            }
        }
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<T> {
        if self.depth >= DEEPEST {
            return Err("it nests too deep");
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// The items of an object whose `{` is read (`braced`), or of the whole text.
    fn items(&mut self, braced: bool) -> Read<Map<String, Value>> {
        let mut map = Map::new();
        loop {
            self.blank()?;
            if braced && self.take("}") {
                return Ok(map);
            }
            if self.rest.is_empty() {
                return if braced { Err("a `}` is missing") } else { Ok(map) };
            }
            let (key, value) = self.item()?;
            put(&mut map, key, value);
            self.blank()?;
            self.take(",");
        }
    }

    /// `key = value`, `key { … }` or `key "label" { … }`.
    fn item(&mut self) -> Read<(String, Value)> {
        let key = self.key()?;
        let mut labels = Vec::new();
        let mut value = loop {
            self.blank()?;
            if labels.is_empty() && self.take("=") {
                self.blank()?;
                break self.value()?;
            }
            if self.take("{") {
                break Value::Object(self.deeper(|reader| reader.items(true))?);
            }
            if labels.len() + self.depth >= DEEPEST {
                return Err("a key has too many labels");
            }
            match self.peek() {
                Some(next) if next == '"' || starts_word(next) => labels.push(self.key()?),
                _ => return Err("a key has neither `=` nor `{` after it"),
            }
        };
        for label in labels.into_iter().rev() {
            value = Value::Object(Map::from_iter([(label, value)]));
        }
        Ok((key, value))
    }

    fn key(&mut self) -> Read<String> {
        match self.peek() {
            Some('"') => self.string(),
            Some(next) if starts_word(next) => Ok(self.word()),
            _ => Err("there is no key where one is expected"),
        }
    }

    fn word(&mut self) -> String {
        self.take_while(|next| starts_word(next) || next.is_numeric() || next == '-' || next == '.')
    }

    fn value(&mut self) -> Read<Value> {
        match self.peek() {
            Some('"') => self.string().map(Value::String),
            Some('<') => self.heredoc().map(Value::String),
            Some('[') => self.deeper(Self::list),
            Some('{') => {
                self.bump();
                self.deeper(|reader| reader.items(true)).map(Value::Object)
            }
            Some(next) if next.is_ascii_digit() || next == '-' || next == '.' => self.number().map(Value::Number),
            Some(next) if starts_word(next) => match self.word().as_str() {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                _ => Err("a word without quotes stands where a value is expected"),
            },
            _ => Err("there is no value where one is expected"),
        }
    }

    fn list(&mut self) -> Read<Value> {
        self.take("[");
        let mut list = Vec::new();
        loop {
            self.blank()?;
            while self.take(",") {
                self.blank()?;
            }
            if self.take("]") {
                return Ok(Value::Array(list));
            }
            if self.rest.is_empty() {
                return Err("a `]` is missing");
            }
            list.push(self.value()?);
        }
    }

    /// Decimal, `0x` hexadecimal, `0…` octal, or a fraction.
    fn number(&mut self) -> Read<Number> {
        const BAD: &str = "a number is not one";
        let sign = if self.take("-") { "-" } else { "" };
        let hex = self.rest.starts_with("0x") || self.rest.starts_with("0X");
        let mut digits = String::new();
        while let Some(next) = self.peek() {
            let exponent = !hex && digits.ends_with(['e', 'E']) && (next == '-' || next == '+');
            if !(next.is_ascii_alphanumeric() || next == '.' || exponent) {
                break;
            }
            digits.push(next);
            self.bump();
        }
        let whole = |digits: &str, base| i64::from_str_radix(&format!("{sign}{digits}"), base).map_err(|_| BAD);
        if hex {
            return whole(digits.get(2..).unwrap_or_default(), 16).map(Number::from);
        }
        if digits.contains(['.', 'e', 'E']) {
            let fraction: f64 = format!("{sign}{digits}").parse().map_err(|_| BAD)?;
            return Number::from_f64(fraction).ok_or(BAD);
        }
        let base = if digits.len() > 1 && digits.starts_with('0') { 8 } else { 10 };
        whole(&digits, base).map(Number::from)
    }

    /// A quoted string. Between `${` and its `}` quotes and escapes mean nothing, and a line may end.
    fn string(&mut self) -> Read<String> {
        const OPEN: &str = "a string does not end";
        self.take("\"");
        let mut bytes = Vec::new();
        let mut braces = 0_usize;
        loop {
            if braces == 0 && self.take("${") {
                braces = 1;
                bytes.extend_from_slice(b"${");
                continue;
            }
            match self.bump().ok_or(OPEN)? {
                '"' if braces == 0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                '\n' if braces == 0 => return Err(OPEN),
                '\\' if braces == 0 => self.escape(&mut bytes)?,
                next => {
                    match next {
                        '{' if braces > 0 => braces += 1,
                        '}' => braces = braces.saturating_sub(1),
                        _ => {}
                    }
                    bytes.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
    }

    /// What stands after a backslash. Octal and `\x` name one byte, `\u` and `\U` one character.
    fn escape(&mut self, bytes: &mut Vec<u8>) -> Read<()> {
        const BAD: &str = "a string has an unknown escape";
        let byte = match self.bump().ok_or(BAD)? {
            'a' => 7,
            'b' => 8,
            't' => b'\t',
            'n' => b'\n',
            'v' => 11,
            'f' => 12,
            'r' => b'\r',
            '\\' => b'\\',
            '"' => b'"',
            'x' => u8::try_from(self.digits(2, 16, 0)?).map_err(|_| BAD)?,
            'u' => return self.character(4, bytes),
            'U' => return self.character(8, bytes),
            first => {
                let first = first.to_digit(8).ok_or(BAD)?;
                u8::try_from(self.digits(2, 8, first)?).map_err(|_| BAD)?
            }
        };
        bytes.push(byte);
        Ok(())
    }

    fn character(&mut self, digits: u32, bytes: &mut Vec<u8>) -> Read<()> {
        let number = self.digits(digits, 16, 0)?;
        let character = char::from_u32(number).ok_or("a string names an unknown character")?;
        bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    fn digits(&mut self, count: u32, base: u32, start: u32) -> Read<u32> {
        (0..count).try_fold(start, |number, _| {
            let digit = self.bump().and_then(|next| next.to_digit(base)).ok_or("an escape has too few digits")?;
            Ok(number.wrapping_mul(base).wrapping_add(digit))
        })
    }

    /// `<<EOF` or `<<-EOF`, which takes away the indentation of its last line when every line has it.
    fn heredoc(&mut self) -> Read<String> {
        if !self.take("<<") {
            return Err("a `<` stands alone");
        }
        let indented = self.take("-");
        let anchor = self.take_while(|next| starts_word(next) || next.is_numeric());
        if anchor.is_empty() || !self.take("\n") {
            return Err("a heredoc has no name");
        }
        let mut lines = Vec::new();
        let prefix = loop {
            if self.rest.is_empty() {
                return Err("a heredoc does not end");
            }
            let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
            // Consul counts the `-` of `<<-` as part of the name here: without indentation such a name closes nothing.
            let long_enough = line.len() >= anchor.len() + usize::from(indented);
            let start = line.trim_end_matches('\r').strip_suffix(anchor.as_str()).filter(|_| long_enough);
            self.rest = rest;
            match start {
                Some(start) if start.chars().all(|next| next.is_ascii_whitespace()) => break start,
                _ => lines.push(line),
            }
        };
        let ours = indented && lines.iter().all(|line| line.starts_with(prefix));
        let mut text = String::new();
        for line in lines {
            text.push_str(if ours { line.strip_prefix(prefix).unwrap_or(line) } else { line });
            text.push('\n');
        }
        if !indented {
            // Consul keeps what stands before the closing word.
            text.push_str(prefix);
        }
        Ok(text)
    }
}

fn starts_word(next: char) -> bool {
    next == '_' || next.is_alphabetic()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn reads(text: &str, wanted: Value) {
        assert_eq!(read(text), Ok(wanted), "{text}");
    }

    #[track_caller]
    fn refuses(text: &str, line: usize, what: &str) {
        assert_eq!(read(text), Err(Unreadable { line, what: what.to_owned() }), "{text}");
    }

    #[test]
    fn comments_of_all_three_kinds_are_skipped() {
        reads(
            "# a\nserver = true // b\n/* c\n } */ ports { /* d */ http = 1 # e\n}",
            json!({"server": true, "ports": {"http": 1}}),
        );
        reads("# the end", json!({}));
    }

    #[test]
    fn an_object_may_come_with_or_without_an_equals_sign_and_with_quoted_keys() {
        let wanted = json!({"ports": {"http": 8500, "https": -1}});
        reads("ports { http = 8500, https = -1 }", wanted.clone());
        reads("ports = {\n  \"http\" = 8500\n  https = -1,\n}", wanted.clone());
        reads("\"ports\" {\n  http = 8500\n}\nports { https = -1 }", wanted);
    }

    #[test]
    fn labels_become_nested_objects() {
        reads(r#"service "web" "v1" { port = 80 }"#, json!({"service": {"web": {"v1": {"port": 80}}}}));
    }

    #[test]
    fn lists_take_trailing_commas_comments_and_nesting() {
        reads("a = [1, \"b\", # c\n [true,], {d = 2},\n]", json!({"a": [1, "b", [true], {"d": 2}]}));
        reads("a = []", json!({"a": []}));
    }

    #[test]
    fn a_key_said_twice_keeps_the_last_scalar_and_appends_lists() {
        reads("a = 1\na = 2\nb = [1]\nb = [2]", json!({"a": 2, "b": [1, 2]}));
    }

    #[test]
    fn numbers_may_be_hexadecimal_octal_negative_or_fractions() {
        reads(
            "a = 0x1F\nb = 010\nc = -3\nd = 1.5\ne = 2e3\nf = 1E-2\ng = 0",
            json!({"a": 31, "b": 8, "c": -3, "d": 1.5, "e": 2000.0, "f": 0.01, "g": 0}),
        );
        refuses("a = 99999999999999999999", 1, "a number is not one");
        refuses("a = 1x", 1, "a number is not one");
        refuses("a = -", 1, "a number is not one");
        refuses("a = 08", 1, "a number is not one");
    }

    #[test]
    fn strings_know_escapes_and_leave_interpolations_alone() {
        reads(r#"a = "x\ty\"z\\ \u00e9 \x41 \101 \U0001F600""#, json!({"a": "x\ty\"z\\ é A A 😀"}));
        reads(r#"a = "${ f("x", "{}") } and ${y}""#, json!({"a": r#"${ f("x", "{}") } and ${y}"#}));
        reads(r#"a = "{{ GetInterfaceIP \"eth0\" }}""#, json!({"a": "{{ GetInterfaceIP \"eth0\" }}"}));
        refuses("a = \"x\nb = 1", 2, "a string does not end");
        refuses(r#"a = "\q""#, 1, "a string has an unknown escape");
        refuses(r#"a = "\777""#, 1, "a string has an unknown escape");
        refuses(r#"a = "\u12""#, 1, "an escape has too few digits");
    }

    #[test]
    fn heredocs_keep_their_lines_and_the_indented_ones_lose_the_common_indentation() {
        reads("a = <<EOF\n x\n\ny\nEOF\nb = 1", json!({"a": " x\n\ny\n", "b": 1}));
        reads("a = <<-EOF\n    x\n      y\n    EOF\n", json!({"a": "x\n  y\n"}));
        reads("a = <<-EOF\n  x\n    EOF\n", json!({"a": "  x\n"}));
        reads("a = [<<A\nA\n, <<B\nb\nB\n]", json!({"a": ["", "b\n"]}));
        refuses("a = <<EOF\nx\n", 3, "a heredoc does not end");
        refuses("a = <<-EOF\nx\nEOF\n", 4, "a heredoc does not end");
        refuses("a = << EOF\nx\nEOF\n", 1, "a heredoc has no name");
    }

    #[test]
    fn windows_line_ends_change_nothing() {
        reads("a = <<EOF\r\nx\r\nEOF\r\nb = 1\r\n", json!({"a": "x\n", "b": 1}));
    }

    #[test]
    fn a_text_that_starts_with_a_brace_is_json() {
        reads(" {\"a\": {\"b\": [1]}}", json!({"a": {"b": [1]}}));
        refuses("{\"a\": \"s3cret\" \"b\"}", 1, "it is not JSON");
    }

    #[test]
    fn a_failure_names_its_line_and_quotes_nothing() {
        refuses("encrypt = \"k\"\nserver yes", 2, "a key has neither `=` nor `{` after it");
        refuses("server = yes", 1, "a word without quotes stands where a value is expected");
        refuses("a {\nb = 1\n", 3, "a `}` is missing");
        refuses("a = [1", 1, "a `]` is missing");
        refuses("= 1", 1, "there is no key where one is expected");
        refuses("a = ", 1, "there is no value where one is expected");
        refuses("/* x", 1, "a comment does not end");
        refuses("}", 1, "there is no key where one is expected");
    }

    #[test]
    fn a_very_deep_text_is_refused_instead_of_exhausting_the_stack() {
        refuses(&format!("a = {}", "[".repeat(100_000)), 1, "it nests too deep");
        refuses(&"a {".repeat(100_000), 1, "it nests too deep");
        refuses(&format!("a{}", " b".repeat(100_000)), 1, "a key has too many labels");
        let labels = |count: usize| format!("a{} {{}}", " b".repeat(count));
        assert!(read(&labels(10)).is_ok());
    }

    fn trees() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
            // Quarters: serde_json does not read every fraction back to the last bit.
            any::<i32>().prop_map(|quarters| Value::from(f64::from(quarters) / 4.0)),
        ];
        let tree = leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[a-z_][a-z0-9_.-]{0,8}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        prop::collection::btree_map("\\PC{1,8}", tree, 0..6).prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    /// Writes a tree as HCL, every object as a block.
    fn written(value: &Value, top: bool) -> String {
        match value {
            Value::Object(map) => {
                let items: String = map
                    .iter()
                    .map(|(key, value)| {
                        let sign = if value.is_object() { "" } else { "=" };
                        format!("{} {sign} {}\n", quoted(key), written(value, false))
                    })
                    .collect();
                if top { items } else { format!("{{\n{items}}}") }
            }
            Value::Array(list) => {
                format!("[{}]", list.iter().map(|value| written(value, false) + ", ").collect::<String>())
            }
            Value::String(text) => quoted(text),
            Value::Number(number) if number.is_f64() => format!("{:?}", number.as_f64().unwrap()),
            other => other.to_string(),
        }
    }

    fn quoted(text: &str) -> String {
        let inner: String = text
            .chars()
            .map(|next| match next {
                '"' | '\\' => format!("\\{next}"),
                '$' => "\\x24".to_owned(),
                other => other.to_string(),
            })
            .collect();
        format!("\"{inner}\"")
    }

    proptest! {
        #[test]
        fn invariant_a_written_tree_is_read_back(tree in trees()) {
            prop_assert_eq!(read(&written(&tree, true)), Ok(tree.clone()));
            prop_assert_eq!(read(&tree.to_string()), Ok(tree));
        }

        #[test]
        fn invariant_any_text_is_read_or_refused(text in any::<String>()) {
            let _ = read(&text);
        }

        #[test]
        fn invariant_any_order_of_tokens_is_read_or_refused_with_a_line_of_the_text(
            tokens in prop::collection::vec(prop::sample::select(vec![
                "a", " ", "=", "{", "}", "[", "]", ",", "\"", "\\", "$", "${", "<<", "<<-", "EOF", "\n", "\r\n", "0x", "1", "-", ".", "e",
                "#", "//", "/*", "*/", "true", "é", "\u{0}", "\u{feff}",
            ]), 0..60),
        ) {
            let text = tokens.concat();
            if let Err(failure) = read(&text) {
                prop_assert!(failure.line >= 1 && failure.line <= 1 + text.matches('\n').count(), "{} in {text:?}", failure.line);
            }
        }
    }
}
