//! A line's words: what it is, its name, flags and `key=value`.

use crate::text::BadText;

#[derive(Debug)]
pub(super) struct Words {
    pub line: usize,
    pub kind: String,
    /// Flags have no value.
    words: Vec<(String, Option<String>)>,
}

impl Words {
    /// `None` for a line that says nothing.
    pub fn of(line: usize, text: &str) -> Result<Option<Self>, BadText> {
        let mut words = split(line, text)?.into_iter();
        let Some((kind, value)) = words.next() else { return Ok(None) };
        let words = Self { line, kind, words: words.collect() };
        match value {
            None => Ok(Some(words)),
            Some(value) => Err(words.bad(
                format!("{}={value}", words.kind),
                "what the line describes: cluster, policy, pool, host, vm or rule",
            )),
        }
    }

    pub fn bad(&self, found: impl Into<String>, expected: impl Into<String>) -> BadText {
        BadText { line: self.line, found: found.into(), expected: expected.into() }
    }

    /// The word behind the kind.
    pub fn name(&mut self) -> Result<String, BadText> {
        match self.words.first() {
            Some((_, None)) => Ok(self.words.remove(0).0),
            _ => Err(self.bad(format!("{} without a name", self.kind), format!("a name behind {}", self.kind))),
        }
    }

    /// Whether a flag is there; takes it.
    pub fn flag(&mut self, name: &str) -> bool {
        let at = self.words.iter().position(|(word, value)| word == name && value.is_none());
        at.map(|at| self.words.remove(at)).is_some()
    }

    /// Takes the value of a key.
    pub fn take(&mut self, key: &str) -> Option<String> {
        let at = self.words.iter().position(|(word, value)| word == key && value.is_some())?;
        self.words.remove(at).1
    }

    pub fn has(&self, key: &str) -> bool {
        self.words.iter().any(|(word, value)| word == key && value.is_some())
    }

    /// All that is left, as keys and values.
    pub fn pairs(&mut self, expected: &str) -> Result<Vec<(String, String)>, BadText> {
        let words = std::mem::take(&mut self.words);
        let pair = |(key, value): (String, Option<String>)| match value {
            Some(value) => Ok((key, value)),
            None => Err(self.bad(key, expected)),
        };
        words.into_iter().map(pair).collect()
    }

    /// Nothing may be left.
    pub fn end(&self, known: &str) -> Result<(), BadText> {
        match self.words.first() {
            None => Ok(()),
            Some((key, None)) => Err(self.bad(key, format!("each once, of {known}"))),
            Some((key, Some(value))) => Err(self.bad(format!("{key}={value}"), format!("each once, of {known}"))),
        }
    }
}

fn split(line: usize, text: &str) -> Result<Vec<(String, Option<String>)>, BadText> {
    let bad = |found: &str, expected: &str| BadText { line, found: found.to_owned(), expected: expected.to_owned() };
    let mut words = Vec::new();
    let mut word: Option<(String, Option<String>)> = None;
    let mut chars = text.chars();
    let mut quoted = false;
    while let Some(next) = chars.next() {
        let c = match next {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
                continue;
            }
            '\\' if quoted => match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some(c @ ('"' | '\\')) => c,
                _ => return Err(bad("a lone \\ in quotes", "\\\", \\\\, \\n or \\t")),
            },
            '#' if !quoted => break,
            c if c.is_whitespace() && !quoted => {
                words.extend(word.take());
                continue;
            }
            '=' if !quoted && matches!(word, Some((_, None))) => {
                if let Some((_, value)) = &mut word {
                    *value = Some(String::new());
                }
                continue;
            }
            c => c,
        };
        match word.get_or_insert_default() {
            (_, Some(value)) => value.push(c),
            (key, None) => key.push(c),
        }
    }
    if quoted {
        return Err(bad("quotes that are not closed", "a second \" on the same line"));
    }
    words.extend(word);
    Ok(words)
}

/// `text` so that it is read as one value.
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    // Other control characters could end the line for some readers.
    let text = text.replace(|c: char| c.is_control() && c != '\n' && c != '\t', " ");
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\t', "\\t");
    format!("\"{text}\"")
}
