//! Rust source with comments and the content of literals blanked out, so that a rule about code does
//! not trip over prose. Line structure is kept.

/// The code of a file, line by line, up to its test module.
pub struct Code {
    pub lines: Vec<String>,
    /// Lines before `#[cfg(test)]` on a module with a body.
    pub before_tests: usize,
}

impl Code {
    pub fn of(text: &str) -> Self {
        let blanked = blank(text);
        let lines: Vec<String> = blanked.lines().map(str::to_owned).collect();
        let before_tests = lines
            .windows(2)
            .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{'))
            .unwrap_or(lines.len());
        Self { lines, before_tests }
    }

    /// Outside tests, with line numbers from 1.
    pub fn production(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines[..self.before_tests].iter().enumerate().map(|(i, line)| (i + 1, line.as_str()))
    }

    pub fn all(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines.iter().enumerate().map(|(i, line)| (i + 1, line.as_str()))
    }
}

/// The identifiers of a line.
pub fn identifiers(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Keeps code and line ends; comments and literals become spaces.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut after_identifier = false;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if c == '"' {
            string(rest)
        } else if c == 'r' && !after_identifier {
            raw_string(rest)
        } else if c == '\'' {
            character(rest)
        } else {
            0
        };
        if skipped > 0 {
            out.extend(rest[..skipped].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            after_identifier = false;
            rest = &rest[skipped..];
        } else {
            out.push(c);
            after_identifier = c.is_alphanumeric() || c == '_';
            rest = &rest[c.len_utf8()..];
        }
    }
    out.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Block comments nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let here = &text[at..];
        if here.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += here.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// `r"..."`, `r#"..."#` and so on; 0 for anything else that begins with an r.
fn raw_string(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|b| *b == b'#').count();
    let open = 1 + hashes;
    if !text[open..].starts_with('"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    text[open + 1..].find(&close).map_or(text.len(), |at| open + 1 + at + close.len())
}

/// A character literal; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 3),
        Some(_) => chars.next().filter(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_code_is_kept() {
        for (text, code) in [
            ("a(); // tokio", "a();"),
            ("a(\"tokio \\\" // x\"); b()", "a(               ); b()"),
            ("a(r#\"tokio \" x\"#); b()", "a(              ); b()"),
            ("/* tokio /* nested */ still */ b()", "                               b()"),
            ("x('\"'); b(\"tokio\")", "x(   ); b(       )"),
            ("x('\\''); b(\"tokio\")", "x(    ); b(       )"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("for r in rows {}", "for r in rows {}"),
        ] {
            assert_eq!(blank(text).trim_end_matches('\n'), code, "{text}");
        }
    }

    #[test]
    fn lines_keep_their_numbers() {
        let code = Code::of("/* one\n two */\nlet s = \"a\nb\";\nend();\n");
        assert_eq!(code.all().find(|(_, line)| line.contains("end")).map(|(n, _)| n), Some(5));
    }

    #[test]
    fn the_test_module_is_told_from_the_code() {
        let code = Code::of("fn a() {}\n\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n");
        assert_eq!(code.production().count(), 2);
        assert_eq!(code.all().count(), 6);
        assert_eq!(Code::of("#[cfg(test)]\nmod tests;\nfn a() {}\n").production().count(), 3);
    }
}
