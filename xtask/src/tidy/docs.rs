//! Rules about documents and about what any file may say.

use super::{Source, Violation};
use std::path::Path;

const DECISIONS: &str = "docs/decisions/";

pub fn check(sources: &[Source], root: &Path) -> Vec<Violation> {
    let mut found = decisions(sources);
    found.extend(own_machine(sources, &root.to_string_lossy()));
    found
}

/// Decisions are `0001-title.md` and on, without gap or repetition, so that a number names one for ever.
fn decisions(sources: &[Source]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut expected = 1;
    for source in sources {
        let Some(name) = source.path.strip_prefix(DECISIONS).filter(|name| *name != "README.md") else { continue };
        let number = name.split_once('-').map(|(digits, _)| digits).filter(|digits| digits.len() == 4);
        match number.and_then(|digits| digits.parse::<u32>().ok()) {
            Some(number) if number == expected => expected += 1,
            Some(_) => {
                found.push(Violation::at(
                    &source.path,
                    format!("decisions are numbered without gaps: {expected:04} is next"),
                ));
            }
            None => found.push(Violation::at(&source.path, "name a decision by number and title: 0001-title.md")),
        }
    }
    found
}

/// A path of the machine it was written on means nothing to anybody else.
fn own_machine(sources: &[Source], checkout: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in sources {
        for (number, line) in source.text.lines().enumerate() {
            if line.contains(checkout) {
                let place = format!("{}:{}", source.path, number + 1);
                found.push(Violation::at(
                    place,
                    "names the directory of this checkout: write it relative to the workspace",
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn decisions_are_numbered_without_gaps() {
        let named = |names: &[&str]| -> usize {
            let sources: Vec<_> = names.iter().map(|name| source(&format!("{DECISIONS}{name}"), "")).collect();
            decisions(&sources).len()
        };
        assert_eq!(named(&["0001-a.md", "0002-b.md", "README.md"]), 0);
        assert_eq!(named(&["0001-a.md", "0003-b.md"]), 1);
        assert_eq!(named(&["0001-a.md", "0001-b.md"]), 1);
        assert_eq!(named(&["first.md"]), 1);
        assert_eq!(named(&["1-a.md"]), 1);
    }

    #[test]
    fn the_directory_of_the_checkout_is_named_nowhere() {
        let sources = [source("README.md", "run it in\n/home/me/drover/target\n"), source("a.rs", "// fine\n")];
        let found = own_machine(&sources, "/home/me/drover");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].place, "README.md:2");
    }
}
