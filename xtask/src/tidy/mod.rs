//! `cargo xtask tidy`: the rules of the code base that the compiler does not check.
//!
//! Each rule has its reason in ARCHITECTURE.md. A violation names the file, the line, and what to do instead.

mod crates;
mod docs;
mod lex;
mod sources;

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// From the root of the workspace, with `:line` where there is one.
    place: String,
    problem: String,
}

impl Violation {
    fn at(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}

/// A text file of the project.
pub struct Source {
    /// From the root of the workspace, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Files that are read; others (images, lock files) have no rules.
const EXTENSIONS: [&str; 7] = ["rs", "md", "toml", "sh", "yaml", "json", "sql"];
/// Directories that hold what is built or kept by tools, by the beginning of their names.
const SKIPPED: [&str; 2] = ["target", ".git"];
const FILES_MAX: usize = 10_000;

pub fn run(root: &Path) -> Result<()> {
    let sources = read_sources(root)?;
    let mut violations = sources::check(&sources);
    violations.extend(docs::check(&sources, root));
    violations.extend(crates::check(root, &sources)?);
    violations.sort();
    for Violation { place, problem } in &violations {
        println!("{place}: {problem}");
    }
    for warning in sources::warnings(&sources) {
        println!("warning: {}: {}", warning.place, warning.problem);
    }
    if !violations.is_empty() {
        bail!("{} violations of the rules of the code base, named above", violations.len());
    }
    println!("tidy: {} files keep the rules", sources.len());
    Ok(())
}

fn read_sources(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("can't read {}", directory.display()))? {
            let entry = entry.with_context(|| format!("can't read {}", directory.display()))?;
            let path = entry.path();
            let name = entry.file_name();
            let kind = entry.file_type().with_context(|| format!("can't look at {}", path.display()))?;
            if kind.is_dir() && !SKIPPED.iter().any(|skipped| name.to_string_lossy().starts_with(skipped)) {
                directories.push(path);
            } else if kind.is_file() && wanted(&path) {
                sources.push(read_source(root, path)?);
                if sources.len() > FILES_MAX {
                    bail!("more than {FILES_MAX} files: is something built outside target/?");
                }
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn wanted(path: &Path) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| EXTENSIONS.contains(&e))
}

fn read_source(root: &Path, path: PathBuf) -> Result<Source> {
    let text = fs::read_to_string(&path).with_context(|| format!("can't read {} as text", path.display()))?;
    let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
    Ok(Source { path, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_base_keeps_its_own_rules() {
        let root = crate::workspace_root();
        let sources = read_sources(&root).unwrap();
        let mut violations = sources::check(&sources);
        violations.extend(docs::check(&sources, &root));
        violations.extend(crates::check(&root, &sources).unwrap());
        assert_eq!(violations, []);
    }
}
