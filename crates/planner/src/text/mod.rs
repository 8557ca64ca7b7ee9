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
