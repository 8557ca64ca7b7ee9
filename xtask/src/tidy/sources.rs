//! Rules about source text.

use super::lex::{Code, identifiers};
use super::{Source, Violation};

/// Judgement without side effects: the same input gives the same result, in production, in the
/// simulator and when a failure is replayed.
const PURE: [&str; 3] = ["crates/model/src/", "crates/planner/src/", "crates/control/src/"];

/// Identifiers that bring time, chance, order by hash, or the outside world into a pure crate.
const IMPURE: [(&str, &str); 18] = [
    ("tokio", "take events and give commands"),
    ("async", "be a state machine that is stepped"),
    ("SystemTime", "take the time as a parameter"),
    ("Instant", "take the time as a parameter"),
    ("HashMap", "use BTreeMap: the order of a hash map differs from run to run"),
    ("HashSet", "use BTreeSet: the order of a hash set differs from run to run"),
    ("RandomState", "use an ordered collection"),
    ("rand", "take random numbers, or a seed, as a parameter"),
    ("fs", "leave files to agent and server"),
    ("TcpStream", "leave sockets to agent and server"),
    ("TcpListener", "leave sockets to agent and server"),
    ("UdpSocket", "leave sockets to agent and server"),
    ("UnixStream", "leave sockets to agent and server"),
    ("ToSocketAddrs", "leave name resolution to agent and server"),
    ("thread", "leave threads to the caller"),
    ("process", "leave processes to the agent"),
    ("env", "take settings as a parameter"),
    ("println", "give back what is to be said"),
];

const LINES_MAX: usize = 900;
/// Before tests; a file that passes it is asking to be split by meaning.
const CODE_LINES_EXPECTED_MAX: usize = 600;

const PLANNER: &str = "crates/planner/src/";

pub fn check(sources: &[Source]) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        let code = Code::of(&source.text);
        length(source, &mut found);
        unfinished(source, &code, &mut found);
        if PURE.iter().any(|pure| source.path.starts_with(pure)) && !is_test_file(&source.path) {
            pure(source, &code, &mut found);
        }
        if source.path.starts_with(PLANNER) && !is_test_file(&source.path) {
            checker_stands_alone(source, &code, &mut found);
        }
    }
    found
}

pub fn warnings(sources: &[Source]) -> Vec<Violation> {
    sources
        .iter()
        .filter(|source| source.is_rust())
        .filter_map(|source| {
            let lines = Code::of(&source.text).before_tests;
            (lines > CODE_LINES_EXPECTED_MAX)
                .then(|| Violation::at(&source.path, format!("{lines} lines before its tests: split it by meaning")))
        })
        .collect()
}

/// A module of tests in a file of its own.
fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

fn at(source: &Source, line: usize) -> String {
    format!("{}:{line}", source.path)
}

fn length(source: &Source, found: &mut Vec<Violation>) {
    let lines = source.text.lines().count();
    if lines > LINES_MAX {
        let problem = format!("{lines} lines, and a file has {LINES_MAX} at most: split it by meaning");
        found.push(Violation::at(&source.path, problem));
    }
}

fn unfinished(source: &Source, code: &Code, found: &mut Vec<Violation>) {
    for (number, line) in code.all() {
        for (marker, instead) in [
            ("#[ignore", "a test that does not run proves nothing: mend it or remove it"),
            ("todo!", "finish it, or leave it out"),
            ("unimplemented!", "finish it, or leave it out"),
            ("#[allow(", "mend what the lint says instead of silencing it"),
            ("#![allow(", "mend what the lint says instead of silencing it"),
            ("#[expect(", "mend what the lint says instead of silencing it"),
        ] {
            if line.contains(marker) {
                found.push(Violation::at(at(source, number), format!("{marker}: {instead}")));
            }
        }
    }
}

fn pure(source: &Source, code: &Code, found: &mut Vec<Violation>) {
    for (number, line) in code.production() {
        for (word, instead) in IMPURE {
            if identifiers(line).any(|identifier| identifier == word) && !is_harmless(word, line) {
                let problem = format!("`{word}` in a crate that is a pure function: {instead}");
                found.push(Violation::at(at(source, number), problem));
            }
        }
    }
}

/// Words that are a module's name in one place and an ordinary name in another count with their path only.
fn is_harmless(word: &str, line: &str) -> bool {
    matches!(word, "fs" | "thread" | "process" | "env" | "rand") && {
        let path = format!("std::{word}");
        let braced = line.contains("std::{");
        !line.contains(&path) && !line.contains(&format!("{word}::")) && !line.contains(&format!("{word}!(")) && !braced
    }
}

