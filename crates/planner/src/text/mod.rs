//! Clusters as text: formats of others and of our own, read into plain structures and written again. No I/O.

pub mod ganeti;
pub mod native;

/// What stands in the text is not what must stand there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {found}, but expected {expected}")]
pub struct BadText {
    /// From 1.
    pub line: usize,
    pub found: String,
    pub expected: String,
}

/// A name of ours from one of theirs, which may hold dots, capitals and more: as near as a DNS label comes to it. Empty where
/// nothing is left.
pub fn label(theirs: &str) -> String {
    let part = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = theirs.chars().map(part).collect();
    let name = name.trim_matches('-');
    name[..name.len().min(63)].trim_end_matches('-').to_owned()
}