/// The checker exists to catch the planner's mistakes, so it must not share them.
fn checker_stands_alone(source: &Source, code: &Code, found: &mut Vec<Violation>) {
    let name = &source.path[PLANNER.len()..];
    if name == "lib.rs" {
        return;
    }
    let is_checker = name == "checker.rs" || name.starts_with("checker/");
    for (number, line) in code.production() {
        let named = paths_into_crate(line);
        let problem = if is_checker {
            named.into_iter().find(|module| *module != "checker").map(|module| {
                format!("the checker uses `{module}` of the planner: it shares no code with what it checks")
            })
        } else {
            identifiers(line)
                .any(|identifier| identifier == "checker")
                .then(|| "the planner uses its checker: they share no code".to_owned())
        };
        found.extend(problem.map(|problem| Violation::at(at(source, number), problem)));
    }
}

/// The first segment after each `crate::` of a line.
fn paths_into_crate(line: &str) -> Vec<&str> {
    line.match_indices("crate::")
        .map(|(at, prefix)| {
            let rest = &line[at + prefix.len()..];
            rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(rest)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn finds(path: &str, text: &str, expected: &[(usize, &str)]) {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        let found = check(&[source]);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (violation, (line, word)) in found.iter().zip(expected) {
            assert_eq!(violation.place, format!("{path}:{line}"));
            assert!(violation.problem.contains(word), "{violation:?}");
        }
    }

    #[test]
    fn a_pure_crate_names_no_clock_socket_hash_map_or_chance() {
        for planted in [
            "use std::collections::HashMap;",
            "use std::time::Instant;",
            "let now = SystemTime::now();",
            "use std::fs;",
            "use std::{fs, fmt};",
            "std::process::exit(1);",
            "let x = rand::random();",
            "async fn f() {}",
            "let s: TcpStream;",
        ] {
            let source = Source { path: "crates/control/src/x.rs".into(), text: format!("{planted}\n") };
            assert_eq!(check(&[source]).len(), 1, "{planted}");
        }
    }

    #[test]
    fn prose_tests_and_other_crates_may_name_them() {
        finds("crates/model/src/x.rs", "// no HashMap here\nlet s = \"Instant\";\n", &[]);
        finds("crates/model/src/x.rs", "#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n", &[]);
        finds("crates/model/src/x/tests.rs", "use std::fs;\n", &[]);
        finds("crates/server/src/x.rs", "use std::collections::HashMap;\n", &[]);
        finds("crates/model/src/x.rs", "let process = 1; let env = process;\n", &[]);
        finds("crates/model/src/x.rs", "pub address: std::net::IpAddr,\n", &[]);
    }

    #[test]
    fn unfinished_and_silenced_code_is_found_in_tests_too() {
        finds("crates/agent/src/x.rs", "#[cfg(test)]\nmod tests {\n#[ignore]\nfn f() {}\n}\n", &[(3, "ignore")]);
        finds("crates/agent/src/x.rs", "todo!()\n", &[(1, "todo")]);
        finds("crates/agent/src/x.rs", "\n#[allow(dead_code)]\n", &[(2, "silencing")]);
        finds("crates/agent/src/x.rs", "// todo! in prose\n", &[]);
    }

    #[test]
    fn a_file_that_is_too_long_is_found_and_a_long_one_warned_about() {
        let long = |lines: usize| vec![Source { path: "crates/agent/src/x.rs".into(), text: "a();\n".repeat(lines) }];
        assert_eq!(check(&long(LINES_MAX)), []);
        assert_eq!(check(&long(LINES_MAX + 1)).len(), 1);
        assert_eq!(warnings(&long(CODE_LINES_EXPECTED_MAX)), []);
        assert_eq!(warnings(&long(CODE_LINES_EXPECTED_MAX + 1)).len(), 1);
    }

    #[test]
    fn planner_and_checker_share_no_code() {
        let checker = "crates/planner/src/checker.rs";
        finds(checker, "use drover_model::plan::Plan;\nuse crate::search::Snapshot;\n", &[(2, "search")]);
        finds("crates/planner/src/checker/steps.rs", "use crate::checker::Replay;\n", &[]);
        finds("crates/planner/src/search.rs", "use crate::checker::check;\n", &[(1, "checker")]);
        finds("crates/planner/src/lib.rs", "mod checker;\npub use checker::check;\n", &[]);
    }
}
